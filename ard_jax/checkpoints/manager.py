"""Checkpoints through Orbax; the only file that imports it.

One step of a folder holds, committed atomically: "student" and "ema" (variables alone, so that an
evaluation needs nothing else), "rest" (step, optimiser states, every teacher, the method's arrays)
and "meta" (JSON). With several processes all of them save and restore together, into one folder that all see:
a shared file system, or a bucket ("gs://...").
"""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from ard_jax.models.bundle import differences, named_shapes, summary
from ard_jax.runtime.distributed import everywhere, tell
from ard_jax.state import NetState, RunState


class CheckpointError(ValueError):
    """A checkpoint that is missing, or cannot be read or written."""


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints of one folder, e.g. <run>/last or <run>/best; closed at the end of a `with`."""

    def __init__(self, folder: str | os.PathLike, keep: int = 1):
        """Opens or makes `folder`; the `keep` newest steps are kept, and damaged ones beside them."""
        self.folder = _absolute(folder)
        self._manager = _Manager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=True, cleanup_tmp_directories=True
            ),
        )
        self._damaged: set[int] = set()

    def steps(self) -> list[int]:
        """Complete steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: RunState, meta: dict[str, Any], replace: bool = False) -> None:
        """Saves a step, in the background: see `wait`.

        One that is already there is left as it is (a resumed run repeats it, bit for bit), unless
        `restore` found it damaged, or `replace`.
        """
        if step in self.steps():
            if not replace and step not in self._damaged:
                return
            self._delete(step)
        if jax.default_backend() == "cpu":
            # There device buffers are host memory, which the next donated step would overwrite.
            state = jax.tree.map(_copy_to_save, state)
        meta = dict(meta) | {"checksums": _checksums(_items(state))}
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        with self._writing():
            self._manager.save(
                step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items), force=True
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Says in our words what Orbax and TensorStore raise, of this save or an earlier one."""
        try:
            yield
        except (OSError, ValueError) as error:
            cause = getattr(error, "strerror", None) or str(error).partition("\n")[0][-200:]
            raise CheckpointError(
                f"{self.folder}: a checkpoint could not be saved ({cause}); the ones before it are whole. "
                "Make room, or give the folder back, and start the same command again"
            ) from error

    def restore(self, step: int, template: RunState) -> tuple[RunState, dict[str, Any]]:
        """State of a step, with the template's structure, shapes and shardings; and its meta.

        Raises:
          CheckpointError: the files do not fit the template or are damaged.
        """
        items = {
            name: ocp.args.StandardRestore(jax.tree.map(_abstract, tree))
            for name, tree in _items(template).items()
        }
        cause, out, folder = None, {}, self.folder / str(step)
        try:
            out = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **items)
            )
        except Exception as error:  # whatever a damaged file makes Orbax raise
            cause = error
        if cause is None:
            cause = _changed(folder, out, out["meta"])
        if everywhere(cause is None):
            return _join(out, template), out["meta"]
        self._damaged.add(step)
        what = f"{type(cause).__name__}: {str(cause)[:200]}"
        if missing := [name for name in ("meta", *items) if not (folder / name).exists()]:
            what = f"without {' and '.join(missing)}"
        elif cause is None:
            what = "another process cannot read it"
        raise CheckpointError(f"{folder} cannot be restored: {what}.") from cause

    def delete_after(self, step: int) -> None:
        """Deletes all later steps."""
        for later in (s for s in self.steps() if s > step):
            self._delete(later)

    def _delete(self, step: int) -> None:
        self.wait()
        self._manager.delete(step)
        self._damaged.discard(step)

    def wait(self) -> None:
        """Until every save is on disk."""
        with self._writing():
            self._manager.wait_until_finished()

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Closes, except where the wait could be for another process that is gone."""
        lost = kind is not None and issubclass(kind, jax.errors.JaxRuntimeError)
        if lost and jax.process_count() > 1:
            return
        # What goes wrong in closing is a consequence of what goes wrong already.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.close()

    def close(self) -> None:
        """Waits and releases the manager's threads."""
        self._manager.close()


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """No: `preemption` asks JAX, which wants a count that only grows and no second one beside it."""
        return False


