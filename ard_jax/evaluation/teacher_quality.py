"""Will this teacher help? What a network says at x and at x', and how nearly linear it is between them.

`per_image` is a pure function of one batch, for notebooks and jit:

    measure = jax.jit(functools.partial(teacher_quality.per_image, predict))
    found = measure(images, labels, {"attack": attacks.pgd(predict, images, labels, key)})

`measure` runs it over a dataset, `judge` says what the numbers mean and where its thresholds come from.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax.attacks.attack import Attack
from ard_jax.attacks.checked_predict import check_function
from ard_jax.data.base import ArrayDataset
from ard_jax.evaluation import noise
from ard_jax.evaluation.accuracies import confidence_interval
from ard_jax.evaluation.evaluator import Evaluator
from ard_jax.losses import checks
from ard_jax.methods.saad import entropy
from ard_jax.reporting.record import (
    Finding,
    Quartiles,
    TeacherQuality,
    TeacherView,
    Unlearnable,
)

CLEAN, NOISE, OWN = "clean", "uniform noise", "attack on it"
# Of its clean accuracy: what the least robust of the field's published teachers keeps under AutoAttack
# (Chen2021LTD WRN-34-10 on CIFAR-100, 30.59 of 64.07; RobustBench).
_KEPT = 0.477
# The remainder of the linear approximation, second-hand, of one reproduction that gives no formula.
_ROBUST_REMAINDER, _NATURAL_REMAINDER = 0.016, 0.48

Numbers = dict[str, dict[str, Any]]


def answers(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """What a network says: "right" bool, "confidence" in (0, 1] and "entropy" in nats, float32; each [B].

    Outputs that are not finite are wrong, and make the other two NaN.

    Args:
      logits: [B,K] float.
      labels: [B] int.

    Raises:
      ValueError: they are not.
    """
    logits, labels = checks.logits_and_labels(logits, labels)
    confidence = jnp.max(jax.nn.softmax(logits.astype(jnp.float32)), axis=-1)
    right = jnp.all(jnp.isfinite(logits), axis=-1) & (jnp.argmax(logits, axis=-1) == labels)
    return {"right": right, "confidence": confidence, "entropy": entropy(logits)}


def per_image(
    predict: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    labels: jax.Array,
    moved: Mapping[str, jax.Array],
) -> dict[str, dict[str, jax.Array]]:
    """What a network says at x and at each x', and how far its logits are from linear between them.

    With d = x' - x, J the Jacobian of the logits z at x, and all logits less their mean over the classes,
    which no softmax sees:

        first_order = |z(x + d) - (z(x) + J d)| / |z(x + d)|
        central     = |z(x + d) - z(x - d) - 2 J d| / |z(x + d) - z(x - d)|

    in Euclidean norms, 0 where nothing is left. The first is the relative error of the linear approximation.
    The second is that of the difference which IGDM matches in place of 2 J d; x - d is not clipped to the
    pixel range, as there. J d comes by reverse mode over reverse mode: a pass forward and back, and about as
    much again for each x'.

    Args:
      predict: images -> logits [B,K], pure, evaluation mode, each image by itself.
      images: [B,H,W,C] float32 in [0,1].
      labels: [B] int.
      moved: name -> x' [B,H,W,C], not "clean".

    Returns:
      "clean" -> `answers` at x; each name -> `answers` at its x', "first_order" and "central" [B] float32.

    Raises:
      ValueError: an argument of another kind or shape.
    """
    check_function(predict)
    images = jnp.asarray(checks.pixels(images))
    if not isinstance(moved, Mapping) or CLEAN in moved:
        given = list(moved) if isinstance(moved, Mapping) else type(moved).__name__
        raise ValueError(
            f"moved is {given}; give a dict of name -> x', of names other than 'clean'"
        )
    for name, x_adv in moved.items():
        if np.shape(x_adv) != images.shape:
            raise ValueError(
                f"moved[{name!r}] has shape {np.shape(x_adv)}; give that of images, {images.shape}"
            )
        checks.pixels(x_adv)
    z, pullback = jax.vjp(predict, images)
    _, along = jax.vjp(lambda u: pullback(u)[0], jnp.zeros_like(z))
    found = {CLEAN: answers(z, labels)}
    for name, x_adv in moved.items():
        d = x_adv - images
        slope, plus, minus = along(d)[0], predict(x_adv), predict(images - d)
        found[name] = answers(plus, labels) | {
            "first_order": _relative(plus - z - slope, plus),
            "central": _relative(plus - minus - 2 * slope, plus - minus),
        }
    return found


def _relative(error: jax.Array, whole: jax.Array) -> jax.Array:
    """Norms of the rows of one [B,K] as parts of those of the other, [B]."""

    def norm(z: jax.Array) -> jax.Array:
        z = z.astype(jnp.float32)
        return jnp.linalg.norm(z - jnp.mean(z, axis=-1, keepdims=True), axis=-1)

    size = norm(whole)
    return jnp.where(size > 0, norm(error) / jnp.where(size > 0, size, 1.0), 0.0)


def measure(
    evaluator: Evaluator,
    variables: Any,
    dataset: ArrayDataset,
    attack: Any,
    students: Mapping[str, tuple[Evaluator, Any]] | None = None,
) -> TeacherQuality:
    """Measures a teacher on every image of a dataset, without a judgement.

    Args:
      evaluator: the teacher's.
      variables: its variables.
      dataset: e.g. the test split.
      attack: `attacks.Attack`, run on the teacher and on every student.
      students: title -> (evaluator, variables) of reference students, with batches of the same size.

    Returns:
      Its views: "clean", "uniform noise" (in the ball of the attack), "attack on it", and "attack on TITLE"
      for each student. Its unlearnable set: images at whose own x' every student is wrong.

    Raises:
      ValueError: an argument is of another kind.
    """
    students = dict(students or {})
    _check_kinds(evaluator, dataset, attack, students)
    parts: list[Numbers] = []

    def program(variables: Any, images: jax.Array, labels: jax.Array, moved: Any):
        return per_image(lambda x: evaluator.apply(variables, x), images, labels, moved)

    for batch, host in evaluator.batches(dataset):
        moved = {
            NOISE: noise.noisy_images(
                evaluator, variables, batch, "uniform", attack.eps, attack.norm
            ),
            OWN: evaluator.attack(attack, variables, batch),
        }
        missed = {}
        for title, (other, own) in students.items():
            moved[_view(title)] = x_adv = other.attack(attack, own, batch)
            missed[title] = other.predict(own, x_adv) != host["label"]

        found = evaluator.measure(
            "teaching", program, variables, batch["image"], batch["label"], moved
        )
        parts.append(jax.tree.map(lambda a, m=host["mask"]: a[m], found | {"missed": missed}))
    whole = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    missed = {title: whole["missed"][title] for title in students}
    order = (CLEAN, NOISE, OWN, *map(_view, students))
    return TeacherQuality(
        attack=attack.label,
        num_examples=len(dataset),
        num_classes=dataset.num_classes,
        views={name: _summary(whole[name]) for name in order},
        students={title: float(1 - wrong.mean()) for title, wrong in missed.items()},
        unlearnable=_unlearnable(whole, missed) if missed else None,
    )


def _check_kinds(evaluator: Any, dataset: Any, attack: Any, students: dict[str, Any]) -> None:
    for name, value, kind, give in (
        ("evaluator", evaluator, Evaluator, 'evaluator.Evaluator("teacher", bundle.apply, ...)'),
        ("dataset", dataset, ArrayDataset, 'a split, such as data.load("digits").test'),
        ("attack", attack, Attack, 'attacks.make("pgd_trades", eps=...)'),
    ):
        if not isinstance(value, kind):
            raise ValueError(f"{name} is {type(value).__name__}; give {give}")
    for title, pair in students.items():
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], Evaluator)):
            raise ValueError(f"students[{title!r}] is no pair; give (its Evaluator, its variables)")


def _view(title: str) -> str:
    return f"attack on {title}"


def _quartiles(values: np.ndarray) -> Quartiles | None:
    if not len(values):
        return None
    low, median, high = np.percentile(values, (25, 50, 75))
    return Quartiles(
        mean=float(values.mean()), low=float(low), median=float(median), high=float(high)
    )


def _summary(numbers: dict[str, np.ndarray]) -> TeacherView:
    spreads = {name: _quartiles(values) for name, values in numbers.items() if name != "right"}
    return TeacherView(accuracy=float(numbers["right"].mean()), **spreads)


def _unlearnable(whole: Numbers, missed: dict[str, np.ndarray]) -> Unlearnable:
    """Images that every student misses at its own x'; the teacher's numbers are means over those x'."""
    lost = np.all([*missed.values()], axis=0)
    views = [whole[_view(title)] for title in missed]
    entropies = np.mean([view["entropy"] for view in views], axis=0)
    wrong = np.mean([~view["right"] for view in views], axis=0)
    return Unlearnable(
        count=int(lost.sum()),
        share=float(lost.mean()),
        entropy=_quartiles(entropies[lost]),
        entropy_elsewhere=_quartiles(entropies[~lost]),
        teacher_wrong=float(wrong[lost].mean()) if lost.any() else None,
    )


