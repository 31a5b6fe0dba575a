"""Where to continue: the newest usable checkpoint, if it was made with the same configuration."""

import os
from collections.abc import Callable
from typing import Any

from ard_jax.checkpoints.manager import CheckpointError, Checkpoints, read_meta
from ard_jax.config import removed
from ard_jax.data import base
from ard_jax.runtime.distributed import tell
from ard_jax.state import RunState


class ConfigChangedError(ValueError):
    """The folder holds a run with another configuration."""


def newest(
    checkpoints: Checkpoints,
    template: RunState,
    config: dict[str, Any],
    extension_problem: Callable[[int], str] | None = None,
) -> tuple[RunState, dict[str, Any]] | tuple[None, None]:
    """(state, meta) of the newest checkpoint that can be read; (None, None) when there is none.

    A damaged one is passed over with a warning.

    Args:
      checkpoints: of the run.
      template: gives structure, shapes and placement.
      config: what the run is; must equal what the checkpoint was made with, but for more "epochs".
      extension_problem: fewer epochs -> why a run of that length cannot be trained on; "" if it can. None: as
        if it never could.

    Raises:
      ConfigChangedError: it does not.
      CheckpointError: there are checkpoints, and none can be read.
    """
    damaged = []
    for step in reversed(checkpoints.steps()):
        try:
            state, meta = checkpoints.restore(step, template)
        except CheckpointError as error:
            # A changed network fails to restore too; say so rather than start from an older step.
            _check_damaged(checkpoints.folder / str(step), config)
            damaged.append(str(error))
            continue
        compare_configs(
            checkpoints.folder.parent, meta["config"], config, extension_problem=extension_problem
        )
        tell(*(f"WARNING: {text} Continuing from step {step}." for text in damaged))
        return state, meta
    if damaged:
        raise CheckpointError(
            f"{'; '.join(damaged)} Copy the run again, or delete {checkpoints.folder.parent} to start over."
        )
    return None, None


def best(
    checkpoints: Checkpoints, template: RunState, chosen: dict[str, Any]
) -> tuple[RunState, dict[str, Any]]:
    """(state, record) of the best checkpoint; of the best one before it, with a warning, if it is damaged.

    Args:
      checkpoints: those that were the best of their time.
      template: gives structure, shapes and placement.
      chosen: the record of the best one: its "step" and scores.

    Raises:
      CheckpointError: none can be read.
    """
    damaged = (
        [] if chosen["step"] in checkpoints.steps() else [f"step {chosen['step']} is missing."]
    )
    for step in reversed([s for s in checkpoints.steps() if s <= chosen["step"]]):
        try:
            state, meta = checkpoints.restore(step, template)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        tell(*(f"WARNING: {text} Evaluating the best before it, step {step}." for text in damaged))
        return state, meta["best"]
    raise CheckpointError(
        f"no best checkpoint in {checkpoints.folder} can be read: {'; '.join(damaged)} To evaluate the last "
        f"one: --mode=evaluate --checkpoint={checkpoints.folder.parent / 'last'}; to train again, delete "
        f"{checkpoints.folder.parent}."
    )


def _check_damaged(step_folder: Any, config: dict[str, Any]) -> None:
    """Compares with a saved step's configuration, when that can still be read."""
    try:
        saved = read_meta(step_folder)["config"]
    except (CheckpointError, KeyError):
        return
    compare_configs(step_folder, saved, config)


def compare_configs(
    where: os.PathLike,
    saved: dict[str, Any],
    now: dict[str, Any],
    extension_problem: Callable[[int], str] | None = None,
) -> None:
    """Raises ConfigChangedError with every difference shown, unless the configurations are equal.

    More epochs are no difference where `extension_problem` has nothing against them (`newest`).
    """
    saved, now = _flat(saved), _flat(now)
    # Checkpoints of earlier versions lack these.
    for split in {"validation_split", "test_split"} - set(saved):
        now.pop(split, None)
    before, after, reason = saved.get("epochs"), now.get("epochs"), ""
    if extension_problem and before and after and before < after:
        reason = extension_problem(before)
        if not reason:
            tell(f"{where}: {before} epochs become {after}.")
            saved = saved | {"epochs": after}

    def value_now(key: str) -> str:
        # What concerns the teachers is recorded without their group.
        if gone := removed.find(key) or removed.find(f"teachers.{key}"):
            return f"removed: {gone.instead}"
        return repr(now.get(key, "(absent)"))

    def difference(key: str) -> str:
        if key == "net.class_names" and saved.get(key) and now.get(key):
            if problem := base.class_mismatch(saved[key], now[key]):
                return problem
        return f"checkpoint {saved.get(key, '(absent)')!r}, now {value_now(key)}"

    different = [
        f"  {key}: {difference(key)}"
        for key in sorted({*saved, *now})
        if saved.get(key, "(absent)") != now.get(key, "(absent)")
    ]
    if different:
        raise ConfigChangedError(
            f"{where} holds a run with another configuration:\n"
            + "\n".join(different)
            + (f"\nIt cannot be trained longer: {reason}." if reason else "")
            + "\nUse the same values to continue it, another --config.workdir, or delete the folder to "
            "start over."
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    return {
        k: v
        for name, sub in tree.items()
        for k, v in _flat(sub, f"{prefix}.{name}" if prefix else str(name)).items()
    }
