import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from experiments import tiny

from ard_jax.checkpoints import manager, networks
from ard_jax.cli import export, import_network
from ard_jax.config import parse
from ard_jax.interop import export_checks, onnx, safetensors_file, stablehlo, torch_export
from ard_jax.interop.export_checks import ExportError
from ard_jax.models import described

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def short_timings(monkeypatch):
    monkeypatch.setattr(export_checks, "_SECONDS", 0.0)


def save_run(folder, *, precision="float32", imported=False, **experiment):
    """A checkpoint as a digits run leaves it, without the training; returns (bundle, variables)."""
    built = parse.to_experiment(tiny(folder, **experiment))
    description = {
        "model": "small_cnn",
        "kwargs": {},
        "init": "torch",
        "normalization": {"mean": [0.3], "std": [0.4]},
        "precision": precision,
        "num_classes": 10,
        "image_shape": [8, 8, 1],
        "class_names": [str(i) for i in range(10)],
    }
    bundle = described.from_description(description | {"precision": "float32"})
    variables = jax.tree.map(np.asarray, bundle.init(jax.random.key(0)))
    meta = {"step": 3, "epoch": 1, "config": {"net": description}}
    if imported:
        meta["origin"] = {"file": "net.pt", "sha256": "0", "format": "torch zip"}
    else:
        meta["experiment"] = parse.to_dict(built)
    manager.save_network(folder / "run" / "best", variables, meta)
    return bundle, variables


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_every_format_is_checked_and_written(tmp_path, capsys):
    pytest.importorskip("jax2onnx", reason="jax2onnx of the extra `export` is not installed")
    bundle, variables = save_run(tmp_path)
    paths = export.run(str(tmp_path / "run"), formats=export.FORMATS, fold_batchnorm=True)
    assert sorted(p.name for p in paths) == names(tmp_path / "run" / "export") == [
        "load_stablehlo.py", "model.py", "model_card.md", "student.onnx", "student.pt",
        "student.safetensors", "student.stablehlo",
    ]  # fmt: skip
    text = capsys.readouterr().out
    assert "comparing on 359 test images of digits" in text
    for line in ("onnx, BatchNorm folded", "onnx, not folded (not kept)", "stablehlo, BatchNorm"):
        assert re.search(rf"^{re.escape(line)}.* 100.00% .* ms .* ms", text, re.M), line
    assert re.search(r"^safetensors .* 100.00% ", text, re.M)
    assert "2 of 2 BatchNorms are folded" in text
    images = np.random.default_rng(0).random((5, 8, 8, 1), dtype=np.float32)
    expected = np.asarray(bundle.apply(variables, images, False)[0])
    for predict in (
        onnx.predict(tmp_path / "run/export/student.onnx"),
        stablehlo.load(tmp_path / "run/export/student.stablehlo"),
    ):
        np.testing.assert_allclose(np.asarray(predict(images)), expected, rtol=0, atol=1e-5)
    card = (tmp_path / "run/export/model_card.md").read_text()
    assert "student.onnx" in card and "359 test images of digits" in card


def test_a_file_that_is_another_network_is_not_kept(tmp_path, monkeypatch):
    save_run(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "student.stablehlo").write_text("earlier export")
    (out / export.CARD).write_text("A student of ard_jax")
    right = stablehlo.export

    def wrong(bundle, variables, path, **options):
        right(bundle, jax.tree.map(lambda leaf: leaf * 1.001, variables), path, **options)

    monkeypatch.setattr(stablehlo, "export", wrong)
    with pytest.raises(ExportError, match="stablehlo is not the network of the checkpoint"):
        export.run(str(tmp_path / "run"), str(out), formats=("stablehlo",))
    assert names(out) == ["model_card.md", "student.stablehlo"]
    assert (out / "student.stablehlo").read_text() == "earlier export"


