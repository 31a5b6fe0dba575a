"""Reads pickles without running what they ask for.

A pickle is a program that may call anything. Python's own `pickle.Unpickler` runs it here, but every name
that it asks for is looked up in a table of inert stand-ins (`Allowed`), never imported: what is not in the
table is refused by its name. Before that the whole stream is walked with `pickletools`, which calls nothing,
so that refusals come first and so do streams made to exhaust memory or to crash the interpreter.
"""

import pickle
import pickletools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

# A WideResNet-70-16 with its optimizer takes about 50,000 operations; each can create a small object.
_MAX_OPERATIONS = 2_000_000
# CPython hashes nested tuples by recursion without a guard, so that a deep one as a key crashes it.
_MAX_TUPLE_DEPTH = 100
_PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "cPickle": "pickle"}
# Modules whose functions act: a file that names one of them beside its tensors is refused as a whole.
_ACTING = frozenset(
    "os posix nt subprocess builtins sys runpy importlib shutil socket pty ctypes marshal types code pickle "
    "operator functools multiprocessing threading asyncio webbrowser urllib http signal tempfile".split()
)
_ADVICE = (
    "Only tensors, numpy arrays and plain values are read, because anything else could run code. If you "
    "trust the file, load it where it was written and save the state dict alone: "
    "torch.save(model.state_dict(), path)"
)


class FileError(ValueError):
    """A file that is not a readable network: the message names the file, what it is and what to do."""


class Budget:
    """Counts bytes before they are allocated, and refuses the file that would exceed the limit."""

    def __init__(self, path: Path, max_bytes: int):
        """Takes the file (for the message) and the largest total size of its content in bytes."""
        self.path = path
        self.max_bytes = max_bytes
        self._left = max_bytes

    def spend(self, size: int, what: str) -> None:
        """Takes `size` bytes off what is left.

        Raises:
          FileError: there is not so much left.
        """
        if size > self._left:
            raise FileError(
                f"{self.path} declares more content than the limit of {self.max_bytes:,} bytes: {what} "
                f"takes {size:,} bytes. Pass a larger max_bytes if the network is really so large"
            )
        self._left -= size


class Allowed:
    """A stand-in for a global of a pickle: can be called, and nothing else."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        """Takes the function that is called in place of the global."""
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function."""
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        """Refuses: without this method a pickle could overwrite the attributes of the stand-in."""
        raise pickle.UnpicklingError("the pickle sets attributes of a function")


class Skipped:
    """An object of a class that is not allowed: nothing is constructed, and what it is given is dropped."""

    __slots__ = ()
    full_name = ""

    def __new__(cls, *_: Any, **__: Any) -> "Skipped":
        """Takes any arguments."""
        return object.__new__(cls)

    def __call__(self, *_: Any, **__: Any) -> "Skipped":
        """Stands for the result of a method, too."""
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignores an entry."""

    def append(self, *_: Any) -> None:
        """Ignores elements, attributes and all else that a pickle adds to an object."""

    extend = add = update = __setstate__ = append


class PlainDict(dict):
    """A dict that ignores attributes: PyTorch's state dicts carry `_metadata`, versions of modules."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Ignores the attributes."""


