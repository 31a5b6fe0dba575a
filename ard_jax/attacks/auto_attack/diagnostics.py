"""What AutoAttack refuses, and what it warns of: signs that its number would not mean robustness."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ard_jax.attacks.auto_attack.versions import Member, num_targets
from ard_jax.attacks.threat_model import LEAST_EPS, ThreatModel
from ard_jax.losses import checks

# A gap of more than this between a plain gradient attack and AutoAttack points at gradient masking:
# adversarially trained networks lose 2 to 6 points between the two.
MASKING_GAP = 0.10
# Square after the white-box attacks finds next to nothing on networks with useful gradients.
SQUARE_GAIN, _SQUARE_IMAGES = 0.002, 3  # share, and at least as many: one image is no sign
_SMALL_GRADIENT = 1e-6
_SATURATED = 88  # exp(-88) is the smallest normal float32
_LOGITS_DIFFER = 1e-4
_SMALL_L2 = 17 / 255  # the papers' linf radii are 2/255 to 16/255
_DARK = 32 / 255  # a brightest pixel below it is rather one of another scale


def check_inputs(images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """The images as float32 [N,H,W,C] and the labels as int32 [N], on the host.

    Raises:
      ValueError: one of them is not what AutoAttack takes; the message says the fix.
    """
    images = checks.pixels(images)
    if images.ndim != 4:
        raise ValueError(f"images have shape {images.shape}; give [N,H,W,C]")
    labels = checks.integer_labels(labels, len(images))
    if isinstance(images, Tracer) or isinstance(labels, Tracer):
        raise ValueError("AutoAttack decides on the host what to do next; call it outside of jit")
    images, labels = np.asarray(images), np.asarray(labels)
    return np.ascontiguousarray(np.clip(images, 0, 1), np.float32), labels.astype(np.int32)


def checked_threat(eps: Any, norm: str, shape: tuple[int, ...]) -> ThreatModel:
    """Returns the threat model for images [H,W,C] of this shape, eps a Python number.

    Raises:
      ValueError: a radius that cannot be meant.
    """
    ThreatModel(eps, norm).check_reach(shape)
    if eps <= 0 or (norm == "linf" and eps >= 1):
        raise ValueError(f"eps={eps}: must be above 0 and, of images in [0,1], below 1")
    return ThreatModel(float(eps), norm)


def check_logits(logits: np.ndarray, labels: np.ndarray, members: tuple[Member, ...]) -> None:
    """Checks the clean logits [N,K].

    Raises:
      ValueError: labels that are no class, or a loss that is undefined for so few classes.
    """
    classes = logits.shape[1]
    if classes < 2:
        raise ValueError(f"predict returned {classes} logit; AutoAttack needs at least two classes")
    checks.labels_in_range(labels, classes)
    undefined = [member for member in members if member.min_classes > classes]
    if undefined:
        raise ValueError(
            f"{', '.join(m.name for m in undefined)}: the DLR loss needs at least "
            f"{undefined[0].min_classes} classes and predict has {classes}; use version='custom' with "
            "attacks=('apgd-ce', 'fab-t', 'square')"
        )


def output_warnings(logits: np.ndarray, members: tuple[Member, ...]) -> list[str]:
    """Warnings that the clean logits [N,K] give."""
    found, classes = [], logits.shape[1]
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        found.append(
            f"predict returned NaN or infinity for {bad.sum()} of {len(logits)} clean images (first: image "
            f"{np.flatnonzero(bad)[0]}), which count as wrong"
        )
        logits = logits[~bad]
    if not len(logits):
        return found
    if members and classes < 4:
        found.append(
            f"only {classes} classes: targeted attacks have {num_targets(classes)} target(s) and not "
            "nine, and the targeted DLR loss is undefined; the result is weaker than usual"
        )
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1.0, atol=1e-4):
        found.append(
            "the outputs look like probabilities (nonnegative, sum 1): return logits, the gradients "
            "of a saturated softmax vanish and hide adversarial examples"
        )
    spread = float(np.median(logits.max(axis=1) - logits.min(axis=1)))
    if spread < 1e-3 and any(m.white_box for m in members):
        found.append(
            f"the logits differ by {spread:.1e} only: the cross-entropy has no resolution in float32 "
            "(gradient masking by scale); multiply the logits by a constant, which changes no class"
        )
    if short := _short_type(logits):
        found.append(
            f"all logits are {short} numbers: gradients and ties of such a network are rounded, and robust "
            "accuracy is that of the rounding too; compute in float32"
        )
    first, second = (
        np.sort(logits.astype(np.float64), axis=1)[:, :-3:-1].T if classes > 1 else (0.0, 0.0)
    )
    if (gap := float(np.median(first - second))) > _SATURATED:
        found.append(
            f"the largest logit is {gap:.1e} above the next in the median: the softmax is saturated, its "
            "gradient 0 or rounding (gradient masking by scale); divide the logits by a constant, which "
            "changes no class"
        )
    return found


def chance_warnings(right: np.ndarray, classes: int) -> list[str]:
    """Warnings that the share of right clean images gives: below chance by two standard deviations."""
    chance, found = 1 / classes, float(right.mean())
    if found >= chance - 2 * np.sqrt(chance * (1 - chance) / len(right)):
        return []
    return [f"clean accuracy {found:.1%} is below chance: are the classes in another order?"]


def gradient_warnings(largest: np.ndarray) -> list[str]:
    """Warnings out of each image's largest input gradient of the cross-entropy, [N] >= 0."""
    missing = np.mean(~np.isfinite(largest))
    if missing > 0:
        return [
            f"the gradient is NaN or infinite on {missing:.1%} of the clean images: gradient attacks do "
            "nothing there (a square root or logarithm at 0, or a normalisation by 0?)"
        ]
    zero, tiny = np.mean(largest == 0), np.mean(largest < _SMALL_GRADIENT)
    if zero > 0:
        return [
            f"the gradient is exactly zero on {zero:.1%} of the clean images: gradient masking "
            "(rounding, saturated outputs or a cut graph); only black-box attacks mean anything there"
        ]
    if tiny > 0.5:
        return [
            f"the gradient is below {_SMALL_GRADIENT:g} on {tiny:.1%} of the clean images: gradient "
            "masking by the scale of the logits, or saturation"
        ]
    return []


