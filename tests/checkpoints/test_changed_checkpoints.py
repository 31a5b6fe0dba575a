"""Checkpoints that were changed after they were saved: in our words, with the file, before any compute."""

import json

import pytest

from ard_jax.checkpoints import manager, networks
from ard_jax.cli import export, train_checks


def net(**values):
    return lambda meta: meta["config"]["net"].update(values) or meta


def widths(*numbers):
    return lambda meta: meta["config"]["net"]["kwargs"].update(widths=list(numbers)) or meta


# Change of the saved meta -> what reading the checkpoint says.
CHANGES = {
    "empty": (lambda meta: {}, "damaged checkpoint meta: it is '{}'"),
    "a list": (lambda meta: [], "damaged checkpoint meta: it is .*not what a run saves"),
    "a number": (lambda meta: 3, "damaged checkpoint meta: it is '3'"),
    "without its network": (lambda meta: {"step": 1}, "is not a checkpoint of ard_jax"),
    "another width": (
        widths(5),
        r"another network than its meta says: .* is \(4,\) but must be \(5,\)",
    ),
    "one block more": (widths(4, 8), r"another network .*missing \S+ \(8,\)"),
    "eleven classes": (net(num_classes=11), r"params/linear/bias is \(10,\) but must be \(11,\)"),
    "an unknown network": (net(model="resnet5"), "unknown model 'resnet5'"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_the_change_is_named(root, case, capfd):
    change, message = CHANGES[case]
    step = manager.find(root / "run" / "best")
    file = step / "meta" / "metadata"
    original = file.read_text()
    try:
        file.write_text(json.dumps(change(json.loads(original))))
        with pytest.raises(ValueError, match=message) as caught:
            networks.load(str(step))
        assert "WARNING" not in capfd.readouterr().err
        assert str(step) in str(caught.value) or "model" in message
        with pytest.raises(ValueError):
            export.run(str(step), formats=("safetensors",))
    finally:
        file.write_text(original)


def test_a_run_without_its_experiment_is_no_imported_network(root):
    step = manager.find(root / "run" / "best")
    file = step / "meta" / "metadata"
    original = file.read_text()
    try:
        file.write_text(
            json.dumps({k: v for k, v in json.loads(original).items() if k != "experiment"})
        )
        with pytest.raises(
            manager.CheckpointError, match="lacks the experiment that trained it; .*--config"
        ):
            train_checks.saved_experiment(str(step))
    finally:
        file.write_text(original)
