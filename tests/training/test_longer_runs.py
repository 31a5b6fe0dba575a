"""A finished run with more epochs goes on as if it had been as long from the start, or says why not."""

import jax
import numpy as np
import pytest
from experiments import tiny

from ard_jax.checkpoints import manager, networks
from ard_jax.checkpoints.resume import ConfigChangedError
from ard_jax.cli import train
from ard_jax.config import build, parse

SMALL = {"eval__attacks": ("fgsm",), "eval__eps_sweep": (), "eval__grid": 0}


def run(folder, **overrides):
    config = tiny(folder, "natural", **SMALL, **overrides)
    train.run(parse.to_experiment(config))
    return networks.load(str(folder / "run" / "last"))[1]


@pytest.mark.slow
def test_a_longer_run_is_the_same_as_one_that_was_so_long_from_the_start(tmp_path, capfd):
    same = {"student_optim__schedule": "multistep", "student_optim__boundaries": (2,)}
    run(tmp_path / "a", epochs=2, **same)
    capfd.readouterr()
    longer = run(tmp_path / "a", epochs=3, **same)
    assert "2 epochs become 3" in capfd.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, longer, run(tmp_path / "b", epochs=3, **same))
    assert manager.read_meta(manager.find(tmp_path / "a" / "run" / "last"))["epoch"] == 3


def test_a_schedule_that_ends_with_the_run_says_so(tmp_path):
    run(tmp_path, epochs=2, student_optim__schedule="cosine")
    with pytest.raises(ConfigChangedError, match="schedule='cosine' .* from epoch 2 on") as caught:
        run(tmp_path, epochs=3, student_optim__schedule="cosine")
    assert "epochs: checkpoint 2, now 3" in str(caught.value)
    with pytest.raises(ConfigChangedError, match="epochs: checkpoint 2, now 1"):
        run(tmp_path, epochs=1, student_optim__schedule="cosine")


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("ciard", {}, "student_optim.schedule='cosine'"),
        ("ciard", {"student_optim__schedule": "constant"}, "robust_teacher_optim.schedule='ciard'"),
        ("ciard", {"student_optim__schedule": "constant", "robust_teacher_optim__start": 9}, ""),
        ("dard", {"student_optim__schedule": "constant"}, ""),
        ("dard", {"student_optim__schedule": "constant", "method__objective": "epoch_ramp"}, "epoch_ramp"),
        ("dkl", {"student_optim__schedule": "constant"}, "method.eps_ramp=True"),
        ("fat", {"student_optim__schedule": "cyclic"}, "student_optim.schedule='cyclic'"),
    ],
)  # fmt: skip
def test_what_depends_on_the_length(file, changes, reason):
    from ard_jax.configs import protocol

    config = protocol.digits(file)
    config.epochs = 20
    for name, value in changes.items():
        group, field = name.split("__")
        config[group][field] = value
    problem = build.extension_problem(parse.to_experiment(config), 8)
    assert reason in problem and bool(problem) == bool(reason)
