"""`--mode=export`: a checkpoint becomes files that run elsewhere, each checked against it.

Everything is written to a temporary folder inside the output folder, compared with the checkpoint's logits,
and only then moved into place: a file that is not the same network never appears.
"""

import dataclasses
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ard_jax.checkpoints import manager, networks
from ard_jax.config.schema import Experiment
from ard_jax.interop import export_checks, fold, onnx, safetensors_file, stablehlo, torch_export
from ard_jax.interop.export_checks import ExportError, Images, Predict, Row
from ard_jax.io.files import check_writable, follow_umask
from ard_jax.models import ModelBundle, described, num_params
from ard_jax.models.bundle import normalization_constants
from ard_jax.reporting import model_card
from ard_jax.reporting.model_card import Card
from ard_jax.reporting.record import Evaluation, read_evaluation
from ard_jax.runtime import locks

FORMATS = ("onnx", "stablehlo", "safetensors", "torch")
CARD = "model_card.md"
# Format -> the files that it makes.
_FILES = {
    "onnx": ("student.onnx",),
    "stablehlo": ("student.stablehlo", "load_stablehlo.py"),
    "safetensors": ("student.safetensors",),
    "torch": ("student.pt", "model.py"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """What is exported: float32, whatever the precision of the training.

    Attributes:
      bundle: the network.
      variables: numpy arrays.
      description: as `build.describe_network` gives it.
      meta: of the checkpoint.
      run: folder of the run or of the imported network.
      title: the network's name in the run's evaluation, "student (best)".
      onnx_ir_version: of an ONNX file of it.
    """

    bundle: ModelBundle
    variables: Any
    description: dict[str, Any]
    meta: dict[str, Any]
    run: Path
    title: str
    onnx_ir_version: int = onnx.IR_VERSION


def run(
    checkpoint: str,
    out: str = "",
    formats: tuple[str, ...] = ("onnx",),
    item: str = "student",
    fold_batchnorm: bool = False,
    experiment: Experiment | None = None,
    onnx_ir_version: int = onnx.IR_VERSION,
) -> list[Path]:
    """Exports a network, checks every file, prints a table and writes a model card.

    Args:
      checkpoint: folder of a run, of its best/ or last/, of one step, or of an imported network.
      out: folder; "" for export/ in the run's folder (export-last/, export-ema/ for what these say).
        Other files in it are left alone, files of an earlier export are replaced.
      formats: of FORMATS.
      item: "student" or "ema".
      fold_batchnorm: fold BatchNorm into convolutions, in onnx and stablehlo; the other formats hold the
        variables as they are.
      experiment: whose test images to compare on; None: those that the network was trained for.
      onnx_ir_version: of the ONNX file's format.

    Returns:
      Paths of all files written, the model card last.

    Raises:
      ValueError: unknown format, packages missing, no such checkpoint, data that do not fit, an output
        folder that cannot be written, or an exported file whose logits are off by more than
        `export_checks.TOLERANCE`. No file is written then.
    """
    wanted = _check_formats(formats)
    if "onnx" in wanted:
        onnx.check_ir_version(onnx_ir_version)
    elif onnx_ir_version != onnx.IR_VERSION:
        raise ExportError(f"--onnx_ir_version={onnx_ir_version} is of --format=onnx; leave it out")
    if fold_batchnorm and not {"onnx", "stablehlo"} & set(wanted):
        raise ExportError(
            f"--fold_batchnorm is of --format=onnx and stablehlo: {' and '.join(wanted)} hold the variables "
            "as they are; leave it out"
        )
    if not checkpoint:
        raise ExportError("--mode=export needs --checkpoint: the folder of a run")
    network, folder = _load(checkpoint, item)
    network = dataclasses.replace(network, onnx_ir_version=onnx_ir_version)
    out_folder = _out_folder(out, network, folder, item, wanted)
    images = export_checks.test_images(
        network.description, network.meta, experiment.data if experiment else None
    )
    print(f"Exporting {network.bundle.name} of {folder}; comparing on {images.what}", flush=True)
    with (
        locks.hold(out_folder, flag="--out", keep=False),
        tempfile.TemporaryDirectory(dir=out_folder, prefix=".export-") as staging,
    ):
        rows, attacks = _write_and_check(network, Path(staging), wanted, fold_batchnorm, images)
        names = sorted(p.name for p in Path(staging).iterdir() if p.is_file())
        _write_card(network, folder, Path(staging), names, rows, attacks, images)
        for name in [*names, CARD]:
            os.replace(Path(staging) / name, out_folder / name)
    _report(rows, attacks, out_folder, names)
    return [out_folder / name for name in [*names, CARD]]


def _check_formats(formats: tuple[str, ...]) -> list[str]:
    if not formats:
        raise ExportError(f"--format is empty; choose from {', '.join(FORMATS)}")
    for name in formats:
        if name not in FORMATS:
            raise ExportError(f"--format={name} is unknown; choose from {', '.join(FORMATS)}")
    if "stablehlo" in formats:
        stablehlo.check_installed()
    return [name for name in FORMATS if name in formats]


def _load(checkpoint: str, item: str) -> tuple[Network, Path]:
    _, variables, meta, path = networks.load(checkpoint, item)
    folder = Path(path)
    description = meta["config"]["net"] | {"precision": "float32"}
    label = folder.parent.name
    if "origin" in meta:
        title = "imported network"
    elif item == "ema":
        title = f"student {'SWA' if meta['experiment']['swa_start'] else 'EMA'} ({label})"
    else:
        title = f"student ({label})"
    bundle = described.from_description(description)
    variables = jax.tree.map(np.asarray, variables)
    return Network(bundle, variables, description, meta, folder.parent.parent, title), folder


def _out_folder(out: str, network: Network, folder: Path, item: str, formats: list[str]) -> Path:
    """Makes the folder, unless it holds what no export wrote under the names of this one."""
    last = "-last" if folder.parent.name == "last" else ""
    path = Path(out) if out else network.run / f"export{last}{'-ema' if item == 'ema' else ''}"
    endings = {Path(name).suffix for one in FORMATS for name in _FILES[one]}
    if path.suffix in endings and not path.is_dir():
        raise ExportError(
            f"--out={path} looks like a file; --out is the folder of all files: give {path.parent}"
        )
    check_writable(path, "--out")
    manager.check_holds_no_steps(path, "--out")
    names = [CARD, *(name for one in formats for name in _FILES[one])]
    there = [name for name in names if (path / name).exists()]
    if there and not _is_ours(path / CARD):
        raise ExportError(
            f"--out={path} holds {' and '.join(there)}, which no export of ard_jax wrote there; choose "
            "another folder, or move what it holds"
        )
    path.mkdir(parents=True, exist_ok=True)
    return path


def _is_ours(card: Path) -> bool:
    try:
        return "ard_jax" in card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _write_and_check(
    network: Network, staging: Path, formats: list[str], folded: bool, images: Images
) -> tuple[list[Row], list[str]]:
    own = export_checks.jax_predict(network.bundle, network.variables)
    reference = export_checks.logits_of(own, images.images)
    rows = [Row("jax (checkpoint)", None, latency=export_checks.latency(own, images.images))]
    attacks = []
    for name in formats:
        path = _write(network, name, staging, folded)
        predict, note = _reader(name, path)
        if folded and name in ("onnx", "stablehlo"):
            note = _folded(network)
        rows.append(_row(_title(name, folded), path, predict, images, reference, note))
        if predict is not None and not attacks:
            attacks = export_checks.stored_attacks(network.run, network.title, predict)
        if folded and name in ("onnx", "stablehlo"):
            # Not kept: it is there to tell what folding gains.
            (staging / "unfolded").mkdir(exist_ok=True)
            path = _write(network, name, staging / "unfolded", False)
            title = f"{name}, not folded (not kept)"
            rows.append(_row(title, path, _reader(name, path)[0], images, reference, ""))
    return rows, attacks


def _title(name: str, folded: bool) -> str:
    return f"{name}, BatchNorm folded" if folded and name in ("onnx", "stablehlo") else name


def _row(
    title: str,
    path: Path,
    predict: Predict | None,
    images: Images,
    reference: np.ndarray,
    note: str,
) -> Row:
    size = path.stat().st_size
    if predict is None:
        return Row(title, size, note=note)
    print(f"Checking {title} ({path.name})", flush=True)
    logits = export_checks.logits_of(predict, images.images)
    difference, agreement = export_checks.compare(title, logits, reference)
    # A safetensors file is run by whoever reads it, here by the checkpoint's own program.
    times = {} if title == "safetensors" else export_checks.latency(predict, images.images)
    return Row(title, size, difference, agreement, times, note)


def _write(network: Network, name: str, folder: Path, folded: bool) -> Path:
    """Writes one format; returns the file that holds the weights."""
    bundle, variables, description = network.bundle, network.variables, network.description
    path = folder / f"student.{name}"
    metadata = {
        "description": json.dumps(description),
        "source": json.dumps({"network": network.title, "step": network.meta["step"]}),
    }
    if name == "onnx":
        onnx.export(
            bundle, variables, path, fold_batchnorm=folded, metadata=metadata,
            ir_version=network.onnx_ir_version,
        )  # fmt: skip
    elif name == "stablehlo":
        stablehlo.export(bundle, variables, path, fold_batchnorm=folded)
        stablehlo.write_loader(folder / "load_stablehlo.py")
    elif name == "safetensors":
        safetensors_file.export(bundle, variables, path, metadata)
        follow_umask(path)  # safetensors makes files that only their owner can read
    else:
        path = torch_export.export(bundle, variables, folder, description)[0]
    return path


def _reader(name: str, path: Path) -> tuple[Predict | None, str]:
    """(the network of a written file, read as a user would, or None; why none)."""
    if name == "onnx":
        return onnx.predict(path, threads=export_checks.threads()), ""
    if name == "stablehlo":
        return export_checks.on_cpu(stablehlo.load(path)), ""
    if name == "safetensors":
        description, variables = safetensors_file.load(path)
        return export_checks.jax_predict(described.from_description(description), variables), ""
    if importlib.util.find_spec("torch") is None:
        return None, "not compared and not timed: PyTorch is not installed here"
    return _torch_predict(path), ""


def _torch_predict(path: Path) -> Predict:
    import torch  # pyright: ignore[reportMissingImports]  # an extra

    spec = importlib.util.spec_from_file_location("exported_model", path.with_name("model.py"))
    assert spec is not None and spec.loader is not None  # it is a .py file
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = (
        True,
        sys.dont_write_bytecode,
    )  # no __pycache__ beside the files
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    network = module.load(path)

    def predict(images: np.ndarray):
        with torch.no_grad():
            nchw = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
            return network(nchw).numpy()

    return predict


def _folded(network: Network) -> str:
    result = fold.fold_batchnorm(network.bundle, network.variables)
    count = len(result.folded) + len(result.left)
    text = f"{len(result.folded)} of {count} BatchNorms are folded into convolutions"
    if result.left:
        text += f"; {len(result.left)} have no convolution of their own before them"
    return text


def _write_card(
    network: Network,
    folder: Path,
    staging: Path,
    names: list[str],
    rows: list[Row],
    attacks: list[str],
    images: Images,
) -> None:
    bundle = network.bundle
    shared = {"threads": export_checks.threads(), "images": images.what, "attacks": attacks}
    card = Card(
        description=network.description,
        num_params=num_params(bundle),
        normalization=normalization_constants(bundle.normalization, bundle.image_shape[-1]),
        meta=network.meta,
        evaluation=_evaluation(network.run, folder),
        files=[staging / name for name in names],
        checks=[dataclasses.asdict(row) | shared for row in rows],
        net=network.title,
    )
    model_card.write(staging / CARD, card)


def _evaluation(run_folder: Path, step_folder: Path) -> Evaluation | None:
    """What was measured last of this very step: by --mode=evaluate, else by the run; None for nothing."""
    again = [p for p in (run_folder / "evaluations").glob("*") if p.name.isdigit()]
    for folder in sorted(again, key=lambda p: int(p.name), reverse=True):
        evaluation = read_evaluation(folder)
        if evaluation and Path(evaluation.checkpoint) == step_folder:
            return evaluation
    return read_evaluation(run_folder)


def _report(rows: list[Row], attacks: list[str], out: Path, names: list[str]) -> None:
    count = export_checks.threads()
    print(export_checks.table(rows))
    print(f"Logit differences relative to the largest logit; CPU time per image, {count} threads")
    for line in attacks:
        print(line)
    ours = {*names, CARD}
    kinds = {f"student.{f}" for f in ("onnx", "stablehlo", "safetensors", "pt")}
    if older := sorted(p.name for p in out.iterdir() if p.name in kinds - ours):
        print(f"Not of this export, left as they were: {', '.join(older)}")
    print(f"Written to {out}: {', '.join([*names, CARD])}", flush=True)
