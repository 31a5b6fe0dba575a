"""The model card beside exported files: what the network is, how good, how it was made, how to call it.

Plain Markdown out of a checkpoint's meta and evaluation.json; what they do not hold is said to be unknown,
never guessed.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ard_jax import __version__
from ard_jax.io.files import write_text_atomic
from ard_jax.reporting import model_card_calls, model_card_results, report
from ard_jax.reporting.model_card_results import safe, table


def write(
    path: str | os.PathLike,
    *,
    description: Mapping[str, Any],
    num_params: int,
    normalization: tuple[Sequence[float], Sequence[float]] | None,
    meta: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
    files: Iterable[Path],
    latency: Iterable[Mapping[str, Any]],
    net: str = "",
) -> None:
    """Writes a model card.

    Args:
      path: of the Markdown file, replaced when it is there; its folder must exist.
      description: the network, as `build.describe_network` gives it.
      num_params: number of parameters.
      normalization: (mean, std) per channel that the network applies to pixels in [0, 1]; None for none.
      meta: the checkpoint's meta: of a training run, or with "origin" of an imported network.
      evaluation: the record of evaluation.json, of this checkpoint; None where it was never evaluated.
      files: the exported files, which exist; for each known format the card shows how to call it.
      latency: how each format was checked, dicts in the form of `export_checks.Row` ("name", "size" in
        bytes, "difference", "agreement", "latency" {batch size: ms per image}, "note"), with "threads",
        "images" (what was compared on) and "attacks" (sentences); what is missing is left out.
      net: title of the exported network in `evaluation`; "" for the imported one, the best student, or
        the first. A title that is not there, or there at another step, counts as not measured.

    Raises:
      OSError: a file is missing, or the folder cannot be written.
    """
    files, latency = [Path(file) for file in files], list(latency)
    evaluation = dict(evaluation) if evaluation else None
    title = model_card_results.title_of(evaluation, net, meta)
    sections = [
        _head(description, meta),
        _network(description, num_params, normalization),
        model_card_results.section(evaluation, title, meta),
        _origin(meta["origin"]) if meta.get("origin") else _training(meta, evaluation),
        _limits(description, evaluation, title),
        model_card_calls.section(files, description),
        _files(files, latency),
    ]
    write_text_atomic(path, "\n".join(part.rstrip("\n") + "\n" for part in sections if part))


def _data_name(meta: Mapping[str, Any]) -> str:
    """Name of the data the network was trained on, or (imported) measured on; "" when unknown."""
    trained = (meta.get("config") or {}).get("data") or {}
    return str(trained.get("name") or (meta.get("origin") or {}).get("test", {}).get("data") or "")


def _head(description, meta) -> str:
    data = _data_name(meta)
    name = (meta.get("config") or {}).get("name") or (meta.get("origin") or {}).get("file")
    kind = "A pretrained network, imported by" if meta.get("origin") else "A student of"
    what = f"classifies images of {data}" if data else "classifies images"
    return (
        f"# {safe(name or description['model'])}\n\n{kind} ard_jax {__version__} that {what} into "
        + (f"{description['num_classes']} classes.\n")
    )


def _network(description, num_params, constants) -> str:
    height, width, channels = description["image_shape"]
    options = ", ".join(f"{k}={v}" for k, v in description["kwargs"].items())
    inside = "none" if constants is None else (
        f"(x - mean) / std, mean {_numbers(constants[0])}, std {_numbers(constants[1])}"
    )  # fmt: skip
    names = [safe(name) for name in description.get("class_names") or []]
    if len(names) > 20:
        names = [*names[:20], f"... ({len(names)} in all)"]
    rows = [
        ["architecture", safe(description["model"] + (f" ({options})" if options else ""))],
        ["parameters", f"{num_params:,}"],
        ["input", f"float32 [B, {height}, {width}, {channels}] in [0, 1] (pixels / 255), any batch B; "
                  f"PyTorch: [B, {channels}, {height}, {width}]"],
        ["normalisation inside", inside],
        ["output", f"float32 [B, {description['num_classes']}] logits, no softmax"],
        ["classes, in order", ", ".join(names) or "unknown"],
    ]  # fmt: skip
    return "## The network\n\n" + table(["", ""], rows, numeric=False)


def _numbers(values) -> str:
    return "[" + ", ".join(f"{float(v):.7g}" for v in values) + "]"


def _training(meta, evaluation) -> str:
    config = meta.get("config") or {}
    data, method, optim = (config.get(k) or {} for k in ("data", "method", "student_optim"))
    options = ", ".join(f"{k}={v}" for k, v in method.items() if k != "name")
    precision = safe(config.get("precision", "?"))
    best, epoch = meta.get("best") or {}, meta.get("epoch")
    lines = [
        f"- method: **{safe(method.get('name', 'unknown'))}**" + (f" ({safe(options)})" if options else ""),
        f"- data: {safe(data.get('name', 'unknown'))}, training split {safe(config.get('train_split', '?'))}"
        f", holdout {data.get('holdout', '?')} (seed {data.get('split_seed', '?')}), augmentation "
        f"{safe(data.get('augment', '?'))}",
        f"- inner attack: {_inner_attack(config)}",
        f"- {config.get('epochs', '?')} epochs of batches of {config.get('batch_size', '?')}, SGD "
        f"(learning rate {optim.get('lr', '?')}, momentum {optim.get('momentum', '?')}, weight decay "
        f"{optim.get('weight_decay', '?')}, schedule {safe(optim.get('schedule', '?'))}), seed "
        f"{config.get('seed', '?')}, {precision}",
        f"- this checkpoint: step {meta.get('step', '?')}, epoch {epoch if epoch is not None else '?'}; "
        f"the best checkpoint is of epoch {best.get('epoch', '?')}",
    ]  # fmt: skip
    if config.get("swa_start") or config.get("ema_decay"):
        lines.append(
            f"- weight averages were kept (EMA decay {config.get('ema_decay')}, SWA from epoch "
            f"{config.get('swa_start')}; 0: none)"
        )
    teachers = report.teacher_lines(evaluation or {})
    if not teachers:
        known = config.get("teachers") or {}
        teachers = [f"{role}: {identity}" for role, identity in known.items() if identity]
    lines += [f"- teacher, {safe(line)}" for line in teachers] or ["- teachers: none"]
    if evaluation:
        versions = ", ".join(f"{k} {v}" for k, v in (evaluation.get("versions") or {}).items())
        lines += [f"- versions: {safe(versions)}"] if versions else []
    return "## How it was trained\n\n" + "\n".join(lines)


def _inner_attack(config) -> str:
    attack = config.get("attack") or {}
    if not attack.get("name"):
        return "unknown"
    steps = f", {attack['steps']} steps" if attack.get("steps") else ""
    return (
        f"{safe(attack['name'])}{steps}, {safe(config.get('norm', 'linf'))} eps "
        f"{report.eps_text(config.get('eps'))}"
    )


def _origin(origin) -> str:
    lines = [
        f"- file: {safe(origin.get('file', 'unknown'))} ({safe(origin.get('format', '?'))}), SHA-256 "
        f"`{safe(origin.get('sha256', '?'))}`",
        f"- source: {safe(origin.get('source', 'unknown'))} {safe(origin.get('page') or '')}".rstrip(),
        f"- recognised as: {safe(origin.get('family', 'unknown'))}",
        f"- input normalisation: {safe(origin.get('normalization_from', 'unknown'))}",
        f"- imported: {safe(origin.get('imported', 'unknown'))}",
        "- how it was trained: see its source; ard_jax did not train it",
    ]
    beside = origin.get("file_metadata") or {}
    if beside:
        lines.append(f"- stored beside its tensors: {safe(json.dumps(beside, sort_keys=True))}")
    return "## Where it comes from\n\n" + "\n".join(lines)


def _limits(description, evaluation, title) -> str:
    height, width, _ = description["image_shape"]
    lines = [
        f"- Images of exactly {height}x{width} pixels in [0, 1], of the classes above. It answers with one "
        "of them for any other image too.",
        "- Robust accuracy is empirical, not a certificate: a better attack can only lower it. It says "
        "nothing about other perturbations (other norms, larger eps, rotations, corruptions, patches).",
        "- Softmax of the logits is not a calibrated probability.",
    ]
    lines += model_card_results.limits(evaluation, title)
    return "## Limits\n\n" + "\n".join(lines)


def _files(files, latency) -> str:
    rows = [
        [f"`{safe(file.name)}`", f"{file.stat().st_size / 1e6:.3f}", f"`{_sha256(file)}`"]
        for file in files
    ]
    text = "## Files\n\n" + table(["file", "MB", "SHA-256"], rows) if rows else ""
    return text + (_checks(latency) if latency else "")


def _checks(latency) -> str:
    sizes = sorted({size for row in latency for size in row.get("latency") or {}})
    heads = ["format", "MB", "logit difference", "same predictions"]
    heads += [f"ms per image, batch {size}" for size in sizes]
    rows = []
    for row in latency:
        times = row.get("latency") or {}
        size, difference = row.get("size"), row.get("difference")
        rows.append([
            safe(row.get("name", "?")),
            "-" if size is None else f"{size / 1e6:.3f}",
            "-" if difference is None else f"{difference:.1e}",
            "-" if row.get("agreement") is None else f"{row['agreement']:.2%}",
            *(f"{times[n]:.3g}" if n in times else "-" for n in sizes),
        ])  # fmt: skip
    first = latency[0]
    lines = [f"Differences are relative to the largest logit, on {safe(first.get('images', '?'))}; CPU "
             f"times with {first.get('threads', '?')} threads."]  # fmt: skip
    lines += [safe(sentence) for sentence in first.get("attacks") or []]
    lines += [f"{safe(row['name'])}: {safe(row['note'])}" for row in latency if row.get("note")]
    body = table(heads, rows) + "\n" + "\n".join(f"- {line}" for line in lines) + "\n"
    return "\n## Each format against the checkpoint\n\n" + body


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
