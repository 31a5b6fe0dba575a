"""The model card: every number with the attack that measured it, nothing claimed that was not measured."""

import ast
import json
import re
import sys

import jax
import numpy as np
import pytest
from evaluations import attack, evaluation, net, suite

from ard_jax.interop import onnx, safetensors_file, stablehlo, torch_export
from ard_jax.models import described, num_params
from ard_jax.models.bundle import normalization_constants
from ard_jax.reporting import model_card
from ard_jax.reporting.record import Evaluation

DESCRIPTION = {
    "model": "small_resnet",
    "kwargs": {"widths": [4, 6]},
    "init": "torch",
    "normalization": {"mean": [0.25], "std": [0.5]},
    "precision": "float32",
    "num_classes": 3,
    "image_shape": [8, 8, 1],
    "class_names": ["zero", "o|ne", "<b>two</b>"],
}
META = {
    "step": 40,
    "epoch": 8,
    "best": {"step": 40, "epoch": 8, "score": 0.7,
             "scores": {"student": {"clean": 0.9125, "pgd_trades": 0.4875}}},
    "config": {
        "name": "card_test", "seed": 3, "epochs": 9, "batch_size": 64, "eps": 0.1, "norm": "linf",
        "select_on": "validation", "precision": "bfloat16", "ema_decay": 0.0, "swa_start": 0,
        "data": {"name": "digits", "holdout": 0.1, "split_seed": 0, "augment": "crop"},
        "student_optim": {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.0005, "schedule": "cosine"},
        "attack": {"name": "trades_train", "steps": 10}, "method": {"name": "trades", "beta": 6.0},
        "train_split": "1294 images, 2fe405fe", "teachers": {}, "net": DESCRIPTION,
    },
}  # fmt: skip
IMPORTED = {
    "step": 0, "epoch": 0, "config": {"net": DESCRIPTION},
    "origin": {
        "source": "some_teacher", "page": "https://example.org/x", "file": "net.pth", "sha256": "ab12",
        "format": "torch zip", "family": "akamaster option-A ResNet", "file_metadata": {"epoch": 164},
        "normalization_from": "given by --normalization", "imported": "2026-01-02T03:04:05+00:00",
        "test": {"data": "cifar10", "clean": 0.9339, "images": 10000},
        "published": {"clean": 84.92, "robust": 52.5, "attack": "AutoAttack, Linf 8/255",
                      "numbers_from": "the README"},
    },
}  # fmt: skip


def record(autoattack=True):
    """Best and last student and a teacher; AutoAttack on the first 100 images."""
    attacks = {"pgd_sat": "PGD_sat", "transfer_cw_inf_robust": "CW_inf through robust teacher",
               "square100": "Square, 100 queries"}  # fmt: skip
    best = net(0.9312, 0.5311, attacks=attacks, step=40, worst_case={"accuracy": 0.4044})
    found = evaluation(
        eps=8 / 255, select_on="test",
        attacks={name: {"label": label, "norm": "linf", "eps": 8 / 255, "step_size": 2 / 255, "steps": 20}
                 for name, label in attacks.items()},
        nets={"student (best)": best, "student (last)": net(0.9471, 0.4982, attacks=attacks, step=50),
              "robust teacher": net(0.9999, 0.5, "teacher")},
        teachers={"robust": {"model": "small_resnet", "source": "a recipe", "accuracy": {"clean": 0.9999}}},
        warnings=["student (best): the gradients mislead", "student (last): not of this one"],
    )  # fmt: skip
    if autoattack:
        found["attacks"]["autoattack"] = {
            "label": "AutoAttack, first 100", "eps": 8 / 255, "norm": "linf",
            "attacks": ["apgd-ce", "apgd-t"], "version": "standard",
        }  # fmt: skip
        best["attacks"]["autoattack"] = attack(0.9312, 0.4123, worst_class=0.0321)
        best["autoattack"] = {"autoattack": suite(("apgd-t", 0.4123))}
    return found


def card(tmp_path, meta=META, evaluation=None, *, description=DESCRIPTION, **fields):
    bundle = described.from_description(description)
    constants = normalization_constants(bundle.normalization, bundle.image_shape[-1])
    known = Evaluation.from_json(evaluation) if evaluation else None
    made = model_card.Card(description, num_params(bundle), constants, meta, known, **fields)
    model_card.write(tmp_path / "model_card.md", made)
    return (tmp_path / "model_card.md").read_text()


def rows_of(text, heading):
    """Rows of the first table under a heading: first cell -> {column title: cell}."""
    part = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in cells}) == 1  # a broken table is shown as text
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


