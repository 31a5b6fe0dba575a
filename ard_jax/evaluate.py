"""Evaluates any JAX function from images to logits, for notebooks.

The module is the function too: after `from ard_jax import evaluate`, `evaluate(predict, dataset)` is
`evaluate.evaluate(predict, dataset)`.
"""

import dataclasses
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import attacks as attacks_lib
from ard_jax.attacks import threat_model
from ard_jax.attacks.attack import Attack
from ard_jax.attacks.auto_attack import diagnostics as network_checks
from ard_jax.attacks.auto_attack.attack import AutoAttack
from ard_jax.attacks.checked_predict import changing_constants, stateless, traced_shape
from ard_jax.config.build import split_names
from ard_jax.convolutions.rewrite import fast_on_cpu
from ard_jax.data.base import ArrayDataset
from ard_jax.evaluation import autoattack, diagnostics
from ard_jax.evaluation.accuracies import summarize
from ard_jax.evaluation.evaluator import Evaluator
from ard_jax.losses import checks

_MEASURED = (
    "clean", "clean_ci95", "per_class_clean", "worst_class_clean", "attacks", "worst_case", "autoattack",
)  # fmt: skip


def evaluate(
    predict: Callable[[jax.Array], jax.Array],
    dataset: ArrayDataset | tuple[Any, Any],
    attacks: str | Iterable[str] | Mapping[str, Any] = ("pgd_sat",),
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
      dataset: e.g. `data.load(...).test`, or (images, labels): uint8 [N,H,W,C], or floats that are these over
        255, and int [N]; the classes are then the network's outputs.
      attacks: one or more names for `attacks.make` or of `attacks.SUITES` ("autoattack", "square100", ...),
        or name -> Attack.
      eps: radius in [0,1] pixel units, for attacks given by name.
      norm: "linf" or "l2", likewise.
      batch_size: images per compiled batch.
      seed: of random starts.
      unroll: attack loop unrolling; pass 1 for networks of `ard_jax.models`, which compiles faster.

    Returns:
      The measured part of `record.NetworkResult` as a dict, under "flags" the `ExampleResults`, and under
      "warnings" what a reader must know, which is also given as Python warnings.

    Raises:
      ValueError: unknown attack, impossible radius, data that cannot be used, or outputs that are not one for
        each class.
    """
    threat_model.check_static(eps, "eps")
    attacks, suites = _chosen(attacks, eps, norm)
    names = [*attacks, *suites]
    checks.count(batch_size, "batch_size", 1)
    checks.count(seed, "seed", 0, checks.MOST_SEED)
    if isinstance(dataset, ArrayDataset):
        traced_shape(predict, jax.ShapeDtypeStruct((1, *dataset.images.shape[1:]), np.float32))
    else:
        dataset = _as_dataset(predict, dataset)
    drawn = changing_constants(
        predict, np.asarray(dataset.images[:1], np.float32) / np.float32(255)
    )
    evaluator = Evaluator(
        "predict",
        lambda _, x: fast_on_cpu(predict, x)(x),
        batch_size=min(batch_size, len(dataset)),
        seed=seed,
        unroll=unroll,
    )
    autoattack.check_defined(suites, dataset.num_classes)
    with stateless():
        results, records = evaluator.run((), dataset, attacks), {}
    for name in suites:
        if ran := autoattack.run_suite(evaluator, (), dataset, name, eps=eps, norm=norm):
            autoattack.add_result(results, name, ran[0])
            records[name] = ran[1]
    summary = summarize(results, dataset.num_classes, names, autoattack=records)
    # Suites have given the others.
    network = drawn if suites else _network_warnings(evaluator, dataset, drawn)
    if network:  # which say why no image moved
        results = dataclasses.replace(results, unmoved=())
    found, told = summary.to_json(), diagnostics.warnings("predict", results, summary, attacks)
    told += network
    radii = {(float(a.threat.eps), a.threat.norm) for a in attacks.values()} if not suites else ()
    told += [text for radius in sorted(radii) for text in network_checks.radius_warnings(*radius)]
    for text in told:
        warnings.warn(text, stacklevel=2)
    measured = {key: found[key] for key in _MEASURED if key in found}
    return measured | {"flags": results, "warnings": told}


def _network_warnings(evaluator: Evaluator, dataset: ArrayDataset, drawn: list[str]) -> list[str]:
    """Signs, on the first batch, that an attack's failure means nothing; `drawn` is one found before."""
    count, key = min(len(dataset), evaluator.batch_size), jax.random.key(evaluator.seed)
    images = np.asarray(dataset.images[:count], np.float32) / np.float32(255)
    logits = evaluator.engine.logits((), images, key)
    finite = np.all(np.isfinite(logits), axis=1)  # the others are told already
    images, logits = images[finite], logits[finite]
    labels = np.asarray(dataset.labels[:count])[finite]
    if not len(images):
        return drawn
    found = network_checks.image_warnings(np.max(dataset.images, keepdims=True), 0, 255)
    if constant := network_checks.constant_warnings(images, logits):
        return drawn + [f"predict: {text}" for text in found + constant]
    found += network_checks.output_warnings(logits, ())
    again = evaluator.engine.logits((), images, key)
    found += network_checks.random_warnings([logits, again])
    if not found + drawn and finite[0]:
        alone = evaluator.engine.logits((), np.repeat(images[:1], count, 0), key)
        found += network_checks.batch_warnings(logits[:1], alone)
    right = np.flatnonzero(logits.argmax(1) == labels)
    if len(right):
        gradients = evaluator.engine.largest_gradients((), images[right], labels[right], key)
        found += network_checks.gradient_warnings(gradients)
    return drawn + [f"predict: {text}" for text in found]


def _chosen(attacks: Any, eps: float, norm: str) -> tuple[dict[str, Attack], list[str]]:
    """The attacks by name, and the names of suites."""
    if isinstance(attacks, Attack):
        attacks = {getattr(attacks, "name", None): attacks}
    attacks = (attacks,) if isinstance(attacks, str) else attacks
    if (
        isinstance(attacks, list | tuple)
        and attacks
        and all(isinstance(a, Attack) for a in attacks)
    ):
        attacks = _by_name(attacks)
    if not isinstance(attacks, Iterable):
        raise ValueError(
            f"attacks={attacks!r}: give names such as 'pgd_sat', or attacks of attacks.make(...)"
        )
    if not (names := list(attacks)):
        raise ValueError("attacks is empty; name at least one, such as 'pgd_sat'")
    if not isinstance(attacks, Mapping):
        if not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"attacks has {type(names[0]).__name__} values; give names, or name -> attack. The call is "
                "evaluate(predict, (images, labels), attacks)"
            )
        if isinstance(eps, int | float) and eps == 0:
            raise ValueError(
                "eps=0: no attack can change an image; 8/255 is meant, where 8//255 is 0?"
            )
        plain, suites = split_names(names)
        return {name: attacks_lib.make(name, eps=eps, norm=norm) for name in plain}, suites
    for name, one in attacks.items():
        if problem := _problem(name, one):
            raise ValueError(f"attacks[{name!r}]{problem}")
        if eps not in (8 / 255, one.threat.eps):
            raise ValueError(
                f"eps={eps} is for attacks given by name; attacks[{name!r}] has eps={one.threat.eps:g}"
            )
        if norm not in ("linf", one.threat.norm):
            raise ValueError(
                f"norm={norm!r} is for attacks given by name; attacks[{name!r}] has norm={one.threat.norm!r}"
            )
    return dict(attacks), []


