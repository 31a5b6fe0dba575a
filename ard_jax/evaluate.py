"""Masked, sharded evaluation of any predict function under any set of attacks.

Each example counts exactly once: batches are padded to one size and masked, so that a network's
prediction and each attack program are traced once per run whatever the number of images. Attacks that
differ only in radius and step size share one program.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import attacks as attacks_lib
from ard_jax import rng, sharding
from ard_jax.data import pipeline
from ard_jax.data.base import ArrayDataset
from ard_jax.steps import TRACES


@dataclasses.dataclass(frozen=True)
class Flags:
    """Per-example results of one network.

    Attributes:
      correct: "clean" and attack names -> bool [N], True where the prediction is the label.
      predicted: the same names -> int32 [N].
      labels: int32 [N].
      others: further networks' results on the very same images, see `Evaluator.run`.
    """

    correct: dict[str, np.ndarray]
    predicted: dict[str, np.ndarray]
    labels: np.ndarray
    others: dict[str, "Flags"] = dataclasses.field(default_factory=dict)

    def accuracy(self, name: str) -> float:
        """Share of correct predictions."""
        return float(np.mean(self.correct[name]))


class Evaluator:
    """A network's compiled prediction and attack programs.

    Args:
      name: for the trace counts in `steps.TRACES`.
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
        """Compiles nothing yet."""
        self.name, self._apply, self._seed, self._unroll = name, apply, seed, unroll
        self.mesh = sharding.make_mesh() if mesh is None else mesh
        self.batch_size = sharding.round_up(self.mesh, batch_size)
        self._programs: dict[Any, Callable] = {}
        same, split = sharding.replicated(self.mesh), sharding.split_batch(self.mesh)
        self._predict = jax.jit(
            self._predict_traced, in_shardings=(same, split), out_shardings=same
        )

    def _predict_traced(self, variables, images):
        TRACES[f"{self.name} predict"] += 1
        return jnp.argmax(self._apply(variables, images), -1).astype(jnp.int32)

    def predict(self, variables: Any, images: jax.Array) -> np.ndarray:
        """Predicted classes [B] of one full global batch, on every host."""
        return np.asarray(jax.device_get(self._predict(variables, images)))

    def attack(self, spec: Any, variables: Any, images: Any, labels: Any, index: int) -> jax.Array:
        """Adversarial images of batch number `index` under an `attacks.AttackSpec`."""
        if spec.program not in self._programs:
            self._programs[spec.program] = self._compile(spec)
        key = rng.stream(jax.random.key(self._seed), f"evaluate {spec.name}", index)
        return self._programs[spec.program](
            variables, images, labels, key, jnp.float32(spec.eps), jnp.float32(spec.step_size)
        )

    def _compile(self, spec: Any) -> Callable:
        title = f"{self.name} attack {zlib.crc32(repr(spec.program).encode()):08x}"

        def run(variables, images, labels, key, eps, step_size):
            TRACES[title] += 1

            def predict(x):
                return self._apply(variables, x)

            return spec.run(
                predict, images, labels, key, eps=eps, step_size=step_size, unroll=self._unroll
            )

        same, split = sharding.replicated(self.mesh), sharding.split_batch(self.mesh)
        return jax.jit(
            run, in_shardings=(same, split, split, same, same, same), out_shardings=split
        )

    def batches(self, dataset: ArrayDataset) -> Iterable[tuple[int, dict, dict]]:
        """(index, device batch {"image" in [0,1], "label"}, global host batch with mask and index)."""
        for index, host in enumerate(pipeline.eval_batches(dataset, self.batch_size)):
            mine = pipeline.host_slice(np.arange(self.batch_size), *sharding.process())
            image = host["image"][mine].astype(np.float32) / np.float32(255)
            local = {"image": image, "label": host["label"][mine]}
            yield index, sharding.put_batch(self.mesh, local), host

    def run(
        self,
        variables: Any,
        dataset: ArrayDataset,
        specs: Mapping[str, Any],
        watch: Mapping[str, tuple["Evaluator", Any]] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Flags:
        """Predictions on clean images and under each attack.

        Args:
          variables: the network's.
          dataset: every image counts once.
          specs: name -> AttackSpec on this network.
          watch: name -> (evaluator, variables) of networks that predict on the same images, which is
            how a transfer attack is measured; their results are in `Flags.others`.
          progress: called with "clean" or an attack's name before each is run on a batch.
        """
        names = ["clean", *specs]
        nets = {"": (self, variables)} | dict(watch or {})
        predicted = {n: {a: np.zeros(len(dataset), np.int32) for a in names} for n in nets}
        for index, batch, host in self.batches(dataset):
            rows, mask = host["index"][host["mask"]], host["mask"]
            for name in names:
                if progress:
                    progress(f"{name} {index + 1}/{math.ceil(len(dataset) / self.batch_size)}")
                images = batch["image"]
                if name != "clean":
                    images = self.attack(specs[name], variables, images, batch["label"], index)
                for net, (evaluator, net_variables) in nets.items():
                    predicted[net][name][rows] = evaluator.predict(net_variables, images)[mask]
        labels = np.asarray(dataset.labels)
        flags = {
            net: Flags({a: p == labels for a, p in by_name.items()}, by_name, labels)
            for net, by_name in predicted.items()
        }
        main = flags.pop("")
        return dataclasses.replace(main, others=flags)


def evaluate(
    predict: Callable[[jax.Array], jax.Array],
    dataset: ArrayDataset,
    attacks: Iterable[str] | Mapping[str, Any] = ("pgd_sat",),
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    batch_size: int = 256,
    seed: int = 0,
    unroll: int | None = None,
) -> dict[str, Any]:
    """Evaluates any JAX function from images to logits, whoever trained it.

    Args:
      predict: images float32 [B,H,W,C] in [0,1] -> logits [B,K]; pure, in evaluation mode.
      dataset: e.g. `data.load(...).test`.
      attacks: names for `attacks.make`, or name -> AttackSpec.
      eps: radius in [0,1] pixel units, for attacks given by name.
      norm: "linf" or "l2", likewise.
      batch_size: images per compiled batch.
      seed: of random starts.
      unroll: attack loop unrolling; pass 1 for networks of `ard_jax.models`, which compiles faster.

    Returns:
      `summarize`'s record, and under "flags" the per-example `Flags`.

    Raises:
      ValueError: unknown attack or impossible radius.
    """
    if not isinstance(attacks, Mapping):
        attacks = {name: attacks_lib.make(name, eps=eps, norm=norm) for name in attacks}
    evaluator = Evaluator(
        "predict", lambda _, x: predict(x), batch_size=batch_size, seed=seed, unroll=unroll
    )
    flags = evaluator.run((), dataset, attacks)
    return summarize(flags, dataset.num_classes, list(attacks)) | {"flags": flags}


def confidence_interval(accuracy: float, count: int) -> list[float]:
    """95 % Wilson interval of an accuracy measured on `count` examples."""
    z, n = 1.959964, max(count, 1)
    centre, spread = (
        accuracy + z * z / (2 * n),
        z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n)),
    )
    return [(centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)]