def _absolute(path: str | os.PathLike) -> epath.Path:
    """The path as one that also reads buckets."""
    text = os.fspath(path)
    if text.startswith(("http://", "https://")):
        raise CheckpointError(
            f"{text} is a web address; download it, then --mode=import --file=FILE"
        )
    return epath.Path(text if "://" in text else Path(text).absolute())


def _items(state: RunState) -> dict[str, Any]:
    rest = {
        "step": state.step,
        "student_opt": state.student.opt_state,
        "teachers": state.teachers,
        "method": state.method,
    }
    items = {"student": state.student.variables, "rest": rest}
    if state.ema is not None:
        items["ema"] = state.ema
    return items


def _join(out: Any, template: RunState) -> RunState:
    rest, student = out["rest"], out["student"]
    return RunState(
        step=rest["step"],
        student=NetState(student["params"], student["batch_stats"], rest["student_opt"]),
        teachers=rest["teachers"],
        ema=out["ema"] if template.ema is not None else None,
        method=rest["method"],
    )


def _checksums(items: dict[str, Any]) -> dict[str, int]:
    """Checksum of each network."""
    return {name: _checksum(items[name]) for name in ("student", "ema") if name in items}


def _checksum(variables: Any) -> int:
    """CRC-32 of the sums of each array's 64-bit words: ten times as fast as one of all bytes."""
    found = 0
    for leaf in jax.tree.leaves(variables):
        if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
            leaf = leaf.addressable_data(0)
        content = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        whole = len(content) // 8 * 8
        words = np.add.reduce(content[:whole].view(np.uint64), dtype=np.uint64)
        found = zlib.crc32(words.tobytes() + content[whole:].tobytes(), found)
    return found


def _changed(
    step_folder: Any, items: Mapping[str, Any], meta: dict[str, Any]
) -> CheckpointError | None:
    """What to say of a network that is not the one that was saved with this meta; None if it is."""
    for name, saved in meta.get("checksums", {}).items():
        if name in items and _checksum(items[name]) != saved:
            return CheckpointError(
                f"{step_folder / name} holds other values than its meta says (a checksum): it was copied "
                "from another step, or changed after it was saved; use the original checkpoint"
            )
    return None


def _copy_to_save(leaf: jax.Array) -> jax.Array:
    """Copies an array; in a single process one replica is enough, and Orbax writes it in one piece."""
    if jax.process_count() == 1 and leaf.is_fully_replicated:
        leaf = leaf.addressable_data(0)
    return jnp.copy(leaf)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def save_network(folder: str | os.PathLike, variables: Any, meta: dict[str, Any]) -> epath.Path:
    """Saves a network without a training run, in the form of a run's best/: `find` and all else take it.

    Args:
      folder: for example <out>/best; made here.
      variables: {"params": ..., "batch_stats": ...}, numpy or JAX arrays.
      meta: JSON; "step" and "epoch" (0), "config" with "net" as `build.describe_network` gives it, "origin".

    Returns:
      The step folder.

    Raises:
      ValueError: `meta` lacks one of these.
    """
    if lacks := [name for name in ("step", "epoch", "config") if name not in meta]:
        raise ValueError(
            f"meta lacks {', '.join(lacks)}; give step and epoch (0) and config={{'net': a description}}"
        )
    folder = _absolute(folder)
    options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=False)
    with ocp.CheckpointManager(folder, options=options) as manager:
        meta = meta | {"checksums": _checksums({"student": variables})}
        items = {"student": ocp.args.StandardSave(variables), "meta": ocp.args.JsonSave(meta)}
        manager.save(meta["step"], args=ocp.args.Composite(**items), force=True)
        manager.wait_until_finished()
    return folder / str(meta["step"])


