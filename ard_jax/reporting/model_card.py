"""The model card beside exported files: what the network is, how good, how it was made, how to call it.

Plain Markdown, templates/model_card.md, out of a checkpoint's meta and its evaluation. Each accuracy stands
with the attack that measured it and what it may be called; what is not known is said to be unknown, never
guessed.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ard_jax import __version__
from ard_jax.io.files import write_text_atomic
from ard_jax.reporting import tables
from ard_jax.reporting.record import (
    COMPLETE,
    Attack,
    AutoAttackRecord,
    Evaluation,
    NetworkResult,
    label,
    selection_note,
)
from ard_jax.reporting.run_page import teacher_lines
from ard_jax.reporting.tables import Cell, Table, eps_text, percent

_CALLABLE = (".onnx", ".stablehlo", ".safetensors", ".pt")  # formats whose use the card shows


@dataclasses.dataclass(frozen=True)
class Card:
    """What a card tells.

    Attributes:
      description: the network, as `build.describe_network` gives it.
      num_params: number of parameters.
      normalization: (mean, std) per channel that the network applies to pixels in [0, 1]; None for none.
      meta: the checkpoint's meta: of a training run, or with "origin" of an imported network.
      evaluation: of this checkpoint; None where it was never evaluated.
      files: the exported files, which exist; for each known format the card shows how to call it.
      checks: how each format was checked, dicts in the form of `export_checks.Row` ("name", "size" in
        bytes, "difference", "agreement", "latency" {batch size: ms per image}, "note"), with "threads",
        "images" (what was compared on) and "attacks" (sentences); what is missing is left out.
      net: title of the exported network in `evaluation`; "" for the imported one, the best student, or
        the first. A title that is not there, or there at another step, counts as not measured.
    """

    description: Mapping[str, Any]
    num_params: int
    normalization: tuple[Iterable[float], Iterable[float]] | None
    meta: Mapping[str, Any]
    evaluation: Evaluation | None = None
    files: Sequence[Path] = ()
    checks: Sequence[Mapping[str, Any]] = ()
    net: str = ""

    def measured(self) -> tuple[str, NetworkResult | None]:
        """(title of the network in the evaluation, what was measured on it); ("", None) without."""
        nets = self.evaluation.nets if self.evaluation else {}
        wanted = [self.net] if self.net else ["imported network", "student (best)", *nets]
        title = next((title for title in wanted if title in nets), "")
        net, step = nets.get(title), self.meta.get("step")
        known = net and (None in (net.step, step) or net.step == step)
        return (title, net) if known else ("", None)


def write(path: str | os.PathLike, card: Card) -> None:
    """Writes a model card.

    Args:
      path: of the Markdown file, replaced when it is there; its folder must exist.
      card: what it tells.

    Raises:
      OSError: a file is missing, or the folder cannot be written.
    """
    title, net = card.measured()
    # The evaluation is there wherever there is a `net`.
    evaluation, origin, meta = cast(Any, card.evaluation), card.meta.get("origin") or {}, card.meta
    config = meta.get("config") or {}
    main = net and (net.complete() or evaluation.main_attack())
    known = [f"{role}: {name}" for role, name in (config.get("teachers") or {}).items() if name]
    method = (config.get("method") or {}).items()
    height, width, channels = card.description["image_shape"]
    text = tables.markdown_page(
        "model_card.md",
        version=__version__,
        description=card.description,
        meta=meta,
        config=config,
        origin=origin,
        published=origin.get("published") or {},
        data=(config.get("data") or {}).get("name") or (origin.get("test") or {}).get("data"),
        scores=((meta.get("best") or {}).get("scores") or {}).get("student"),
        options=", ".join(f"{key}={value}" for key, value in method if key != "name"),
        teachers=(teacher_lines(evaluation) if evaluation else []) or known,
        network=_network_table(card),
        evaluation=evaluation,
        net=net,
        net_title=title,
        accuracy=_accuracy_table(evaluation, title, net) if net else None,
        complete=net and net.complete(),
        main_name=main,
        main_label=label(evaluation, main) if net else "",
        main=evaluation.attacks[main].parameters if net and main in evaluation.attacks else {},
        selection=selection_note(evaluation) if net else "",
        callable=[file for file in card.files if file.suffix in _CALLABLE],
        files=_file_table(card.files),
        checks=card.checks,
        check_table=_check_table(card.checks),
        h=height,
        w=width,
        c=channels,
    )
    write_text_atomic(path, text)


def _network_table(card: Card) -> Table:
    about = card.description
    height, width, channels = about["image_shape"]
    options = ", ".join(f"{k}={v}" for k, v in about["kwargs"].items())
    inside = "none"
    if card.normalization:
        mean, std = (
            "[" + ", ".join(f"{float(v):.7g}" for v in vs) + "]" for vs in card.normalization
        )
        inside = f"(x - mean) / std, mean {mean}, std {std}"
    names = list(about.get("class_names") or [])
    if len(names) > 20:
        names = [*names[:20], f"... ({len(names)} in all)"]
    rows = [
        ["architecture", about["model"] + (f" ({options})" if options else "")],
        ["parameters", f"{card.num_params:,}"],
        ["input", f"float32 [B, {height}, {width}, {channels}] in [0, 1] (pixels / 255), any batch B; "
                  f"PyTorch: [B, {channels}, {height}, {width}]"],
        ["normalisation inside", inside],
        ["output", f"float32 [B, {about['num_classes']}] logits, no softmax"],
        ["classes, in order", ", ".join(names) or "unknown"],
    ]  # fmt: skip
    return Table(["", ""], rows, left=(1,))


def _accuracy_table(evaluation: Evaluation, title: str, net: NetworkResult) -> Table:
    """Every accuracy with its attack, the other students' beside it, and what it may be called."""
    whole, nets = str(evaluation.dataset.num_examples), evaluation.nets
    others = {name: one for name, one in nets.items() if name != title and one.role == "student"}
    heads = ["attack", "accuracy", "95 % interval", *others]
    heads += ["norm, eps", "images", "attack's budget", "what the number is"]
    rows: list[Sequence[str | Cell]] = [
        ["none (clean)", percent(net.clean), _interval(net.clean_ci95)]
        + [percent(one.clean) for one in others.values()]
        + ["-", whole, "-", "clean accuracy"]
    ]
    for name, result in net.attacks.items():
        known = evaluation.attacks.get(name, Attack()).parameters
        suite = net.autoattack.get(name, AutoAttackRecord())
        radius = (
            f"{known.get('norm', evaluation.norm)} {eps_text(known.get('eps', evaluation.eps))}"
        )
        rows.append(
            [label(evaluation, name), percent(result.accuracy), _interval(result.ci95)]
            + [percent(one.robust(name).accuracy) for one in others.values()]
            + [radius, str(suite.num_examples or whole), _budget(known), _meaning(name, suite)]
        )
    return Table(heads, rows)


