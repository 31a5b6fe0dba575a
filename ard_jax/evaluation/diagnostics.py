"""Warnings: what a reader must know of one network's numbers."""

from collections.abc import Mapping
from typing import Any

from ard_jax.attacks import registry
from ard_jax.attacks.auto_attack import diagnostics
from ard_jax.evaluation.accuracies import ExampleResults
from ard_jax.evaluation.evaluator import NOT_FINITE
from ard_jax.reporting.record import NetworkResult

_ABOVE_CLEAN = 0.01  # more of it is no chance


def warnings(
    title: str, results: ExampleResults, net: NetworkResult, attacks: Mapping[str, Any]
) -> list[str]:
    """Attacks that do not work on a network, gradient masking, and AutoAttack's own warnings.

    Args:
      title: of the network.
      results: of the network.
      net: its record.
      attacks: name -> attack made on it, AutoAttack and its like left out.
    """
    undefined = {name: classes == NOT_FINITE for name, classes in results.predicted.items()}
    broken = [f"{b.sum()} of {len(b)} under {name}" for name, b in undefined.items() if b.any()]
    # A targeted attack may well push wrong examples onto the right class.
    names = [name for name, spec in attacks.items() if not spec.targeted]
    found = [
        f"{title}: accuracy under {name} is above clean accuracy; the attack does not work on it"
        for name in names
        if results.accuracy(name) > results.accuracy("clean") + _ABOVE_CLEAN
    ]
    if (classes := len(net.per_class_clean)) > 1:
        below = diagnostics.chance_warnings(results.correct["clean"], classes)
        found += [f"{title}: {text}" for text in below]
    found += [
        f"{title}: {text}: {name} shows more robustness than there is"
        for name, spec in attacks.items()
        if (text := short_way(spec))
    ]
    if results.unmoved:
        found.append(
            f"{title}: {', '.join(results.unmoved)} returned every image unchanged, so that the accuracy is "
            "the clean one: gradients that are 0, or an attack that does nothing?"
        )
    if broken:
        found.append(
            f"{title}: outputs are NaN or infinite, which counts as wrong: {', '.join(broken)}"
        )
    if len(models := dict.fromkeys((spec.norm, spec.eps) for spec in attacks.values())) > 1:
        listed = ", ".join(f"{norm} {eps:.4g}" for norm, eps in models)
        found.append(
            f"{title}: the attacks have several radii ({listed}): the worst case is over all of them, and "
            "of no one threat model"
        )
    for suite in net.autoattack.values():
        found += [f"{title}: {suite.label}: {text}" for text in suite.warnings]
    if "autoattack" in results.suites and names:
        found += [f"{title}: {text}" for text in _masking(results, names)]
    for kind, accuracy in net.noise.items():
        above = [n for n in (*names, *results.suites) if _is_above(results, n, accuracy)]
        if above:
            found.append(
                f"{title}: accuracy under {', '.join(above)} is above that under {kind} noise of the same "
                f"size ({100 * accuracy:.2f} %): these attacks do not work on it"
            )
    return found


def short_way(attack: Any) -> str:
    """Says that the steps of an attack do not lead far; "" where they do, or it has none."""
    steps, size = getattr(attack, "steps", 0), getattr(attack, "step_size", 0.0)
    if not 0 < steps * size < attack.eps / 2:
        return ""
    return (
        f"{steps} step{'s' * (steps > 1)} of {size:.4g} go less than half of eps={attack.eps:.4g}"
    )


def _masking(results: ExampleResults, names: list[str]) -> list[str]:
    """Says that AutoAttack is far below the strongest of the other attacks, where it is."""
    count, robust = len(results.correct["autoattack"]), results.accuracy("autoattack")
    shares = {name: results.accuracy(name, count) for name in names}
    strongest = min(shares, key=shares.__getitem__)
    gap = shares[strongest] - robust
    if gap <= diagnostics.MASKING_GAP:
        return []
    name = registry.label_of(strongest)
    after_ce = results.suites["autoattack"].stages.get("apgd-ce", results.correct["clean"])
    weak = float(after_ce.mean()) - robust <= diagnostics.MASKING_GAP
    return [diagnostics.masking_text(name, gap, weak)]


def _is_above(results: ExampleResults, name: str, accuracy: float) -> bool:
    # Of a part of the images no comparison with noise on all of them is fair.
    everywhere = len(results.correct[name]) == len(results.labels)
    return everywhere and results.accuracy(name) > accuracy + 1e-9