def test_every_accuracy_names_its_attack_radius_images_and_meaning(tmp_path):
    rows = rows_of(card(tmp_path, evaluation=record()), "Accuracy")
    clean = rows["none (clean)"]
    assert (clean["accuracy"], clean["95 % interval"]) == ("93.12", "91.1 to 94.1")
    assert clean["student (last)"] == "94.71" and "robust teacher" not in clean
    assert rows["PGD_sat"] == {
        "attack": "PGD_sat", "accuracy": "53.11", "95 % interval": "48.1 to 58.1",
        "student (last)": "49.82", "norm, eps": "linf 8/255", "images": "360",
        "attack's budget": "20 steps of 2/255", "what the number is": "upper bound",
    }  # fmt: skip
    auto = rows["AutoAttack, first 100"]
    assert (auto["accuracy"], auto["images"]) == ("41.23", "100")
    assert auto["what the number is"] == "**AutoAttack, version standard**"
    assert auto["attack's budget"] == "apgd-ce, apgd-t"
    kinds = {name: row["what the number is"] for name, row in rows.items()}
    assert kinds["CW_inf through robust teacher"] == "upper bound; black box by transfer"
    assert kinds["Square, 100 queries"] == "upper bound; black box by queries"


def test_what_to_publish_and_how_it_was_selected(tmp_path):
    text = card(tmp_path, evaluation=record())
    assert (
        "clean 93.12 %, AutoAttack, first 100 41.23 %, linf eps 8/255, on 100 test images" in text
    )
    assert "selected on the TEST set" in text
    assert "weakest class: 83.12 % clean, 3.21 % under AutoAttack" in text
    assert "the gradients mislead" in text and "not of this one" not in text


@pytest.mark.parametrize("upper_bound", [True, None])
def test_without_autoattack_every_number_is_an_upper_bound(tmp_path, upper_bound):
    values = record(autoattack=upper_bound is not None)
    if upper_bound:  # as where some of its attacks are not defined for so few classes
        values["nets"]["student (best)"]["autoattack"]["autoattack"]["upper_bound"] = True
    text = card(tmp_path, evaluation=values)
    assert "**No number of AutoAttack.** Robust to all attacks above at once: 40.44 %" in text
    assert "**AutoAttack, version" not in text and "To publish" not in text


def test_training(tmp_path):
    text = card(tmp_path, evaluation=record())
    for part in (
        "# card_test\n", "**trades** (beta=6.0)", "digits, training split 1294 images, 2fe405fe",
        "trades_train, 10 steps, linf eps 0.1", "9 epochs of batches of 64", "learning rate 0.2",
        "seed 3, bfloat16", "step 40, epoch 8",
        "teacher, robust (small_resnet): a recipe; clean 99.99 %",
    ):  # fmt: skip
        assert part in text, part


def test_without_an_evaluation_nothing_is_claimed(tmp_path):
    text = card(tmp_path)
    assert "**not measured**" in text and "do not rely on its robustness" in text
    assert "clean 91.25 %, pgd_trades 48.75 % on the validation split" in text
    assert "## Accuracy" in text and "To publish" not in text


@pytest.mark.parametrize("net", ["student EMA (best)", "student (last)"])
def test_an_evaluation_of_another_network_is_not_used(tmp_path, net):
    text = card(tmp_path, evaluation=record(), net=net)  # last is of step 50, the files of step 40
    assert "not of this network" in text and "**not measured**" in text
    assert "93.12" not in text and "41.23" not in text and "weakest class" not in text


def test_the_named_network_is_described(tmp_path):
    rows = rows_of(card(tmp_path, META | {"step": 50}, record(), net="student (last)"), "Accuracy")
    assert rows["none (clean)"]["accuracy"] == "94.71"
    assert rows["none (clean)"]["student (best)"] == "93.12"


def test_an_imported_network_has_an_origin_instead_of_a_method(tmp_path):
    text = card(tmp_path, IMPORTED)
    for part in (
        "# net.pth", "imported by ard_jax", "https://example.org/x", "SHA-256 `ab12`",
        "akamaster option-A ResNet", "given by --normalization", '{"epoch": 164}',
        "Published, not measured here: clean 84.92 %, robust 52.5 % (AutoAttack, Linf 8/255); from",
        "Measured when it was imported: clean 93.39 % on 10000 test images of cifar10",
        "**not measured**",
    ):  # fmt: skip
        assert part in text, part
    assert "How it was trained" not in text


def test_an_evaluated_imported_network(tmp_path):
    values = record()
    nets = values["nets"]
    nets["imported network"] = nets.pop("student (best)") | {"step": 0}
    text = card(tmp_path, IMPORTED, values)
    assert rows_of(text, "Accuracy")["PGD_sat"]["accuracy"] == "53.11"