def _short_type(logits: np.ndarray) -> str:
    """The 16-bit type that float32 logits, perhaps converted since, were computed in; "" if none."""
    if logits.size < 20 or (8 * logits == np.rint(8 * logits)).all():  # such as counts of votes
        return ""
    for dtype in (jnp.bfloat16, np.float16):
        with np.errstate(over="ignore"):
            if (logits.astype(dtype).astype(np.float32) == logits).all():
                return np.dtype(dtype).name
    return ""


def random_warnings(logits: list[np.ndarray]) -> list[str]:
    """Warnings out of repeated predictions [B,K] on the same images."""
    finite = np.all([np.isfinite(z).all(axis=1) for z in logits], axis=0)
    if not finite.any():  # which is told by itself
        return []
    logits = [z[finite] for z in logits]
    unit = [z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-30) for z in logits]
    gap = max(float(np.abs(u - unit[0]).max()) for u in unit)
    if gap <= _LOGITS_DIFFER:
        return []
    return [
        f"predict is randomised: its normalised logits differ by {gap:.1e} between two calls; standard "
        "AutoAttack overestimates such a model, use version='rand' with predict(images, key)"
    ]


def batch_warnings(among: np.ndarray, copies: np.ndarray) -> list[str]:
    """Warnings out of the logits of one image, [1,K] among others and [B,K] in a batch of its copies."""
    near = max(_LOGITS_DIFFER, 4 * float(jnp.finfo(copies.dtype).eps))
    among, copies = among.astype(np.float32), copies.astype(np.float32)
    if np.allclose(among, copies, rtol=near, atol=near, equal_nan=True):
        return []
    return [
        "an image's outputs depend on the other images of its batch, or on its place among them (BatchNorm "
        "in training mode, a mean over the batch, noise of the batch's shape?): the number holds for this "
        "batch size and this order of the images alone"
    ]