def summarize(flags: Flags, num_classes: int, white_box: Iterable[str]) -> dict[str, Any]:
    """Accuracies of one network out of its flags.

    weighted = (clean + robust)/2; nrr = 2 clean robust/(clean + robust), the harmonic mean; the worst
    class is the least accurate one; "worst_case" counts an example as robust only if no attack of
    `white_box` breaks it (and its clean prediction is right).
    """
    clean, classes = flags.accuracy("clean"), _per_class(flags, "clean", num_classes)
    record = {
        "clean": clean,
        "clean_ci95": confidence_interval(clean, len(flags.labels)),
        "per_class_clean": classes,
        "worst_class_clean": min(c for c in classes if c is not None),
        "attacks": {},
    }
    for name in flags.correct:
        if name == "clean":
            continue
        robust, classes = flags.accuracy(name), _per_class(flags, name, num_classes)
        record["attacks"][name] = _combined(clean, robust) | {
            "ci95": confidence_interval(robust, len(flags.labels)),
            "worst_class": min(c for c in classes if c is not None),
            "per_class": classes,
        }
    together = np.all([flags.correct[n] for n in ("clean", *white_box)], axis=0)
    record["worst_case"] = _combined(clean, float(together.mean()))
    return record


def _combined(clean: float, robust: float) -> dict[str, float]:
    total = clean + robust
    return {
        "accuracy": robust,
        "weighted": total / 2,
        "nrr": 2 * clean * robust / total if total else 0.0,
    }


def _per_class(flags: Flags, name: str, num_classes: int) -> list[float | None]:
    rows = [flags.correct[name][flags.labels == c] for c in range(num_classes)]
    return [float(r.mean()) if len(r) else None for r in rows]


def evaluate_sweep(
    evaluator: Evaluator,
    variables: Any,
    dataset: ArrayDataset,
    attack: str,
    radii: Iterable[float],
    make: Callable[[float], Any],
) -> dict[str, Any]:
    """Accuracy over radii, all through one compiled program; radius 0 is clean accuracy.

    Args:
      evaluator: the network's.
      variables: its variables.
      dataset: images.
      attack: name, for the record.
      radii: in [0,1] pixel units.
      make: radius -> AttackSpec.
    """
    radii = [float(r) for r in radii]
    specs = {str(r): make(r) for r in radii if r > 0}
    flags = evaluator.run(variables, dataset, specs)
    accuracies = [flags.accuracy(str(r) if r > 0 else "clean") for r in radii]
    return {"attack": attack, "eps": radii, "accuracy": accuracies}