def test_the_network(tmp_path):
    rows = rows_of(card(tmp_path), "The network")
    values = {name: row[""] for name, row in rows.items()}
    # 8x8 digits network: stem 36 + 8, block 288 + 16, block 216 + 324 + 24 + shortcut 24 + 12, head 21
    assert values["parameters"] == "969"
    assert values["architecture"] == "small_resnet (widths=[4, 6])"
    assert "mean [0.25], std [0.5]" in values["normalisation inside"]
    assert values["input"].startswith("float32 [B, 8, 8, 1] in [0, 1]")
    assert values["classes, in order"] == r"zero, o\|ne, &lt;b>two&lt;/b>"
    many = DESCRIPTION | {"num_classes": 100, "class_names": [f"c{i}" for i in range(100)]}
    assert "c19, ... (100 in all)" in card(tmp_path, description=many)
    plain = card(tmp_path, description=DESCRIPTION | {"normalization": "none"})
    assert rows_of(plain, "The network")["normalisation inside"][""] == "none"


def test_calls_are_shown_for_the_files_that_are_there_and_are_python(tmp_path):
    files = []
    for name in (
        "student.onnx",
        "student.stablehlo",
        "student.safetensors",
        "student.pt",
        "model.py",
    ):
        files.append(tmp_path / name)
        files[-1].write_bytes(b"12345678")
    text = card(tmp_path, files=files)
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 4
    for block in blocks:
        ast.parse(block)
    for file in files[:4]:
        assert any(file.name in block for block in blocks)
    rows = rows_of(text, "Files")
    digest = "ef797c8118f02dfb649607dd5d3f8c7623048c9c063d532cc95c5ed7a898a64f"
    assert rows["`model.py`"]["SHA-256"] == f"`{digest}`"
    only = card(tmp_path, files=files[:1])
    assert "### ONNX" in only and "PyTorch: `" not in only.split("## How to call it")[1]


@pytest.fixture(scope="module")
def network():
    """(bundle, variables, uint8 images, their logits)."""
    bundle = described.from_description(DESCRIPTION)
    variables = jax.jit(bundle.init)(jax.random.key(0))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    apply = jax.jit(lambda x: bundle.apply(variables, x, False)[0])
    return bundle, variables, pixels, apply(pixels.astype(np.float32) / 255)


@pytest.mark.parametrize(
    "name, packages",
    [
        ("student.safetensors", []),
        ("student.stablehlo", ["flatbuffers"]),
        ("student.pt", ["torch"]),
        pytest.param("student.onnx", ["jax2onnx", "onnxruntime"], marks=pytest.mark.slow),
    ],
)
def test_the_shown_calls_run_and_give_the_logits(tmp_path, monkeypatch, network, name, packages):
    for package in packages:
        pytest.importorskip(package, reason=f"{name} is called through it")
    bundle, variables, pixels, expected = network
    path, metadata = tmp_path / name, {"description": json.dumps(DESCRIPTION)}
    if name == "student.pt":
        torch_export.export(bundle, variables, tmp_path, DESCRIPTION)
    elif name == "student.safetensors":
        safetensors_file.export(bundle, variables, path, metadata)
    else:
        {"student.onnx": onnx, "student.stablehlo": stablehlo}[name].export(bundle, variables, path)
    (block,) = re.findall(r"```python\n(.*?)```", card(tmp_path, files=[path]), re.S)
    if name == "student.pt":
        import torch

        pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        monkeypatch.delitem(sys.modules, "model", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = {"pixels": pixels}
    exec(block, names)
    sys.modules.pop("model", None)
    # Other libraries sum in another order; a wrong normalisation or layout is off by far more.
    np.testing.assert_allclose(names["logits"], expected, rtol=0, atol=1e-5)


def test_checks_of_the_formats(tmp_path):
    shared = {"threads": 2, "images": "1000 digits test images", "attacks": ["pgd: 41 % and 41 %"]}
    latency = [
        {"name": "jax (checkpoint)", "size": None, "difference": None, "agreement": None,
         "latency": {1: 0.5, 64: 0.03125}, "note": ""} | shared,
        {"name": "onnx", "size": 1234567, "difference": 1.25e-7, "agreement": 1.0, "latency": {},
         "note": "a note"} | shared,
    ]  # fmt: skip
    text = card(tmp_path, checks=latency)
    rows = rows_of(text, "Each format against the checkpoint")
    assert rows["onnx"] == {
        "format": "onnx", "MB": "1.235", "logit difference": "1.2e-07", "same predictions": "100.00%",
        "ms per image, batch 1": "-", "ms per image, batch 64": "-",
    }  # fmt: skip
    assert rows["jax (checkpoint)"]["ms per image, batch 64"] == "0.0312"
    for part in (
        "on 1000 digits test images",
        "2 threads",
        "- pgd: 41 % and 41 %",
        "- onnx: a note",
    ):
        assert part in text


def test_a_meta_without_details_still_gives_a_card(tmp_path):
    text = card(tmp_path, {"config": {"net": DESCRIPTION}})
    assert "**unknown**" in text and "None" not in text