def _by_name(attacks: list[Any] | tuple[Any, ...]) -> dict[Any, Attack]:
    """Attacks under their own names.

    Raises:
      ValueError: two have one name.
    """
    names = [getattr(one, "name", None) for one in attacks]
    if twice := {str(name) for name in names if names.count(name) > 1}:
        raise ValueError(
            f"attacks has several called {', '.join(sorted(twice))}; give a name to each: "
            "{'pgd_10': attack, 'pgd_50': another}"
        )
    return dict(zip(names, attacks, strict=True))


def _problem(name: Any, attack: Any) -> str:
    """Why an attack of a mapping cannot be run; "" if it can.

    Raises:
      ValueError: it declares what no attack can do.
    """
    if not isinstance(attack, Attack):
        of_class = isinstance(attack, type) and issubclass(attack, Attack)
        kind = f"the class {attack.__name__}" if of_class else type(attack).__name__
        return f" is {kind}; give one of attacks.make(...), or an object of a subclass of attacks.Attack"
    if not isinstance(name, str) or not name.strip() or name == "clean":
        return ": that name is of the images as they are, or no text with a letter; choose another"
    if isinstance(attack, AutoAttack):
        return f" runs on all images at once; give its name alone: attacks={attack.name!r}"
    if name in attacks_lib.suite_names() and name not in attacks_lib.names():
        return (
            f": that is the name of a suite; choose another, or give attacks={name!r} for the suite"
        )
    if not attack.bounded:
        return (
            " leaves the ball of radius eps, which only training may; choose one such as 'pgd_sat'"
        )
    threat = attack.threat
    if (threat.clip_min, threat.clip_max) != (0.0, 1.0):
        return (
            f" has clip_min={threat.clip_min:g}, clip_max={threat.clip_max:g}; an evaluation's images "
            "are in [0, 1], so leave them out"
        )
    given: dict[str, Any] = {}
    if attack.pure:
        given = dict.fromkeys(("unroll", "teacher_logits", "state", *attack.numbers))
    try:
        hash(attack.program)
        inspect.signature(attack.run).bind(*"fxyk", **given)
    except TypeError as error:
        return (
            f": {error}; write @dataclasses.dataclass(frozen=True) over its class, and run(self, predict, "
            "images, labels, key=None, **_) in it, as attacks.Attack does"
        )
    return ""


def _as_dataset(predict: Any, pair: Any) -> ArrayDataset:
    """The images and labels of a pair, with a class for each output of the network."""
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2
    if not is_pair or any(isinstance(half, tuple) for half in pair):
        raise ValueError(
            f"dataset is {type(pair).__name__}; give a split of data.load(...) in memory, or (images, labels)"
        )
    images = checks.array(pair[0], "images")
    if jnp.issubdtype(images.dtype, jnp.floating):
        grey = np.rint(255 * np.asarray(checks.pixels(images)))
        if np.abs(np.asarray(images) - grey / 255).max() > 1e-4:
            raise ValueError(
                "images are floats between the 256 grey levels; an evaluation reads images as they are "
                "stored: give uint8"
            )
        images = grey.astype(np.uint8)
    images = np.asarray(images)
    if images.ndim != 4:
        raise ValueError(f"images have shape {images.shape}; give [N,H,W,C]")
    if not len(images):
        raise ValueError(f"images have shape {images.shape}: there is nothing in them")
    labels = np.asarray(checks.integer_labels(pair[1], len(images)), np.int32)
    example = jax.ShapeDtypeStruct((len(images), *images.shape[1:]), np.float32)
    logits = traced_shape(predict, example)
    threat_model.check_logits(logits, example)
    classes = logits.shape[1]
    checks.labels_in_range(labels, classes)
    return ArrayDataset(images, labels, tuple(map(str, range(classes))), "the data", "test")


class _Callable(types.ModuleType):
    """A module that is called as its function is."""

    __call__ = staticmethod(evaluate)


sys.modules[__name__].__class__ = _Callable