def image_warnings(images: np.ndarray, low: float = 0.0, high: float = 1.0) -> list[str]:
    """Warnings out of the pixels, in [low, high]."""
    brightest = float(np.max(images) - low) / (high - low)
    return [] if brightest >= _DARK else [
        f"the brightest pixel is {255 * brightest:.3g} of 255; are the images scaled to 0 ... 255, or "
        "divided by 255 twice?"
    ]  # fmt: skip


def radius_warnings(eps: Any, norm: str, width: float = 1.0) -> list[str]:
    """Warnings out of a radius, of pixels whose range is so wide."""
    if eps / width < LEAST_EPS:
        return [
            f"eps={float(eps):.3g} is less than a tenth of a grey level; is 8/255 meant, divided by 255 once?"
        ]
    if norm == "l2" and eps / width < _SMALL_L2:
        return [
            f"eps={float(eps):.3g} is a small radius in L2, where 0.25 to 2 are usual; is norm='linf' meant?"
        ]
    return []


def constant_warnings(images: np.ndarray, logits: np.ndarray) -> list[str]:
    """Warnings out of images [N,...] and their logits [N,K], if none of them changes the outputs."""
    if (images == images[:1]).all() or not (logits == logits[:1]).all():
        return []
    return [
        f"the outputs of all {len(logits)} images are equal: they do not depend on the image, so that no "
        "attack can change them (variables that are all 0, or predict does not use its images?)"
    ]


def stage_warnings(
    accuracy: dict[str, float], members: tuple[Member, ...], num_images: int
) -> list[str]:
    """Warnings out of the robust accuracy after each stage, in order ("clean" first)."""
    found, names = [], list(accuracy)
    white = [m.name for m in members if m.white_box]
    for before, name in zip(names, names[1:], strict=False):
        gain = accuracy[before] - accuracy[name]
        seen_white = any(w in names[: names.index(name)] for w in white)
        images = round(gain * num_images)
        if name == "square" and seen_white and gain > SQUARE_GAIN and images >= _SQUARE_IMAGES:
            found.append(
                f"Square, which takes no gradients, lowers the accuracy by another {100 * gain:.2f} points "
                f"({images} images): the gradients may mislead the white-box attacks (gradient masking), "
                "and the robust accuracy may still be too high"
            )
    first, last = accuracy.get("apgd-ce"), accuracy[names[-1]]
    if first is not None and first - last > MASKING_GAP:
        found.append(masking_text("apgd-ce", first - last))
    return found


def candidate_warnings(unfair: int, undefined: int) -> list[str]:
    """Warnings of candidates that were thrown away, and of NaN logits under attack."""
    found = []
    if unfair:
        found.append(
            f"{unfair} attacked images were NaN or outside the budget and were thrown away: look for NaN "
            "in the gradients; the robust accuracy may be too high"
        )
    if undefined:
        found.append(f"predict returned NaN on {undefined} attacked images, which count as broken")
    return found


def masking_text(name: str, gap: float, weak: bool = False) -> str:
    """The warning for a gradient attack that AutoAttack beats by more than `MASKING_GAP`.

    Args:
      name: the attack.
      gap: difference of the accuracies.
      weak: APGD on the same loss comes close to AutoAttack, so the gradients are not to blame.
    """
    reason = (
        f"{name} is too weak here (APGD-CE, on the same gradients, comes close to AutoAttack)"
        if weak
        else "gradient masking is likely"
    )
    return (
        f"AutoAttack is {100 * gap:.1f} points below {name}, more than {100 * MASKING_GAP:.0f}: {reason}; "
        f"do not report {name} as the robustness"
    )