def judge(quality: TeacherQuality) -> TeacherQuality:
    """Returns the record with its findings, and a verdict on the network as a robust teacher.

    "unfit": it is not robust itself, or at the students' x' it is right no more often than they are; "fit":
    it is robust, and at the students' x', if there are any, right more often; else "doubtful". The other
    findings are of one use each and decide nothing. Every finding names its threshold's source.
    """
    if not isinstance(quality, TeacherQuality):
        raise ValueError(f"quality is {type(quality).__name__}; give what measure(...) returned")
    findings = [_is_robust(quality), _is_linear(quality)]
    decisive = [findings[0].answer]
    for title in quality.students:
        findings += [_is_right(quality, title), _is_moved(quality, title)]
        decisive.append(findings[-2].answer)
    if quality.unlearnable is not None:
        findings.append(_is_soft(quality.unlearnable))
    verdict = "doubtful"
    if "no" in decisive:
        verdict = "unfit"
    elif set(decisive) == {"yes"}:
        verdict = "fit"
    return dataclasses.replace(quality, findings=tuple(findings), verdict=verdict)


def _is_robust(quality: TeacherQuality) -> Finding:
    clean, robust = (quality.views[name].accuracy or 0.0 for name in (CLEAN, OWN))
    low, high = confidence_interval(robust, quality.num_examples or 0)
    chance, kept = 1 / max(quality.num_classes or 1, 1), robust / clean if clean else 0.0
    answer = "yes" if kept >= _KEPT and low > chance else "unclear"
    if low <= chance or kept < _KEPT / 2:
        answer = "no"
    return Finding(
        question="Is it robust itself?",
        answer=answer,
        evidence=f"{robust:.2%} right under {quality.attack} ({low:.1%} to {high:.1%}), {kept:.0%} of its "
        f"clean {clean:.2%}; guessing: {chance:.1%}",
        threshold=f"yes: it keeps {_KEPT:.0%}, as the least robust published teacher does under AutoAttack "
        "(LTD on CIFAR-100, RobustBench); no: less than half of that, or no better than guessing. No source "
        "draws a line, these are ours",
    )


