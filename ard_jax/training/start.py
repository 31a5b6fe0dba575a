"""A student that begins with the weights of a checkpoint, such as those of a clean training."""

from typing import Any, NamedTuple

from ard_jax.checkpoints import manager, networks
from ard_jax.data import Splits, base
from ard_jax.models.bundle import ModelBundle, check_fit
from ard_jax.training import teachers

_FIXED = ("model", "kwargs", "normalization", "num_classes")  # of the description of a network


class StartError(ValueError):
    """A checkpoint that the student cannot begin with."""


class Start(NamedTuple):
    """What a student begins with.

    Attributes:
      variables: of the network, on the host.
      identity: the same for machines: a run only continues with the same start.
    """

    variables: Any
    identity: str


def check(path: str, description: dict[str, Any], splits: Splits) -> None:
    """Looks at the checkpoint's description, not at its arrays.

    Args:
      path: folder of a run of ours or of an imported network; "" for none.
      description: of the student.
      splits: its data.

    Raises:
      StartError: no checkpoint, or one of another network or of other classes.
    """
    if not path:
        return
    try:
        net, _, folder = networks.describe_checkpoint(path)
    except manager.CheckpointError as error:
        raise StartError(f"config.start_from={path}: {error}") from error
    where = f"config.start_from={path} ({folder})"
    other = [n for n in _FIXED if _plain(net.get(n)) != _plain(description.get(n))]
    if other:
        told = ", ".join(f"{n} {net.get(n)!r}, the student {description.get(n)!r}" for n in other)
        raise StartError(
            f"{where} is another network: it has {told}; set config.student to what the checkpoint has"
        )
    if problem := base.class_mismatch(net.get("class_names") or (), splits.train.class_names):
        raise StartError(f"{where} does not fit {splits.train.name}: {problem}")


def load(path: str, bundle: ModelBundle) -> Start:
    """The variables of a checkpoint that `check` has found right; their image size may be another.

    Raises:
      StartError: its arrays are not the student's.
      CheckpointError: it is damaged.
    """
    _, variables, meta, folder = networks.load(path)
    try:
        check_fit(bundle, variables, "the student")
    except ValueError as error:
        raise StartError(f"config.start_from={path}: {error}") from error
    return Start(variables, teachers.origin(meta, folder)[1])


def _plain(value: Any) -> Any:
    """A description's value as JSON has it: lists for tuples."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
