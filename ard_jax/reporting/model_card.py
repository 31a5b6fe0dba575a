"""The model card beside exported files: what the network is, how good, how it was made, how to call it.

Plain Markdown out of a checkpoint's meta and its evaluation. Each accuracy stands with the attack that
measured it and what it may be called; what is not known is said to be unknown, never guessed.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from ard_jax.reporting.tables import escape_markdown as safe

_NOT_MEASURED = (
    "Clean and robust accuracy were **not measured** with ard_jax: do not rely on its robustness. Measure "
    "with `python -m ard_jax.main --mode=evaluate --checkpoint=RUN --attacks=pgd_sat,autoattack` and "
    "export again.\n"
)


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
    normalization: tuple[Sequence[float], Sequence[float]] | None
    meta: Mapping[str, Any]
    evaluation: Evaluation | None = None
    files: Sequence[Path] = ()
    checks: Sequence[Mapping[str, Any]] = ()
    net: str = ""

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration in the checkpoint's meta."""
        return self.meta.get("config") or {}

    @property
    def origin(self) -> Mapping[str, Any]:
        """Where an imported network comes from; {} for one that was trained here."""
        return self.meta.get("origin") or {}

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
    sections = [
        _head(card),
        _network(card),
        _accuracy(card),
        _origin(card.origin) if card.origin else _training(card),
        _limits(card),
        _calls(card),
        _files(card.files),
        _checks(card.checks) if card.checks else "",
    ]
    write_text_atomic(path, "\n".join(part.rstrip("\n") + "\n" for part in sections if part))


def _head(card: Card) -> str:
    data = (card.config.get("data") or {}).get("name") or card.origin.get("test", {}).get("data")
    name = card.config.get("name") or card.origin.get("file") or card.description["model"]
    kind = "A pretrained network, imported by" if card.origin else "A student of"
    what = f"classifies images of {data}" if data else "classifies images"
    classes = card.description["num_classes"]
    return f"# {safe(name)}\n\n{kind} ard_jax {__version__} that {what} into {classes} classes.\n"


def _network(card: Card) -> str:
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
    return "## The network\n\n" + tables.markdown(Table(["", ""], rows, left=(1,)))


def _accuracy(card: Card) -> str:
    text, evaluation = "## Accuracy\n\n" + _published(card.origin), card.evaluation
    title, net = card.measured()
    if net is None:
        other = "The evaluation at hand is not of this network.\n" if evaluation else ""
        return text + other + _NOT_MEASURED + _selection_scores(card)
    data, nets = evaluation.dataset, evaluation.nets
    others = [name for name, one in nets.items() if name != title and one.role == "student"]
    text += (
        f"In % of {data.num_examples} images, {safe(data.name)} {safe(data.split)} split, of {safe(title)}; "
        "95 % Wilson interval of the draw of test images. Adversarial images are made on this very network "
        "(white box) unless said.\n\n"
    )
    heads = ["attack", "accuracy", "95 % interval", *others]
    heads += ["norm, eps", "images", "attack's budget", "what the number is"]
    rows = [
        ["none (clean)", percent(net.clean), _interval(net.clean_ci95)]
        + [percent(nets[name].clean) for name in others]
        + ["-", str(data.num_examples), "-", "clean accuracy"]
    ]
    for name, result in net.attacks.items():
        known = evaluation.attacks.get(name, Attack()).parameters
        suite = net.autoattack.get(name, AutoAttackRecord())
        radius = eps_text(known.get("eps", evaluation.eps))
        rows.append(
            [label(evaluation, name), percent(result.accuracy), _interval(result.ci95)]
            + [percent(nets[other].robust(name).accuracy) for other in others]
            + [f"{known.get('norm', evaluation.norm)} {radius}"]
            + [str(suite.num_examples or data.num_examples), _budget(known), _meaning(name, suite)]
        )
    note = selection_note(evaluation)
    text += tables.markdown(Table(heads, rows)) + "\n" + _headline(evaluation, net)
    return text + (f"\n{note}\n" if note else "")


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


def _headline(evaluation: Evaluation, net: NetworkResult) -> str:
    name = net.complete()
    if not name:
        worst = percent(net.worst_case and net.worst_case.accuracy)
        return (
            f"**No number of AutoAttack.** Robust to all attacks above at once: {worst} %, an upper bound; "
            "AutoAttack is usually lower, and its number is the one to compare with others.\n"
        )
    known = evaluation.attacks.get(name, Attack()).parameters
    return (
        f"To publish: clean {percent(net.clean)} %, {safe(label(evaluation, name))} "
        f"{percent(net.robust(name).accuracy)} %, {safe(known.get('norm', evaluation.norm))} eps "
        f"{eps_text(known.get('eps', evaluation.eps))}, on {net.autoattack[name].num_examples} test images. "
        "The other rows are for comparison with older tables.\n"
    )