def test_earlier_files_of_other_formats_stay_and_are_told(tmp_path, capsys):
    save_run(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("student.onnx", "notes.txt"):
        (out / name).write_text("mine")
    export.run(str(tmp_path / "run"), str(out), formats=("safetensors",))
    assert names(out) == ["model_card.md", "notes.txt", "student.onnx", "student.safetensors"]
    assert "Not of this export, left as they were: student.onnx" in capsys.readouterr().out


def test_training_in_bfloat16_exports_float32(tmp_path):
    save_run(tmp_path, precision="bfloat16")
    export.run(str(tmp_path / "run"), formats=("safetensors",))
    description, _ = safetensors_file.load(tmp_path / "run/export/student.safetensors")
    assert description["precision"] == "float32"


def test_random_images_where_there_is_no_data(tmp_path, capsys):
    save_run(tmp_path, imported=True)
    export.run(str(tmp_path / "run"), formats=("safetensors",))
    assert (
        "256 random images (no data: an imported network names no data set; give its --config"
        in (capsys.readouterr().out)
    )


def test_given_data_must_fit(tmp_path):
    save_run(tmp_path)
    images = np.zeros((40, 6, 6, 1), np.uint8)
    labels = np.arange(40) % 10
    np.savez(tmp_path / "d.npz", train_images=images, train_labels=labels, test_images=images,
             test_labels=labels)  # fmt: skip
    other = parse.to_experiment(tiny(tmp_path, data__name="npz", data__dir=str(tmp_path / "d.npz")))
    with pytest.raises(ExportError, match=r"takes images of shape \(8, 8, 1\), but .*\(6, 6, 1\)"):
        export.run(str(tmp_path / "run"), formats=("safetensors",), experiment=other)
    assert not list((tmp_path / "run").glob("export/*"))


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"formats": ("onnx", "tflite")},
            "--format=tflite is unknown; choose from onnx, stablehlo",
        ),
        ({"formats": ()}, "--format is empty"),
        ({"checkpoint": ""}, "needs --checkpoint"),
        ({"checkpoint": "nowhere"}, "nowhere does not exist"),
        ({"item": "ema"}, "no 'ema' network: training with config.ema_decay .*; it has student$"),
        ({"out": "a_file"}, "a_file is not a folder"),
        ({"out": "x/student.onnx"}, "--out=x/student.onnx looks like a file; .*: give x$"),
        (
            {"out": "run/best"},
            "--out=run/best: .*run/best holds the checkpoints of a run; choose another",
        ),
        ({"out": "run/best/3/mine"}, "run/best holds the checkpoints of a run"),
        (
            {"out": "mine"},
            "--out=mine holds student.safetensors, which no export of ard_jax wrote there",
        ),
        (
            {"fold_batchnorm": True},
            "--fold_batchnorm is of --format=onnx and stablehlo: safetensors hold",
        ),
        ({"onnx_ir_version": 9}, "--onnx_ir_version=9 is of --format=onnx; leave it out"),
    ],
)
def test_bad_input(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path)
    (tmp_path / "a_file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "student.safetensors").write_text("mine")
    arguments = {"checkpoint": "run", "formats": ("safetensors",)} | options
    with pytest.raises(ValueError, match=message):
        export.run(**arguments)
    assert not (tmp_path / "run" / "export").exists()


def test_missing_packages_are_told_before_anything_is_read(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in ("onnxruntime", "flatbuffers") else find(name),
    )
    with pytest.raises(ValueError, match=r"onnxruntime.*pip install 'ard_jax\[export\]'"):
        export.run("nowhere", formats=("onnx",))
    with pytest.raises(ValueError, match=r"flatbuffers.*pip install 'ard_jax\[export\]'"):
        export.run("nowhere", formats=("stablehlo",))


def test_stored_adversarial_images_go_through_the_file(tmp_path, capsys):
    bundle, variables = save_run(tmp_path)
    rng = np.random.default_rng(0)
    images, labels = rng.random((50, 8, 8, 1), dtype=np.float32), rng.integers(0, 10, 50)
    predicted = np.asarray(bundle.apply(variables, images, False)[0]).argmax(1)
    labels[:20] = predicted[:20]
    net = "student (best)"
    run = tmp_path / "run"
    others = {"student (last)/autoattack": images, f"{net}/autoattack": images}
    np.savez(run / "evaluation_images.npz", **others)
    correct = {f"{name}/correct": predicted == labels for name in others}
    np.savez(run / "evaluation_flags.npz", labels=np.append(labels, [0, 0]), **correct)
    export.run(str(run), formats=("stablehlo",))
    ours = f"{np.mean(predicted == labels):.2%}"
    assert (
        capsys.readouterr().out.count(
            f"autoattack, 50 stored images: robust accuracy {ours} in the evaluation, {ours} through"
        )
        == 1
    )


def test_comparison_fails_on_what_is_not_equal():
    reference = np.array([[1.0, 2.0], [3.0, -10.0]])
    close = reference + 10 * export_checks.TOLERANCE * np.array([[0.9, 0], [0, 0]])
    assert export_checks.compare("x", close, reference)[1] == 1.0
    for wrong in (reference + 1.2e-3, reference * np.nan, reference[:1]):
        with pytest.raises(ExportError, match="x "):
            export_checks.compare("x", wrong, reference)


def test_last_and_average_get_folders_of_their_own(tmp_path):
    save_run(tmp_path)
    run = tmp_path / "run"
    (run / "best").rename(run / "last")
    for _ in range(2):  # an earlier export is replaced
        export.run(str(run), formats=("safetensors",))
    assert names(run / "export-last") == ["model_card.md", "student.safetensors"]


def test_latency_is_of_one_image():
    found = export_checks.latency(lambda x: x, np.zeros((4, 2, 2, 1), np.float32))
    assert sorted(found) == [1, 64] and all(t > 0 for t in found.values())
    row = export_checks.Row("net", 2_500_000, 1e-7, 0.5, {1: 1.25, 64: 0.5})
    last = export_checks.table([row, dataclasses.replace(row, note="slow")]).splitlines()
    assert last[1].split()[:4] == ["net", "2.50", "MB", "1.0e-07"] and last[-1] == "net: slow"


@pytest.mark.slow
@pytest.mark.multiprocess
def test_command_line(tmp_path):
    save_run(tmp_path)
    command = [sys.executable, "-m", "ard_jax.main", "--mode=export"]
    command += [f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]
    right = ["--format=stablehlo,safetensors", "--fold_batchnorm"]
    subprocess.run([*command, *right], check=True, cwd=ROOT)
    assert names(tmp_path / "out") == [
        "load_stablehlo.py", "model_card.md", "student.safetensors", "student.stablehlo",
    ]  # fmt: skip
    wrong = subprocess.run([*command, "--format=pdf"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.strip().startswith("ERROR: --format=pdf is unknown")


def test_the_card_tells_the_newest_measurement_of_this_step(tmp_path):
    save_run(tmp_path)
    run, step = tmp_path / "run", str(manager.find(tmp_path / "run"))
    records = {
        run: {"name": "run"},
        run / "evaluations" / "1": {"name": "first", "checkpoint": step},
        run / "evaluations" / "2": {"name": "second", "checkpoint": step},
        run / "evaluations" / "3": {"name": "another step", "checkpoint": "elsewhere"},
    }
    for folder, record in records.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(json.dumps(record))
    assert export._evaluation(run, Path(step)).name == "second"
    assert export._evaluation(run, Path("other")).name == "run"


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_an_exported_file_says_what_it_is_when_imported_again(tmp_path, form, capsys):
    description = {
        "model": "small_resnet",
        "kwargs": {"widths": [4, 8], "stem_stride": 2},
        "init": "torch",
        "normalization": {"mean": [0.3], "std": [0.4]},
        "precision": "float32",
        "num_classes": 3,
        "image_shape": [16, 16, 1],
        "class_names": ["a", "b", "c"],
    }
    bundle = described.from_description(description)
    variables = jax.tree.map(np.asarray, bundle.init(jax.random.key(0)))
    file = tmp_path / "student.safetensors"
    if form == "torch":
        file, _ = torch_export.export(bundle, variables, tmp_path, description)
    else:
        safetensors_file.export(bundle, variables, file, {"description": json.dumps(description)})
    import_network.run(source="file", file=str(file), out=str(tmp_path / "again"))
    again, restored, meta, _ = networks.load(str(tmp_path / "again"))
    net = meta["config"]["net"]
    assert net["kwargs"]["stem_stride"] == 2 and net["class_names"] == ["a", "b", "c"]
    assert "3 classes (exported by ard_jax, as the file says)" in capsys.readouterr().out
    images = np.random.default_rng(0).random((4, 16, 16, 1), np.float32)
    jax.tree.map(np.testing.assert_array_equal, restored, variables)
    # Equal arrays in two places of memory: some processors' products round by how an array is aligned.
    np.testing.assert_allclose(
        again.apply(restored, images, False)[0], bundle.apply(variables, images, False)[0],
        rtol=0, atol=1e-6,
    )  # fmt: skip
