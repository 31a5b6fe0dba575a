"""The compiled parts of AutoAttack: one network, host arrays in and out, few batch sizes.

A batch of n images is padded to the smallest of a few sizes, so each program is compiled a few times
whatever survives: for the full batch, its half, quarter and eighth. Target classes, radius and keys are
arguments. An image's random numbers come from its index, never from its row or its batch.

On one CPU device a batch is cut into one part per core, which run at the same time: XLA:CPU leaves most
of a small network's loop to one core, and two parts on two cores take half the time. There padding costs
as much as images do and compiling is quick, so the sizes lie closer together.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import losses, rng
from ard_jax.attacks.auto_attack.apgd import apgd
from ard_jax.attacks.auto_attack.fab import fab
from ard_jax.attacks.auto_attack.square import SquareState, square_run, square_start
from ard_jax.attacks.auto_attack.versions import Member
from ard_jax.attacks.threat_model import ThreatModel
from ard_jax.runtime import sharding

_SHARES = (1, 1 / 2, 1 / 4, 1 / 8)
_SHARES_ON_CORES = (1, 7 / 8, 3 / 4, 5 / 8, 1 / 2, 7 / 16, 3 / 8, 5 / 16, 1 / 4, 3 / 16, 1 / 8)
_SMALLEST = 8  # images of the smallest program, and of the smallest part on one core


class Engine:
    """A network's AutoAttack programs; reusable for other variables, images and radii.

    Args:
      name: for `on_trace`.
      apply: (variables, images [B,H,W,C]) -> logits [B,K]; with takes_key (variables, images, key).
      mesh: devices; None for all.
      batch_size: images of a full batch; rounded up to a multiple of the number of devices.
      takes_key: the network is randomised.
      parts: into how many a batch is cut, to run at the same time; None: one per core on a single CPU
        device, else 1.
      on_trace: called with a title whenever a program is traced.

    Attributes:
      batch_size: images of a full batch.
      sizes: rows that a program may have.
      rows: rows that programs have run on so far, padding included.
      padded_rows: those of them that were padding.
    """

    def __init__(
        self,
        name: str,
        apply: Callable[..., jax.Array],
        *,
        mesh: Any = None,
        batch_size: int = 250,
        takes_key: bool = False,
        parts: int | None = None,
        on_trace: Callable[[str], None] | None = None,
    ):
        """Compiles nothing yet."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if mesh is not None and not hasattr(mesh, "devices"):
            raise ValueError(
                f"mesh is {type(mesh).__name__}; give a jax.sharding.Mesh, or None for all"
            )
        self.name, self._apply, self._takes_key = name, apply, takes_key
        self.mesh = sharding.make_mesh() if mesh is None else mesh
        self.batch_size = sharding.round_up(self.mesh, batch_size)
        parts = cores(self.mesh) if parts is None else parts
        self._parts = min(parts, max(1, self.batch_size // _SMALLEST))
        largest = -(-self.batch_size // self._parts)
        shares = _SHARES if self._parts == 1 else _SHARES_ON_CORES
        wanted = [math.ceil(share * largest) for share in shares]
        wanted = [size for size in wanted if size >= _SMALLEST] or [largest]
        self.sizes = sorted({sharding.round_up(self.mesh, size) for size in wanted})
        self._pool = ThreadPoolExecutor(self._parts) if self._parts > 1 else None
        self._on_trace, self._programs = on_trace or (lambda title: None), {}
        self.rows = self.padded_rows = 0

    @property
    def programs(self) -> int:
        """Programs compiled so far."""
        return len(self._programs)

    def check_shape(self, variables: Any, image_shape: tuple[int, ...]) -> int:
        """The number of classes, without running anything.

        Raises:
          ValueError: the network does not return logits [B,K].
        """
        size = self.sizes[0]
        images = jax.ShapeDtypeStruct((size, *image_shape), jnp.float32)
        keys = (jax.random.key(0),) if self._takes_key else ()
        out = jax.eval_shape(self._apply, variables, images, *keys)
        shape = getattr(out, "shape", None)
        if shape is None or len(shape) != 2 or shape[0] != size:
            got = type(out).__name__ if shape is None else f"shape {shape}"
            raise ValueError(
                f"predict returned {got} for images of shape {images.shape}; it must return logits [B,K]"
            )
        if not jnp.issubdtype(out.dtype, jnp.floating):
            raise ValueError(
                f"predict returned {out.dtype}; it must return logits, not predicted classes"
            )
        return shape[1]

    def logits(self, variables: Any, images: np.ndarray, key: jax.Array) -> np.ndarray:
        """Logits [n,K] float32 of any number of images."""

        def program(predict: _Predict, batch: dict[str, jax.Array], scalars: dict[str, Any]):
            return predict(batch["images"]).astype(jnp.float32)

        return self._over(("predict",), program, variables, {"images": images}, key)

    def largest_gradients(
        self, variables: Any, images: np.ndarray, labels: np.ndarray, key: jax.Array
    ) -> np.ndarray:
        """Each image's largest |input gradient| of the cross-entropy, [n]."""

        def program(predict: _Predict, batch: dict[str, jax.Array], scalars: dict[str, Any]):
            def total(x: jax.Array):
                return jnp.sum(losses.cross_entropy(predict(x), batch["labels"]))

            gradient = jnp.abs(jax.grad(total)(batch["images"]))
            return jnp.max(gradient.reshape(gradient.shape[0], -1), axis=1)

        batch = {"images": images, "labels": labels}
        return self._over(("gradient",), program, variables, batch, key)

    def gradient_attack(
        self, member: Member, threat: ThreatModel, variables: Any, batch: dict, key: jax.Array
    ) -> np.ndarray:
        """Adversarial images [n,H,W,C] of one batch under one round of APGD or FAB.

        Args:
          member: of kind "apgd" or "fab".
          threat: norm and radius.
          variables: the network's.
          batch: "images", "labels", "index" (of the images in the data set) and, if the member is
            targeted, "targets"; n <= batch_size rows.
          key: of the member's round.
        """

        def program(predict: _Predict, batch: dict[str, jax.Array], scalars: dict[str, Any]):
            keys = _image_keys(scalars["key"], batch["index"])
            common = {"eps": scalars["eps"], "norm": threat.norm, "steps": member.steps}
            common["targets"] = batch.get("targets")
            images, labels = batch["images"], batch["labels"]
            if member.kind == "fab":
                return fab(predict, images, labels, keys, restarts=member.restarts, **common).images
            called = predict if member.eot == 1 else predict.with_key
            result = apgd(called, images, labels, keys, loss=member.loss, eot=member.eot, **common)
            return result.images

        name = (member.name, member, threat.norm)
        return self._call(name, program, variables, batch, key, eps=threat.eps)

    def square_start(
        self, threat: ThreatModel, variables: Any, batch: dict, key: jax.Array
    ) -> SquareState:
        """Square's first candidates; batch has "images", "labels" and "index"."""

        def program(predict: _Predict, batch: dict[str, jax.Array], scalars: dict[str, Any]):
            return square_start(
                predict, batch["images"], batch["labels"], scalars["key"], eps=scalars["eps"],
                norm=threat.norm, image_keys=_image_keys(scalars["key"], batch["index"]),
            )  # fmt: skip

        name = ("square start", threat.norm)
        return SquareState(*self._call(name, program, variables, batch, key, eps=threat.eps))

    def square_run(
        self, threat: ThreatModel, variables: Any, state: SquareState, batch: dict, key: jax.Array,
        *, first: int, queries: int, budget: int,
    ) -> SquareState:  # fmt: skip
        """The next queries on the images of the state; all counts are arguments of one program."""

        def program(predict: _Predict, batch: dict[str, jax.Array], scalars: dict[str, Any]):
            alive = batch["index"] >= 0
            margin = jnp.where(alive, batch["margin"], -jnp.inf)
            before = SquareState(batch["best"], margin, batch["queries"])
            return square_run(
                predict, before, batch["images"], batch["labels"], scalars["key"], eps=scalars["eps"],
                first_query=scalars["first"], queries=scalars["queries"], budget=scalars["budget"],
                norm=threat.norm, image_keys=_image_keys(scalars["key"], batch["index"]),
            )  # fmt: skip

        batch = batch | {"best": state.images, "margin": state.margin, "queries": state.queries}
        after = self._call(
            ("square", threat.norm), program, variables, batch, key, eps=threat.eps,
            first=first, queries=queries, budget=budget,
        )  # fmt: skip
        return SquareState(*after)

    def _over(
        self,
        name: tuple,
        program: Callable,
        variables: Any,
        batch: dict[str, np.ndarray],
        key: jax.Array,
    ):
        """A program over any number of rows, in full batches and a smaller last one."""
        count = len(batch["images"])
        parts = []
        for i in range(0, count, self.batch_size):
            rows = {n: a[i : i + self.batch_size] for n, a in batch.items()}
            parts.append(self._call(name, program, variables, rows, jax.random.fold_in(key, i)))
        return np.concatenate(parts)

    def _call(
        self,
        name: tuple,
        program: Callable,
        variables: Any,
        batch: dict[str, np.ndarray],
        key: jax.Array,
        **scalars: Any,
    ):
        """Runs a program on up to `batch_size` rows: arrays of so many rows, on the host."""
        scalars = {n: np.float32(v) if n == "eps" else np.int32(v) for n, v in scalars.items()}
        scalars["key"] = key
        parts = min(self._parts, -(-len(batch["images"]) // _SMALLEST))
        cut = {n: np.array_split(a, parts) for n, a in batch.items()}
        rows = [{n: a[i] for n, a in cut.items()} for i in range(parts)]
        self.rows += (run := sum(map(self._size, rows)))
        self.padded_rows += run - len(batch["images"])
        if parts == 1 or self._pool is None:
            return self._run(name, program, variables, rows[0], scalars)
        # A program's first run compiles it, which two threads would do twice.
        new = {self._size(part): i for i, part in enumerate(rows)}
        new = {i for size, i in new.items() if (name, size) not in self._programs}
        done = {i: self._run(name, program, variables, rows[i], scalars) for i in new}
        left = [i for i in range(parts) if i not in new]
        run = lambda i: self._run(name, program, variables, rows[i], scalars)  # noqa: E731
        done |= zip(left, self._pool.map(run, left), strict=True)
        return jax.tree.map(lambda *a: np.concatenate(a), *(done[i] for i in range(parts)))

    def _size(self, rows: dict[str, np.ndarray]):
        return next(size for size in self.sizes if size >= len(rows["images"]))

    def _run(
        self,
        name: tuple,
        program: Callable,
        variables: Any,
        rows: dict[str, np.ndarray],
        scalars: dict[str, Any],
    ):
        """Pads the rows, runs the program of that size, and cuts the outputs back."""
        count, size = len(rows["images"]), self._size(rows)
        if (name, size) not in self._programs:
            self._programs[name, size] = self._compile(f"{self.name} {name[0]} {size}", program)
        placed = self._place({n: _padded(n, a, size) for n, a in rows.items()})
        out = self._programs[name, size](variables, placed, scalars)
        return jax.tree.map(lambda a: np.asarray(a)[:count], jax.device_get(out))

    def _place(self, batch: dict[str, np.ndarray]):
        process, processes = sharding.process()
        local = {
            n: a[process * len(a) // processes :][: len(a) // processes] for n, a in batch.items()
        }
        return sharding.put_batch(self.mesh, local)

    def _compile(self, title: str, program: Callable):
        def run(variables: Any, batch: dict[str, jax.Array], scalars: dict[str, Any]):
            self._on_trace(title)
            # A reported number must not depend on the reduced precision of TPUs and newer GPUs.
            with jax.default_matmul_precision("highest"):
                predict = _Predict(self._apply, variables, scalars["key"], self._takes_key)
                return program(predict, batch, scalars)

        same, split = sharding.replicated(self.mesh), sharding.split_batch(self.mesh)
        return jax.jit(run, in_shardings=(same, split, same), out_shardings=same)


class _Predict:
    """images -> logits of one trace; a randomised network gets the key of the call."""

    def __init__(self, apply: Callable, variables: Any, key: jax.Array, takes_key: bool):
        self._apply, self._variables = apply, variables
        self._keys = (rng.stream(key, "network"),) if takes_key else ()

    def __call__(self, images: jax.Array):
        return self._apply(self._variables, images, *self._keys)

    def with_key(self, images: jax.Array, key: jax.Array):
        """With another key, which only a randomised network takes."""
        return self._apply(self._variables, images, *((key,) if self._keys else ()))


def cores(mesh: Any) -> int:
    """Parts of a batch that run at the same time: the cores of one CPU device, else 1."""
    if jax.default_backend() != "cpu" or mesh.size > 1 or sharding.process()[1] > 1:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _image_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    return rng.of_rows(rng.stream(key, "images"), index)


def _padded(name: str, array: np.ndarray, size: int) -> np.ndarray:
    """Rows up to `size`: copies of the first one, told from the others by the index -1."""
    missing = size - len(array)
    filler = np.full(missing, -1, np.int32) if name == "index" else np.repeat(array[:1], missing, 0)
    return np.concatenate([array, filler.astype(array.dtype)]) if missing else array