def load(
    stream: BinaryIO,
    path: Path,
    allowed: Mapping[str, Any],
    persistent_load: Callable[[Any], Any] | None = None,
    skipped: set[str] | None = None,
) -> Any:
    """Reads one pickle from a stream and leaves the stream behind it.

    Args:
      stream: seekable; its `read` must not allocate more than there is (BytesIO, mmap).
      path: the file, for messages.
      allowed: full name of a global ("collections.OrderedDict") -> its stand-in.
      persistent_load: what pickle calls with the id of an object stored outside of the pickle; None
        refuses them.
      skipped: gets the names of globals that are neither allowed nor of a module whose functions act, whose
        objects are then `Skipped`; None refuses these files too.

    Returns:
      The object.

    Raises:
      FileError: the pickle asks for a global that is not allowed (the message names it), or is damaged.
    """
    start = stream.tell()
    try:
        refused = _scan(stream, allowed)
        if skipped is not None and all(map(_is_idle, refused)):
            skipped |= set(refused)
        elif refused:
            raise FileError(_refusal(path, refused))
        end = stream.tell()
        stream.seek(start)
        unpickled = _Unpickler(stream, path, allowed, persistent_load, skipped).load()
        stream.seek(end)
    except FileError:
        raise
    except Exception as error:  # a damaged stream can provoke nearly every type of exception
        raise FileError(
            f"{path} is truncated or damaged: {type(error).__name__}: {error}. Download it again"
        ) from error
    return unpickled


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        stream: BinaryIO,
        path: Path,
        allowed: Mapping[str, Any],
        persistent_load: Callable[[Any], Any] | None,
        skipped: set[str] | None,
    ):
        super().__init__(stream, encoding="latin1")
        self._skipped = skipped
        self._path = path
        self._allowed = allowed
        self._persistent_load = persistent_load

    def find_class(self, module: str, name: str):
        full_name = _full_name(module, name)
        if full_name in self._allowed:
            return self._allowed[full_name]
        if self._skipped is None or not _is_idle(full_name):
            raise FileError(_refusal(self._path, [full_name]))
        self._skipped.add(full_name)
        return type("Skipped", (Skipped,), {"__slots__": (), "full_name": full_name})

    def persistent_load(self, pid: Any):
        if self._persistent_load is None:
            raise pickle.UnpicklingError("the pickle refers to objects outside of it")
        return self._persistent_load(pid)


def _is_idle(full_name: str) -> bool:
    """Whether objects of a global that is not allowed may be passed over."""
    module = full_name.partition(".")[0].lstrip("_")
    whole_model = full_name.startswith("torch.nn.modules.")
    return module not in _ACTING and not whole_model and not full_name.startswith("the copyreg")


def _full_name(module: str, name: str):
    return f"{_PYTHON_2_MODULES.get(module, module)}.{name}"


def _scan(stream: BinaryIO, allowed: Collection[str]) -> list[str]:
    """Walks one pickle without building it; the globals that are not allowed, in order, each once.

    `genops` itself checks that every string and number is as long as it declares.
    """
    refused = {}
    depths = _TupleDepths()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= _MAX_OPERATIONS:
            raise pickle.UnpicklingError(f"more than {_MAX_OPERATIONS:,} operations")
        if opcode.name in ("GLOBAL", "INST"):
            full_name = _full_name(*str(argument).split(" ", 1))
            if full_name not in allowed:
                refused[full_name] = True
        elif opcode.name.startswith("EXT"):
            refused[f"the copyreg extension number {argument}"] = True
        elif opcode.name.endswith("PUT") and int(argument or 0) > count:
            # The unpickler allocates its memo up to the largest index.
            raise pickle.UnpicklingError(f"memo index {argument} after {count} operations")
        depths.follow(opcode, argument)
    return list(refused)


class _TupleDepths:
    """How deeply tuples are nested in each object on the pickle's stack; an upper bound."""

    def __init__(self):
        self._stack = []  # None is a mark
        self._memo = {}

    def follow(self, opcode: Any, argument: Any):
        """Applies one operation."""
        name = opcode.name
        if name == "MARK":
            self._stack.append(None)
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name.endswith("PUT"):
            self._memo[int(argument)] = self._stack[-1]
        elif name.endswith("GET"):
            self._stack.append(self._memo[int(argument)])
        else:
            depth = self._pop(opcode.stack_before) + name.startswith("TUPLE")
            if depth > _MAX_TUPLE_DEPTH:
                raise pickle.UnpicklingError(f"tuples nested more than {_MAX_TUPLE_DEPTH} deep")
            self._stack.extend([depth] * len(opcode.stack_after))

    def _pop(self, before: Any):
        """Takes the operands off the stack; the depth of the deepest."""
        depths = [0]
        fixed = len(before)
        if pickletools.stackslice in before:
            while (depth := self._stack.pop()) is not None:
                depths.append(depth)
            fixed -= 2  # the mark and the slice above it
        depths += [self._stack.pop() for _ in range(fixed)]
        return max(depth or 0 for depth in depths)


def _refusal(path: Path, names: list[str]):
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    if any(name.startswith("torch.nn.modules.") for name in names):
        return (
            f"{path} holds a whole pickled model (class {names[0]}), not a state dict, and would have to run "
            f"{shown}. {_ADVICE}"
        )
    return f"{path} asks for {shown}, which is refused. {_ADVICE}"