def _published(origin: Mapping[str, Any]) -> str:
    """What the publisher of an imported network says and what the import measured."""
    text, published, test = "", origin.get("published") or {}, origin.get("test") or {}
    parts = [f"clean {published['clean']} %"] if published.get("clean") is not None else []
    if published.get("robust") is not None:
        parts.append(f"robust {published['robust']} % ({safe(published.get('attack') or '?')})")
    if parts:
        source = safe(published.get("numbers_from") or "its source")
        text += f"Published, not measured here: {', '.join(parts)}; from {source}.\n\n"
    if test.get("clean") is not None:
        text += (
            f"Measured when it was imported: clean {percent(test['clean'])} % on "
            f"{test.get('images', '?')} test images of {safe(test.get('data', '?'))}.\n\n"
        )
    return text


def _selection_scores(card: Card) -> str:
    """The scores that chose the checkpoint, where nothing better is known."""
    scores = ((card.meta.get("best") or {}).get("scores") or {}).get("student") or {}
    if not scores:
        return ""
    split = card.config.get("select_on", "selection")
    found = ", ".join(f"{safe(name)} {percent(value)} %" for name, value in scores.items())
    return (
        f"\nOf the best checkpoint only what chose it is known: {found} on the {safe(split)} split. "
        "A choice makes its own number optimistic.\n"
    )


def _training(card: Card) -> str:
    config, meta, evaluation = card.config, card.meta, card.evaluation
    data, method, optim, attack = (
        config.get(k) or {} for k in ("data", "method", "student_optim", "attack")
    )
    options = ", ".join(f"{k}={v}" for k, v in method.items() if k != "name")
    inner = "unknown"
    if attack.get("name"):
        steps = f", {attack['steps']} steps" if attack.get("steps") else ""
        norm, eps = safe(config.get("norm", "linf")), eps_text(config.get("eps"))
        inner = f"{safe(attack['name'])}{steps}, {norm} eps {eps}"
    best, epoch = meta.get("best") or {}, meta.get("epoch")
    lines = [
        f"- method: **{safe(method.get('name', 'unknown'))}**" + (f" ({safe(options)})" if options else ""),
        f"- data: {safe(data.get('name', 'unknown'))}, training split {safe(config.get('train_split', '?'))}"
        f", holdout {data.get('holdout', '?')} (seed {data.get('split_seed', '?')}), augmentation "
        f"{safe(data.get('augment', '?'))}",
        f"- inner attack: {inner}",
        f"- {config.get('epochs', '?')} epochs of batches of {config.get('batch_size', '?')}, SGD "
        f"(learning rate {optim.get('lr', '?')}, momentum {optim.get('momentum', '?')}, weight decay "
        f"{optim.get('weight_decay', '?')}, schedule {safe(optim.get('schedule', '?'))}), seed "
        f"{config.get('seed', '?')}, {safe(config.get('precision', '?'))}",
        f"- this checkpoint: step {meta.get('step', '?')}, epoch {epoch if epoch is not None else '?'}; "
        f"the best checkpoint is of epoch {best.get('epoch', '?')}",
    ]  # fmt: skip
    if config.get("swa_start") or config.get("ema_decay"):
        lines.append(
            f"- weight averages were kept (EMA decay {config.get('ema_decay')}, SWA from epoch "
            f"{config.get('swa_start')}; 0: none)"
        )
    known = [
        f"{role}: {identity}"
        for role, identity in (config.get("teachers") or {}).items()
        if identity
    ]
    teachers = (teacher_lines(evaluation) if evaluation else []) or known
    lines += [f"- teacher, {safe(line)}" for line in teachers] or ["- teachers: none"]
    if evaluation and evaluation.versions:
        lines.append(
            "- versions: " + safe(", ".join(f"{k} {v}" for k, v in evaluation.versions.items()))
        )
    return "## How it was trained\n\n" + "\n".join(lines)


def _origin(origin: Mapping[str, Any]) -> str:
    lines = [
        f"- file: {safe(origin.get('file', 'unknown'))} ({safe(origin.get('format', '?'))}), SHA-256 "
        f"`{safe(origin.get('sha256', '?'))}`",
        f"- source: {safe(origin.get('source', 'unknown'))} {safe(origin.get('page') or '')}".rstrip(),
        f"- recognised as: {safe(origin.get('family', 'unknown'))}",
        f"- input normalisation: {safe(origin.get('normalization_from', 'unknown'))}",
        f"- imported: {safe(origin.get('imported', 'unknown'))}",
        "- how it was trained: see its source; ard_jax did not train it",
    ]
    if beside := origin.get("file_metadata"):
        lines.append(f"- stored beside its tensors: {safe(json.dumps(beside, sort_keys=True))}")
    return "## Where it comes from\n\n" + "\n".join(lines)