def find(path: str | os.PathLike) -> epath.Path:
    """The step folder that `path` means: itself, or the newest step of best/, of last/, or in it.

    A step whose meta cannot be read, or that lacks its arrays, is passed over with a warning.

    Raises:
      CheckpointError: no checkpoint there.
    """
    path = _absolute(path)
    try:
        is_file = path.is_file()
    except ImportError as error:  # of what reads buckets
        raise CheckpointError(
            f"{path} cannot be read here: {error}; install that package"
        ) from error
    if is_file and (path.parent / "best").is_dir():
        raise CheckpointError(f"{path} is a file of a run; give the run's folder, {path.parent}")
    if is_file:
        raise CheckpointError(
            f"{path} is a file, not a checkpoint of ard_jax; import it first: python -m ard_jax.main "
            f"--mode=import --file={path} --out=teachers/{path.stem} --config=CONFIG, then give the "
            "folder of --out"
        )
    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path} does not exist; give the folder of a run")
    if (path / "meta").is_dir():
        return path
    damaged = []
    for folder in (path / "best", path / "last", path):
        if folder == path / "last" and not damaged and _names(folder):
            damaged.append(f"{path / 'best'} holds no checkpoint")
        for step in sorted((s for s in _names(folder) if s.isdigit()), key=int, reverse=True):
            if problem := _incomplete(folder / step):
                damaged.append(problem)
                continue
            tell(*(f"WARNING: {text}. Using {folder / step}." for text in damaged))
            return folder / step
    raise CheckpointError(
        "; ".join(damaged)
        or f"{path} holds no checkpoint; expected the folder of a run (with best/ and last/), one of "
        "these, or one step of them"
    )


def check_holds_no_steps(folder: str | os.PathLike, name: str) -> None:
    """Checks that other files may be written to a folder: that it is not of the checkpoints of a run.

    Args:
      folder: the folder, which need not exist.
      name: the flag that chose it, for the message.

    Raises:
      CheckpointError: it is best/ or last/ of a run, or in one of these.
    """
    path = Path(folder).absolute()
    for part in (path, *path.parents):
        if part.name in ("best", "last") and any(part.glob("[0-9]*/_CHECKPOINT_METADATA")):
            raise CheckpointError(
                f"{name}={folder}: {part} holds the checkpoints of a run; choose another folder"
            )


def _names(folder: epath.Path) -> list[str]:
    return [p.name for p in folder.iterdir()] if folder.is_dir() else []


def _incomplete(step_folder: epath.Path) -> str:
    """What shows, without reading arrays, that a step cannot be used; "" if nothing does."""
    try:
        read_meta(step_folder)
    except CheckpointError as error:
        return str(error)
    missing = [name for name in _saved_items(step_folder) if not _names(step_folder / name)]
    return f"{step_folder}: damaged checkpoint, without {' and '.join(missing)}" if missing else ""


def _saved_items(step_folder: epath.Path) -> list[str]:
    """The parts that Orbax noted when it saved the step; those of a training run if it cannot be read."""
    try:
        noted = json.loads((step_folder / "_CHECKPOINT_METADATA").read_text())["item_handlers"]
        return sorted({"student", *noted})
    except (OSError, ValueError, KeyError, TypeError):
        return ["rest", "student"]


def read_meta(step_folder: epath.Path) -> dict[str, Any]:
    """The JSON saved with a step.

    Raises:
      CheckpointError: it is damaged.
    """
    try:
        meta = json.loads((step_folder / "meta" / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{step_folder}: damaged checkpoint meta: {error}; copy the checkpoint again, or "
            "give another step"
        ) from error
    if not isinstance(meta, dict) or not meta:
        raise CheckpointError(
            f"{step_folder}: damaged checkpoint meta: it is {str(meta)[:40]!r}, not what a run saves; copy "
            "the checkpoint again, or give another step"
        )
    return meta


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
        has = [name for name in ("student", "ema") if (step_folder / name).is_dir()]
        needs = (
            ": training with config.ema_decay or config.swa_start saves it" if item == "ema" else ""
        )
        raise CheckpointError(
            f"{step_folder} holds no {item!r} network{needs}; it has {' and '.join(has) or 'none'}"
        )
    folder = _absolute(step_folder)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes)
    try:
        with ocp.StandardCheckpointer() as reader:
            # Not the checkpointer's own `metadata`, which warns of a file that items never have.
            stored = ocp.StandardCheckpointHandler().metadata(_absolute(step_folder / item))
            if problems := differences(named_shapes(stored), named_shapes(shapes)):
                raise CheckpointError(
                    f"{step_folder / item} holds another network than its meta says: {summary(problems)}; "
                    "it was changed after it was saved: use the original checkpoint"
                )
            variables = reader.restore(step_folder / item, target)
        if error := _changed(folder, {item: variables}, read_meta(folder)):
            raise error
        return variables
    except CheckpointError:
        raise
    except Exception as error:
        cause = str(error).partition("\n")[0][:200]
        raise CheckpointError(
            f"{step_folder / item} is damaged ({type(error).__name__}: {cause}); copy it again"
        ) from error
