"""Checkpoints through Orbax; the only file that imports it.

One step of a folder holds, committed atomically: "student" and "ema" (variables alone, so that an
evaluation needs nothing else), "rest" (step, optimiser states, every teacher, the method's arrays) and
"meta" (JSON).
"""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ard_jax.state import NetState, RunState


class CheckpointError(ValueError):
    """A checkpoint that is missing or cannot be read."""


class Checkpoints:
    """The checkpoints of one folder, e.g. <run>/last or <run>/best."""

    def __init__(self, folder: Path, keep: int = 1):
        """Opens or makes `folder`; the `keep` newest steps are kept."""
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            cleanup_tmp_directories=True,
            # On CPU device buffers are host memory, which the next donated step would overwrite.
            enable_async_checkpointing=jax.default_backend() != "cpu",
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._damaged: set[int] = set()

    def steps(self) -> list[int]:
        """Complete steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: RunState, meta: dict[str, Any]) -> None:
        """Saves a step.

        One that is already there is left as it is (a resumed run repeats it, bit for bit), unless
        `restore` found it damaged.
        """
        if step in self._damaged:
            self._manager.delete(step)
            self._damaged.remove(step)
        if step in self.steps():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        self._manager.save(
            step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items), force=True
        )

    def restore(self, step: int, template: RunState) -> tuple[RunState, dict[str, Any]]:
        """State of a step, with the template's structure, shapes and shardings; and its meta.

        Raises:
          CheckpointError: the files do not fit the template or are damaged.
        """
        items = {
            name: ocp.args.StandardRestore(jax.tree.map(_abstract, tree))
            for name, tree in _items(template).items()
        }
        try:
            out = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **items)
            )
        except Exception as error:  # whatever a damaged file makes Orbax raise
            self._damaged.add(step)
            raise CheckpointError(
                f"{self.folder / str(step)} cannot be restored: {type(error).__name__}: {error}."
            ) from error
        return _join(out, template), out["meta"]

    def wait(self) -> None:
        """Until every save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the manager's threads."""
        self._manager.close()


def _items(state: RunState) -> dict[str, Any]:
    rest = {
        "step": state.step,
        "student_opt": state.student.opt_state,
        "teachers": state.teachers,
        "method": state.method,
    }
    items = {"student": state.student.variables, "rest": rest}
    return items | ({"ema": state.ema} if state.ema is not None else {})


def _join(out: Any, template: RunState) -> RunState:
    rest, student = out["rest"], out["student"]
    return RunState(
        step=rest["step"],
        student=NetState(student["params"], student["batch_stats"], rest["student_opt"]),
        teachers=rest["teachers"],
        ema=out["ema"] if template.ema is not None else None,
        method=rest["method"],
    )


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def save_network(folder: Path, variables: Any, meta: dict[str, Any]) -> Path:
    """Saves a network without a training run, in the form of a run's best/: `find` and all else take it.

    Args:
      folder: for example <out>/best; made here.
      variables: {"params": ..., "batch_stats": ...}, numpy or JAX arrays.
      meta: JSON; "step" and "epoch" (0), "config" with "net" as `networks.describe` gives it, "origin".

    Returns:
      The step folder.
    """
    folder = Path(folder).absolute()
    options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=False)
    with ocp.CheckpointManager(folder, options=options) as manager:
        items = {"student": ocp.args.StandardSave(variables), "meta": ocp.args.JsonSave(meta)}
        manager.save(meta["step"], args=ocp.args.Composite(**items), force=True)
        manager.wait_until_finished()
    return folder / str(meta["step"])


def find(path: str | Path) -> Path:
    """The step folder that `path` means: itself, or the newest step of best/, of last/, or in it.

    Raises:
      CheckpointError: no checkpoint there.
    """
    path = Path(path).absolute()
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file, not a checkpoint of ard_jax; import it first: python -m ard_jax.main "
            f"--mode=import --file={path} --out=teachers/{path.stem} --config=CONFIG, then give the "
            "folder of --out"
        )
    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path} does not exist; give the folder of a run")
    if (path / "meta").is_dir():
        return path
    for folder in (path / "best", path / "last", path):
        steps = [
            int(p.name) for p in folder.glob("*") if p.name.isdigit() and (p / "meta").is_dir()
        ]
        if steps:
            return folder / str(max(steps))
    raise CheckpointError(
        f"{path} holds no checkpoint; expected the folder of a run (with best/ and last/), one of "
        "these, or one step of them"
    )


def read_meta(step_folder: Path) -> dict[str, Any]:
    """The JSON saved with a step.

    Raises:
      CheckpointError: it is damaged.
    """
    try:
        return json.loads((step_folder / "meta" / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{step_folder}: damaged checkpoint meta: {error}") from error


def load_variables(step_folder: Path, item: str, shapes: Any) -> Any:
    """Variables of the network `item` ("student" or "ema") of a step folder, on this host's device.

    Args:
      step_folder: from `find`.
      item: which network.
      shapes: pytree of ShapeDtypeStruct, e.g. jax.eval_shape(bundle.init, key).

    Raises:
      CheckpointError: no such network there, or its shapes differ.
    """
    if not (step_folder / item).is_dir():
        raise CheckpointError(f"{step_folder} holds no {item!r} network")
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes)
    try:
        with ocp.StandardCheckpointer() as reader:
            return reader.restore(step_folder / item, target)
    except Exception as error:
        raise CheckpointError(
            f"{step_folder / item} cannot be restored: {type(error).__name__}: {error}"
        ) from error