def _limits(card: Card) -> str:
    height, width, _ = card.description["image_shape"]
    lines = [
        f"- Images of exactly {height}x{width} pixels in [0, 1], of the classes above. It answers with one "
        "of them for any other image too.",
        "- Robust accuracy is empirical, not a certificate: a better attack can only lower it. It says "
        "nothing about other perturbations (other norms, larger eps, rotations, corruptions, patches).",
        "- Softmax of the logits is not a calibrated probability.",
    ]
    title, net = card.measured()
    if net is not None:
        name = net.complete() or card.evaluation.main_attack()
        robust = net.robust(name).worst_class
        if None not in (net.worst_class_clean, robust):
            lines.append(
                f"- Its weakest class: {percent(net.worst_class_clean)} % clean, {percent(robust)} % under "
                f"{safe(label(card.evaluation, name))}."
            )
        told = [text for text in card.evaluation.warnings if title in text]
        lines += [f"- Warning of the evaluation: {safe(text)}" for text in told]
    return "## Limits\n\n" + "\n".join(lines)


_ONNX = """### ONNX: `{name}`

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{name}")
images = np.asarray(pixels, np.float32) / 255          # [B, {h}, {w}, {c}] uint8 pixels, any B
(logits,) = session.run(["logits"], {{"images": images}})
classes = logits.argmax(-1)
```
"""
_STABLEHLO = """### StableHLO: `{name}` (JAX on CPU, CUDA or TPU, and flatbuffers; without ard_jax)

```python
from pathlib import Path

import jax.export
import numpy as np

network = jax.export.deserialize(bytearray(Path("{name}").read_bytes())).call
logits = network(np.asarray(pixels, np.float32) / 255)  # [B, {h}, {w}, {c}] uint8 pixels, any B
```
"""
_SAFETENSORS = """### safetensors: `{name}` (weights only; the description is in the header)

```python
import numpy as np

from ard_jax.models import described
from ard_jax.interop import safetensors_file

description, variables = safetensors_file.load("{name}")
network = described.from_description(description)
logits, _ = network.apply(variables, np.asarray(pixels, np.float32) / 255, False)  # [B, {h}, {w}, {c}]
```

Any safetensors reader opens it; names are ours ("params/conv1/kernel"), convolutions [kh, kw, in, out].
"""
_TORCH = """### PyTorch: `{name}` and `model.py` (without ard_jax)

```python
import torch
from model import load                                  # the model.py beside this file

network = load("{name}")                            # evaluation mode; add map_location="cuda" for a GPU
with torch.no_grad():
    logits = network(pixels.float() / 255)              # [B, {c}, {h}, {w}] uint8 pixels: channels first
```

Its `["state_dict"]` has the tensors under their public names.
"""
_CALLS = {".onnx": _ONNX, ".stablehlo": _STABLEHLO, ".safetensors": _SAFETENSORS, ".pt": _TORCH}


def _calls(card: Card) -> str:
    """An example for each file of a known format; "" without any."""
    height, width, channels = card.description["image_shape"]
    parts = [
        _CALLS[file.suffix].format(name=file.name, h=height, w=width, c=channels)
        for file in card.files
        if file.suffix in _CALLS
    ]
    note = (
        "The normalisation is inside each file: give pixels in [0, 1], nothing else. "
        "Row k of the classes above is logit k.\n"
    )
    return "\n".join(["## How to call it\n", note, *parts]) if parts else ""


def _files(files: Sequence[Path]) -> str:
    rows = []
    for file in files:
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        size = f"{file.stat().st_size / 1e6:.3f}"
        rows.append([Cell(file.name, "code"), size, Cell(digest, "code")])
    return "## Files\n\n" + tables.markdown(Table(["file", "MB", "SHA-256"], rows)) if rows else ""


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
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
    first = checks[0]
    lines = [f"Differences are relative to the largest logit, on {safe(first.get('images', '?'))}; CPU "
             f"times with {first.get('threads', '?')} threads."]  # fmt: skip
    lines += [safe(sentence) for sentence in first.get("attacks") or []]
    lines += [f"{safe(row['name'])}: {safe(row['note'])}" for row in checks if row.get("note")]
    notes = "\n".join(f"- {line}" for line in lines)
    return (
        f"## Each format against the checkpoint\n\n{tables.markdown(Table(heads, rows))}\n{notes}\n"
    )