def _is_linear(quality: TeacherQuality) -> Finding:
    values = {n: (v.first_order or Quartiles()).mean or 0.0 for n, v in quality.views.items()}
    answer = "unclear"
    if values[OWN] >= _NATURAL_REMAINDER:
        answer = "no"
    elif values[OWN] <= _ROBUST_REMAINDER:
        answer = "yes"
    shown = ", ".join(f"{value:.3f} ({name})" for name, value in values.items() if name != CLEAN)
    return Finding(
        question="Is it as linear as gradient matching (igdm, saad) needs?",
        answer=answer,
        evidence=f"mean first-order error {shown}",
        threshold=f"under its own attack; second-hand, one reproduction: 0.012 to {_ROBUST_REMAINDER} for "
        f"robust teachers at 8/255, {_NATURAL_REMAINDER} for a natural one, with which IGDM falls to chance; "
        "the formula is not given there, and between the two nothing is known",
    )


def _is_right(quality: TeacherQuality, title: str) -> Finding:
    teacher, student = quality.views[_view(title)].accuracy or 0.0, quality.students[title]
    return Finding(
        question=f"Is it right where {title} is attacked?",
        answer="yes" if teacher > student else "no",
        evidence=f"wrong on {1 - teacher:.2%} there, the student on {1 - student:.2%}",
        threshold="wrong less often than the student; no source gives a number, this is ours",
    )


def _is_moved(quality: TeacherQuality, title: str) -> Finding:
    before, after = (quality.views[n].entropy or Quartiles() for n in (CLEAN, _view(title)))
    return Finding(
        question=f"Do the attacks on {title} move it?",
        answer="yes" if (after.mean or 0) > (before.mean or 0) else "no",
        evidence=f"mean entropy {before.mean or 0:.3f} nats at x, {after.mean or 0:.3f} at x'",
        threshold="SAAD (TMLR 2026) weighs images by the teacher's entropy at x', without a threshold; ours: "
        "more than at x",
    )


def _is_soft(found: Unlearnable) -> Finding:
    inside, outside = (found.entropy, found.entropy_elsewhere)
    answer, evidence = "unclear", f"{found.count} images ({found.share or 0:.2%})"
    if inside is not None and outside is not None:
        answer = "yes" if (inside.mean or 0) > (outside.mean or 0) else "no"
        evidence += (
            f": mean entropy {inside.mean or 0:.3f} nats, elsewhere {outside.mean or 0:.3f}; "
        )
        evidence += f"wrong on {found.teacher_wrong or 0:.2%} of them"
    return Finding(
        question="Is it soft on the images that every reference student misses?",
        answer=answer,
        evidence=evidence,
        threshold="this entropy predicts how far students overfit (Why Robust Teachers Fail, ICML 2026, "
        "second-hand, without a threshold); ours: more than elsewhere",
    )
