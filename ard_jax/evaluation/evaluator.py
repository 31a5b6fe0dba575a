"""Masked, sharded evaluation of any predict function under any set of attacks.

Each example counts exactly once: batches are padded to one size and masked, so that a network's
prediction and each attack program are traced once per run whatever the number of images. Attacks that
differ only in radius and step size share one program.
"""

import dataclasses
import functools
import math
import zlib
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import rng
from ard_jax.attacks import cpu_tiling, merged, threat_model
from ard_jax.attacks.auto_attack.engine import Engine, cores
from ard_jax.config.schema import EvalConfig
from ard_jax.data import batching
from ard_jax.data.base import ArrayDataset, Splits
from ard_jax.evaluation.accuracies import ExampleResults
from ard_jax.models.bundle import ModelBundle
from ard_jax.runtime import preemption, sharding
from ard_jax.runtime.compilation import TRACES

# Predictions that wait to be read while the host prepares what comes after them. Two keep the device busy;
# more would make a stop wait longer, as it does for all that was started.
_IN_FLIGHT = 2
_SMALLEST_PART = 8  # images of a part of a batch on one core
NOT_FINITE = -1  # in place of a class where a logit is NaN or infinite: never the label


def _count_trace(title: str) -> None:
    TRACES[title] += 1


class Evaluator:
    """A network's compiled prediction and attack programs.

    Args:
      name: for the trace counts in `compilation.TRACES`.
      apply: (variables, images float32 [B,H,W,C] in [0,1]) -> logits [B,K].
      mesh: devices; None for all.
      batch_size: rounded up to a multiple of the number of devices.
      seed: of the attacks' random starts.
      unroll: attack loop unrolling, see `attacks`; 1 is right for networks of `models`.
    """

    def __init__(
        self,
        name: str,
        apply: Callable[[Any, jax.Array], jax.Array],
        *,
        mesh: Any = None,
        batch_size: int = 256,
        seed: int = 0,
        unroll: int | None = None,
    ):
        """Compiles nothing yet; raises ValueError where `apply` is no function."""
        if not callable(apply):
            raise ValueError(
                f"apply is {type(apply).__name__}; give a function (variables, images) -> logits, as "
                "lambda v, x: network.apply(v, x, False)[0]"
            )
        self.name, self.apply, self.seed, self._unroll = name, apply, seed, unroll
        self.mesh = sharding.make_mesh() if mesh is None else mesh
        self.batch_size = sharding.round_up(self.mesh, batch_size)
        self._programs: dict[Any, Callable] = {}
        self._compiled: set[int] = set()
        self.engine = Engine(
            name, apply, mesh=self.mesh, batch_size=self.batch_size, on_trace=_count_trace
        )
        same, split = sharding.replicated(self.mesh), sharding.split_batch(self.mesh)
        self._predict = jax.jit(
            self._predict_traced, in_shardings=(same, split), out_shardings=same
        )

    def _predict_traced(self, variables: Any, images: jax.Array):
        TRACES[f"{self.name} predict"] += 1
        logits = self.apply(variables, images)
        classes = jnp.argmax(logits, -1).astype(jnp.int32)
        return jnp.where(jnp.isfinite(logits).all(-1), classes, NOT_FINITE)

    def predict(self, variables: Any, images: jax.Array) -> np.ndarray:
        """Predicted classes [B] of one full global batch, on every host; NOT_FINITE where there is none."""
        return np.asarray(jax.device_get(self._predict(variables, images)))

    def attack(self, spec: Any, variables: Any, batch: dict[str, Any]) -> jax.Array:
        """Adversarial images of a batch of `batches` under an `attacks.Attack`."""
        images, labels = batch["image"], batch["label"]
        key = self.keys(f"evaluate {spec.name}", batch["index"])
        if not spec.keys_per_image:
            key = key[0]
        if not spec.pure or cast(Any, jax.config).jax_disable_jit:
            return self._attack_on_host(spec, variables, batch, key)
        # A loop of traced length cannot be unrolled.
        if self._unroll == 1 and merged.is_mergeable(spec):
            start = images if spec.start == "none" else self._start(spec, images, key)
            rows, numbers = (images, labels, start), merged.settings_of(spec)
            program = self._program(merged.program(spec), spec)
        else:
            numbers = {k: jnp.float32(v) for k, v in spec.numbers.items()}
            rows, program = (images, labels, key), self._program(spec.program, spec)
        # Programs on parts of the batch run at the same time, one on each core of a single CPU device.
        parts = cores(self.mesh) if spec.tileable and spec.keys_per_image else 1
        if parts == 1 or len(images) % parts or len(images) // parts < _SMALLEST_PART:
            return program(variables, *rows, numbers)
        cut = list(zip(*(jnp.split(array, parts) for array in rows), strict=True))
        run = lambda part: jax.block_until_ready(program(variables, *part, numbers))  # noqa: E731
        # The first run compiles, which two threads would do twice.
        done = [] if id(program) in self._compiled else [run(cut[0])]
        self._compiled.add(id(program))
        with ThreadPoolExecutor(parts) as pool:
            return jnp.concatenate([*done, *pool.map(run, cut[len(done) :])])

    def _attack_on_host(
        self, spec: Any, variables: Any, batch: dict[str, Any], key: jax.Array
    ) -> jax.Array:
        """`attack` outside of jit, on concrete rows that are no padding, whose labels are no classes."""
        rows = np.flatnonzero(np.asarray(batch["index"]) >= 0)
        images, labels = (jnp.asarray(np.asarray(batch[n])[rows]) for n in ("image", "label"))
        if "logits" not in self._programs:
            self._programs["logits"] = jax.jit(self.apply)
        predict = functools.partial(self._programs["logits"], variables)
        found = spec.run(predict, images, labels, key[rows] if key.ndim else key)
        threat_model.check_like(found, images, spec.name)
        whole = np.array(batch["image"])
        whole[rows] = found
        return sharding.put_batch(self.mesh, {"image": whole})["image"]

    def _looked_at(
        self, spec: Any, found: jax.Array, images: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """`threat_model.excess` of a batch and which images moved, [B] each on every device."""
        threat = spec.threat
        name = ("excess", dataclasses.replace(threat, eps=0.0))
        if name not in self._programs:

            def run(found: jax.Array, images: jax.Array, eps: jax.Array):
                beyond = threat_model.excess(found, images, dataclasses.replace(threat, eps=eps))
                return beyond, jnp.any(found != images, axis=(1, 2, 3))

            same, split = sharding.replicated(self.mesh), sharding.split_batch(self.mesh)
            self._programs[name] = jax.jit(
                run, in_shardings=(split, split, same), out_shardings=same
            )
        return self._programs[name](found, images, jnp.float32(threat.eps))

    def keys(self, stream: str, index: jax.Array) -> jax.Array:
        """Keys [B] of the images of a batch: results do not depend on how images are cut into batches."""
        if "keys" not in self._programs:
            split = sharding.split_batch(self.mesh)
            self._programs["keys"] = jax.jit(
                rng.of_rows, in_shardings=(sharding.replicated(self.mesh), split), out_shardings=split,
            )  # fmt: skip
        return self._programs["keys"](rng.stream(jax.random.key(self.seed), stream), index)

    def _program(self, name: Hashable, spec: Any) -> Callable:
        if name not in self._programs:
            compile_ = (
                self._compile_merged
                if merged.is_mergeable(spec) and self._unroll == 1
                else self._compile
            )
            title = f"{self.name} attack {zlib.crc32(repr(name).encode()):08x}"
            self._programs[name] = compile_(title, spec)
        return self._programs[name]

    def _start(self, spec: Any, images: jax.Array, key: jax.Array) -> jax.Array:
        def start(variables: Any, images: jax.Array, key: jax.Array, eps: float | jax.Array):
            return spec.own_start(images, key, eps)

        clip = (spec.clip_start, spec.clip_min, spec.clip_max)
        fields = (spec.norm, spec.sigma, spec.start_radius, *clip)
        name = f"start {spec.start} {fields}"
        return self.transform(name, start, (), images, key, spec.eps)

    def _compile_merged(self, title: str, spec: Any) -> Callable:
        clip, devices = (spec.clip_min, spec.clip_max), sharding.num_devices(self.mesh)

        def run(
            variables: Any,
            images: jax.Array,
            labels: jax.Array,
            start: jax.Array,
            settings: dict[str, jax.Array],
        ):
            TRACES[title] += 1

            def one(rows: dict[str, jax.Array]):
                return merged.run(
                    lambda x: self.apply(variables, x), rows["images"], rows["labels"], rows["start"],
                    settings, norm=spec.norm, clip=clip,
                )  # fmt: skip

            count = cpu_tiling.number(spec, len(images), variables, devices)
            rows = {"images": images, "labels": labels, "start": start}
            return cpu_tiling.over(one, rows, count, devices)

        same, split = sharding.replicated(self.mesh), sharding.split_batch(self.mesh)
        return jax.jit(run, in_shardings=(same, split, split, split, same), out_shardings=split)

    def _compile(self, title: str, spec: Any) -> Callable:
        def run(
            variables: Any,
            images: jax.Array,
            labels: jax.Array,
            key: jax.Array,
            numbers: dict[str, jax.Array],
        ):
            TRACES[title] += 1

            def predict(x: jax.Array):
                return self.apply(variables, x)

            try:
                found = cpu_tiling.run(
                    spec, predict, images, labels, key, params=variables,
                    devices=sharding.num_devices(self.mesh), unroll=self._unroll, **numbers,
                )  # fmt: skip
            except (
                jax.errors.TracerArrayConversionError,
                jax.errors.ConcretizationTypeError,
            ) as error:
                raise ValueError(
                    f"attack {spec.name!r} reads the values of its images (NumPy, float(), if ...); write it "
                    "with jax.numpy, or set pure = False in its class"
                ) from error
            except (KeyError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
                text = (str(error).splitlines() or [""])[0]
                raise ValueError(
                    f"attack {spec.name!r} fails: {type(error).__name__}: {text}"
                ) from error
            threat_model.check_like(found, images, spec.name)
            return found

        same, split = sharding.replicated(self.mesh), sharding.split_batch(self.mesh)
        keys = split if spec.keys_per_image else same
        return jax.jit(run, in_shardings=(same, split, split, keys, same), out_shardings=split)

    def transform(
        self,
        name: str,
        change: Callable[..., jax.Array],
        variables: Any,
        images: Any,
        key: Any,
        eps: float,
    ) -> jax.Array:
        """change(variables, images, keys [B], eps) -> images, compiled once under its name."""
        if name not in self._programs:

            def run(*args: Any):
                TRACES[f"{self.name} {name}"] += 1
                return change(*args)

            same, split = sharding.replicated(self.mesh), sharding.split_batch(self.mesh)
            self._programs[name] = jax.jit(
                run, in_shardings=(same, split, split, same), out_shardings=split
            )
        return self._programs[name](variables, images, key, jnp.float32(eps))

    def measure(self, name: str, function: Callable[..., Any], variables: Any, *arrays: Any) -> Any:
        """function(variables, *arrays [B,...]) -> arrays [B], on every host; compiled once under its name."""
        if name not in self._programs:

            def run(*args: Any):
                TRACES[f"{self.name} {name}"] += 1
                return function(*args)

            same, split = sharding.replicated(self.mesh), sharding.split_batch(self.mesh)
            split_all = (same, *(split for _ in arrays))
            self._programs[name] = jax.jit(run, in_shardings=split_all, out_shardings=same)
        return jax.tree.map(np.asarray, jax.device_get(self._programs[name](variables, *arrays)))

    def batches(self, dataset: ArrayDataset) -> Iterable[tuple[dict, dict]]:
        """(device batch {"image" in [0,1], "label", "index"}, the whole batch's mask, index and label).

        Padding has the index and the label -1.
        """
        size, labels = self.batch_size, np.asarray(dataset.labels)
        # Of the images this host reads its own part alone.
        process, processes = sharding.process()
        for number, mine in enumerate(batching.eval_batches(dataset, size, process, processes)):
            preemption.check("an evaluation")
            image = mine["image"].astype(np.float32) / np.float32(255)
            rows = np.arange(number * size, (number + 1) * size)
            mask = rows < len(dataset)
            host = {"mask": mask, "index": np.where(mask, rows, -1).astype(np.int32)}
            host["label"] = np.where(mask, labels[rows * mask], -1)
            own = slice(process * size // processes, (process + 1) * size // processes)
            local = {"image": image, "label": host["label"][own], "index": host["index"][own]}
            yield sharding.put_batch(self.mesh, local), host

    def run(
        self,
        variables: Any,
        dataset: ArrayDataset,
        specs: Mapping[str, Any],
        watch: Mapping[str, tuple["Evaluator", Any]] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> ExampleResults:
        """Predictions on clean images and under each attack.

        The host runs ahead of the device by `_IN_FLIGHT` attacks on a batch, and reads their results then.

        Args:
          variables: the network's.
          dataset: every image counts once.
          specs: name -> Attack on this network.
          watch: name -> (evaluator, variables) of networks that predict on the same images, which is
            how a transfer attack is measured; their results are in `ExampleResults.others`.
          progress: called with "clean" or an attack's name before each is run on a batch.

        Raises:
          ValueError: the network has not one output for each class, an attack has a radius beyond any image,
            or its images are outside of what it declares.
        """
        classes = self.engine.check_shape(variables, dataset.image_shape)
        if classes != dataset.num_classes:
            raise ValueError(
                f"{self.name} has {classes} outputs, but {dataset.name} has {dataset.num_classes} classes; "
                "they must be as many"
            )
        for spec in specs.values():
            spec.threat.check_reach(dataset.image_shape)
        names, moved = ["clean", *specs], dict.fromkeys(specs, False)
        nets = {"": (self, variables)} | dict(watch or {})
        predicted = {n: {a: np.zeros(len(dataset), np.int32) for a in names} for n in nets}
        unread: deque[tuple[str, np.ndarray, np.ndarray, dict[str, jax.Array], Any]] = deque()

        def read() -> None:
            name, rows, mask, found, looked_at = unread.popleft()
            for net, classes in jax.device_get(found).items():
                predicted[net][name][rows] = classes[mask]
            if looked_at is not None:
                beyond, changed = (array[mask] for array in jax.device_get(looked_at))
                defined = predicted[""]["clean"][rows] != NOT_FINITE
                threat_model.check_excess(beyond[defined], specs[name].threat, name)
                moved[name] |= bool(changed.any())

        for number, (batch, host) in enumerate(self.batches(dataset), 1):
            rows, mask = host["index"][host["mask"]], host["mask"]
            for name in names:
                preemption.check("an evaluation")
                if progress:
                    progress(f"{name} {number}/{math.ceil(len(dataset) / self.batch_size)}")
                images, looked_at = batch["image"], None
                if name != "clean":
                    images = self.attack(specs[name], variables, batch)
                    looked_at = self._looked_at(specs[name], images, batch["image"])
                found = {n: e._predict(v, images) for n, (e, v) in nets.items()}
                unread.append((name, rows, mask, found, looked_at))
                if len(unread) > _IN_FLIGHT:
                    read()
        while unread:
            read()
        labels = np.asarray(dataset.labels)
        results = {
            net: ExampleResults({a: p == labels for a, p in by_name.items()}, by_name, labels)
            for net, by_name in predicted.items()
        }
        main, still = results.pop(""), tuple(name for name in specs if not moved[name])
        return dataclasses.replace(main, others=results, unmoved=still)


def for_network(
    name: str, bundle: ModelBundle, config: EvalConfig, mesh: Any, splits: Splits | None = None
) -> Evaluator:
    """Returns the network's evaluator.

    Args:
      name: see `Evaluator`.
      bundle: computes in float32, see `models.described`.
      config: its batch size and seed.
      mesh: devices.
      splits: what is evaluated, in batches no larger than that; None where it is not known.
    """
    size = config.batch_size
    if splits is not None:
        parts = [p for p in (splits.validation, splits.test) if p is not None]
        size = min(size, max(map(len, parts)))
    return Evaluator(
        name,
        lambda variables, images: bundle.apply(variables, images, False)[0],
        mesh=mesh,
        batch_size=size,
        seed=config.seed,
        unroll=1,  # our convolutions are fast inside loops on every backend
    )
