"""Runs whose second network begins with the student: stopped and continued, reported, compared, planned."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from experiments import override, tiny

from ard_jax.checkpoints.resume import ConfigChangedError
from ard_jax.cli import compare, plan, train
from ard_jax.config import build, parse
from ard_jax.config.comparison import from_config
from ard_jax.configs import protocol
from ard_jax.io.metric_writer import METRICS_FILE, read_metrics
from ard_jax.reporting import record
from ard_jax.runtime import preemption, sharding
from ard_jax.training import teachers

ROLES = {"lbgat": "guide", "peeraid": "peer"}
SMALL = {"eval__attacks": ("pgd_sat",), "eval__grid": 0, "eval__max_examples": 50}


def config(folder, name, **overrides):
    """The method on the digits, small."""
    raw = tiny(folder, "sat", **SMALL)
    raw.method, raw.attack = protocol.method(name), protocol.attack(name)
    raw.attack.steps = 2
    protocol.add_partners(raw, name)
    return override(raw, overrides)


def run(raw):
    return train.run(parse.to_experiment(raw)).parent


def arrays(folder):
    """All of the last checkpoint: both networks, optimisers, step."""
    newest = max((folder / "last").iterdir(), key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as reader:
        return [reader.restore(newest / item) for item in ("student", "rest")]


@pytest.fixture(scope="module", params=["lbgat", pytest.param("peeraid", marks=pytest.mark.slow)])
def finished(request, tmp_path_factory):
    """(method, folder of its finished run)."""
    name = request.param
    return name, run(config(tmp_path_factory.mktemp(name), name))


@pytest.mark.slow
def test_stopped_in_an_epoch_and_continued_it_is_the_same_bit_for_bit(
    finished, tmp_path, monkeypatch
):
    name, expected = finished
    raw = config(tmp_path, name)
    for stop in (2, 4):  # mid-epoch: an epoch has 5 steps
        left = iter(range(stop - 1, -1, -1))
        monkeypatch.setattr(preemption, "requested", lambda left=left: next(left, 0) == 0)
        with pytest.raises(preemption.PreemptedError, match="stopped"):
            run(raw)
    monkeypatch.undo()
    jax.tree.map(np.testing.assert_array_equal, arrays(run(raw)), arrays(expected))


def test_partner_is_reported_after_the_run_and_watched_during_it(finished):
    name, folder = finished
    role = ROLES[name]
    evaluation = record.read_evaluation(folder)
    title = f"{role} after {name.upper()}"
    assert title in evaluation.nets and not any(
        n.startswith(f"{role} teacher") for n in evaluation.nets
    )
    teacher = evaluation.teachers[role]
    assert teacher.source == "began with the student, from seed 0, and learned beside it"
    assert teacher.accuracy["clean"] == evaluation.nets[title].clean
    assert f"transfer_pgd_trades_{role}" in evaluation.nets["student (best)"].attacks
    watched = [r["net"] for r in read_metrics(folder / METRICS_FILE) if r["kind"] == "eval"]
    assert set(watched) == {"student", role}


def begin(raw, role):
    experiment = parse.to_experiment(raw)
    splits, mesh = build.load_data(experiment.data), sharding.make_mesh(1)
    return teachers.obtain(build.teacher_settings(experiment, role), splits, mesh)


def test_partner_begins_from_the_seed_and_is_no_twin_of_the_student(tmp_path):
    first, again, other = (
        begin(config(tmp_path, "peeraid", seed=seed), "peer") for seed in (3, 3, 4)
    )
    same = jax.tree.map(np.array_equal, first.variables, again.variables)
    assert all(jax.tree.leaves(same)) and first.identity == other.identity
    kernels = lambda variables: [v for v in jax.tree.leaves(variables["params"]) if v.ndim > 1]  # noqa: E731
    twin = first.bundle.init(jax.random.key(3))
    for variables in (other.variables, twin):
        pairs = zip(kernels(first.variables), kernels(variables), strict=True)
        assert not any(np.array_equal(a, b) for a, b in pairs)


def test_another_partner_does_not_continue_a_run(finished):
    name, folder = finished
    role = ROLES[name]
    raw = config(folder.parent, name)
    raw.teachers[role].net.kwargs.widths = (6,)
    with pytest.raises(ConfigChangedError, match=f"teachers.*{role}"):
        run(raw)


def test_what_is_wrong_with_a_partner_is_told_with_everything_else(tmp_path):
    raw = config(tmp_path, "lbgat", method__beta=-1.0, teachers__guide__net__model="resnet19")
    with pytest.raises(parse.ConfigError) as caught:
        parse.to_experiment(raw)
    message = str(caught.value)
    assert message.count("\n  - ") == 2 and "config.method.beta=-1.0" in message
    assert "config.teachers.guide.net: unknown model 'resnet19'" in message
    raw = config(tmp_path, "lbgat", teachers__peer=config(tmp_path, "peeraid").teachers.peer)
    raw.teachers.guide = None
    with pytest.raises(parse.ConfigError) as caught:
        parse.to_experiment(raw)
    message = str(caught.value)
    assert "config.teachers.guide is None, but method 'lbgat' needs a guide teacher" in message
    assert "config.teachers.peer is given, but method 'lbgat' takes only guide" in message


def test_a_partner_has_no_recipe_and_no_checkpoint(tmp_path):
    raw = config(tmp_path, "lbgat").to_dict()
    raw["teachers"]["guide"]["checkpoint"] = "runs/some"
    with pytest.raises(parse.ConfigError, match="config.teachers.guide.checkpoint does not exist"):
        parse.to_experiment(raw)


@pytest.mark.slow
def test_a_comparison_shares_no_partner(tmp_path):
    runs = {name: config(tmp_path, name, workdir="").to_dict() for name in ROLES}
    comparison = from_config({
        "name": "two", "workdir": str(tmp_path / "two"), "seeds": (0,), "methods": tuple(runs),
        "runs": runs, "main_attack": "pgd_sat",
    })  # fmt: skip
    assert comparison.teachers == {} and compare.run(comparison) == 0


def test_a_plan_counts_the_partner_as_trained(tmp_path):
    found = plan.make(parse.to_experiment(config(tmp_path, "lbgat")), "cpu-1", [], compiled=False)
    assert [phase["title"] for phase in found["phases"]] == ["student"]
    networks = {n["role"]: n["trained"] for n in found["networks"]}
    assert networks == {"student": True, "guide": True}