def _interval(bounds: Any) -> str:
    return f"{percent(bounds[0], 1)} to {percent(bounds[1], 1)}" if bounds else "-"


def _budget(known: Mapping[str, Any]) -> str:
    if known.get("attacks"):
        return ", ".join(known["attacks"])
    if not known.get("steps"):
        return "-"
    restarts = f", {known['restarts']} restarts" if known.get("restarts", 1) > 1 else ""
    plural = "" if known["steps"] == 1 else "s"
    return f"{known['steps']} step{plural} of {eps_text(known.get('step_size'))}{restarts}"


def _meaning(name: str, suite: AutoAttackRecord) -> Cell | str:
    if name in COMPLETE and not suite.upper_bound:
        return Cell(f"AutoAttack, version {suite.version}", "best")
    kinds = {"transfer_": "; black box by transfer", "square": "; black box by queries"}
    return "upper bound" + next(
        (text for start, text in kinds.items() if name.startswith(start)), ""
    )


def _file_table(files: Sequence[Path]) -> Table:
    rows = []
    for file in files:
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        size = f"{file.stat().st_size / 1e6:.3f}"
        rows.append([Cell(file.name, "code"), size, Cell(digest, "code")])
    return Table(["file", "MB", "SHA-256"], rows)


def _check_table(checks: Sequence[Mapping[str, Any]]) -> Table:
    sizes = sorted({size for row in checks for size in row.get("latency") or {}})
    heads = ["format", "MB", "logit difference", "same predictions"]
    heads += [f"ms per image, batch {size}" for size in sizes]
    rows = []
    for row in checks:
        times, size, difference = row.get("latency") or {}, row.get("size"), row.get("difference")
        rows.append([
            row.get("name", "?"),
            "-" if size is None else f"{size / 1e6:.3f}",
            "-" if difference is None else f"{difference:.1e}",
            "-" if row.get("agreement") is None else f"{row['agreement']:.2%}",
            *(f"{times[n]:.3g}" if n in times else "-" for n in sizes),
        ])  # fmt: skip
    return Table(heads, rows)
