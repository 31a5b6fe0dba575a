"""A run's table, CSV and page, from made-up evaluations."""

import base64
import csv
import io
import re

import numpy as np
import pytest
from evaluations import arrays, evaluation, make_metrics, net, suite
from pages import Page
from PIL import Image

from ard_jax.reporting import plots, run_page
from ard_jax.reporting.record import Evaluation, read_evaluation

HOSTILE = '<script>alert("x")</script> & $\\frac{'


def record(values=None, **fields):
    return Evaluation.from_json(evaluation(**fields) if values is None else values)


def make_images(n=12, size=8, channels=1):
    rng = np.random.default_rng(1)
    clean, labels = rng.random((n, size, size, channels)), np.arange(n) % 10
    return {
        "clean": clean,
        "adversarial": np.clip(clean + rng.choice([-0.2, 0.0, 0.2], clean.shape), 0, 1),
        "labels": labels,
        "predicted_clean": labels,
        "predicted_adversarial": np.where(np.arange(n) % 3, labels, 7),
        "caption": "student (best), PGD_sat.",
    }


def test_summary_table_numbers_and_alignment():
    text = run_page.summary_table(record())
    lines = text.splitlines()
    assert lines[0] == "ciard_digits: accuracy in % (digits, test, 360 images, linf eps 0.2)"
    row = next(line for line in lines if line.startswith("student (best)"))
    # clean, three attacks, the transfer, the worst case, and (95 + 59.25) / 2 for PGD_sat
    assert row.split()[2:] == ["95.00", "61.25", "59.25", "57.25", "81.23", "54.25", "77.12"]
    rows = [line for line in lines if re.match(r"(student|robust|clean) .*\d$", line)]
    assert len(rows) == 4 and len({len(line) for line in rows}) == 1
    assert " - " in rows[2]  # no transfer attack on the teacher
    for part in (
        "selected on the validation split",
        "  robust (small_resnet): trained by recipe trades; clean 92.00 %, PGD_sat 63.00 %",
        "  clean: checkpoint clean.ckpt; clean 99.00 %",
        "A note.",
        "  ! The clean teacher is not robust.",
    ):
        assert part in text
    assert max(map(len, lines)) <= 120


def test_csv_has_every_number():
    values = evaluation()
    values["nets"]['quote " and, comma'] = {"clean": "nan"}
    values["nets"]["student (last)"] |= {
        "autoattack": {"autoattack": suite(("apgd-ce", 0.5))}, "noise": {"uniform": 0.9},
    }  # fmt: skip
    read = csv.DictReader(io.StringIO(run_page.csv_text(record(values))))
    rows = {(row["net"], row["attack"]): row for row in read}
    assert len(rows) == 4 * 5 + 1 + 1 + 2
    cell = rows["robust teacher", "pgd_sat"]
    result = values["nets"]["robust teacher"]["attacks"]["pgd_sat"]
    expected = {name: result[name] for name in ("accuracy", "weighted", "nrr", "worst_class")}
    expected |= dict(zip(("ci95_low", "ci95_high"), result["ci95"], strict=True))
    assert {name: float(cell[name]) for name in expected} == expected
    assert cell["role"] == "teacher" and cell["label"] == "PGD_sat" and cell["step"] == "600"
    assert float(rows["student (best)", "worst_case"]["accuracy"]) == 0.6125 - 0.07
    assert rows['quote " and, comma', "clean"]["accuracy"] == "nan"
    assert rows["student (last)", "autoattack after apgd-ce"]["accuracy"] == "0.5"
    assert rows["student (last)", "uniform noise"]["accuracy"] == "0.9"


def test_full_report_holds_everything_and_needs_nothing():
    values = evaluation()
    flags = {name: array for name, array in arrays(values).items() if "(last)" not in name}
    own = {"clean": make_metrics(50)}
    text = run_page.render(record(values), make_metrics(), make_images(), flags, own)
    page = Page(text)
    for name in values["nets"]:
        assert f"<tr><th>{name}</th>" in text
    for attack in values["attacks"].values():
        assert f"<th><span>{attack['label']}</span></th>" in text
    for part in (
        "<dd>2 min 23 s</dd>", "<dd>5,120 images/s</dd>", "61.25", "trained by recipe trades",
        'title="95 % interval: 54.2 to 64.2"', values["command"],
        "&#34;itt_start&#34;: 51", "8/255", "jax 0.10.2", "The clean teacher is not robust.",
        "AutoAttack was not run", "Accuracy: student", "Accuracy: robust", "Loss terms", "Learning rates",
        "Push scale", "Temperatures", "Clean teacher&#39;s own training: accuracy", "Which attack broke",
        "Confusion matrix of robust teacher, PGD_sat", "itt", "<th>one</th>", "123,456",
        "student (best), PGD_sat.", "Attack: PGD_sat.",
    ):  # fmt: skip
        assert part in text, part
    assert page.tags.count("svg") >= 6 and page.tags.count("img") == 3 * 12
    assert page.problems() == []
    assert page.tags.count("script") == 1 and "link" not in page.tags
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))  # ids of different figures are kept apart
    used = {link[1:] for link in page.links if link.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert used and used <= set(page.ids)
    assert len(text) < 1_000_000


def test_figures_are_the_same_each_time():
    line = plots.Line("a", np.arange(3.0), np.arange(3.0))
    assert plots.lines("x", "A figure", [line]) == plots.lines("x", "A figure", [line])
    drawn = [plots.matrix("x", "A matrix", np.eye(2), ["a", "b"]) for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_selected_on_test_is_said_loudly():
    text = run_page.render(record(select_on="test"), [])
    assert re.search(r'class="card warning"><strong>Model selection.*TEST set', text)
    assert "TEST set" not in run_page.render(record(), [])


def test_hostile_names_are_text():
    values = evaluation(**dict.fromkeys(("name", "command", "created", "select_on"), HOSTILE))
    values["nets"][HOSTILE] = net(0.5, 0.3)
    values["nets"][HOSTILE]["attacks"][HOSTILE] = {"accuracy": 0.5}
    values["attacks"]["fgsm"] = {"label": HOSTILE, HOSTILE: HOSTILE}
    values["teachers"][HOSTILE] = {"source": HOSTILE, "accuracy": {HOSTILE: 0.5}}
    values |= {
        "warnings": [HOSTILE],
        "config": {HOSTILE: {"</pre>": HOSTILE}},
        "versions": {HOSTILE: HOSTILE},
    }
    values["dataset"]["class_names"] = [HOSTILE] * 10
    metrics = [
        {"kind": "train", "step": 1, "loss_" + HOSTILE: 1.0, HOSTILE: 2.0},
        {"kind": "eval", "step": 1, "net": HOSTILE, "split": HOSTILE, "clean": 0.5},
        {"kind": "event", "step": 1, "event": HOSTILE + "_started"},
    ]
    text = run_page.render(record(values), metrics, make_images() | {"caption": HOSTILE})
    page = Page(text)
    assert page.tags.count("script") == 1 == text.count("<script") and HOSTILE not in text
    assert "".join(page.text).count(HOSTILE) > 20


def test_autoattack_stage_by_stage():
    values = evaluation()
    best = values["nets"]["student (best)"]
    stages = (("apgd-ce", 0.7), ("square", 0.6))
    best |= {
        "autoattack": {"autoattack": suite(*stages, upper_bound=True, broken_by={"square": 10})}
    }
    page = run_page.render(record(values), [])
    assert "AutoAttack was not run" in page and "This is an upper bound" in page
    assert "AutoAttack, attack by attack" in page and "(10)" in page
    text = run_page.summary_table(record(values))
    assert "AutoAttack, accuracy in % after each attack (100 images)" in text
    assert "  student (best): clean 90.00, apgd-ce 70.00, square 60.00" in text
    best["attacks"]["autoattack"] = {"accuracy": 0.6}
    best["autoattack"]["autoattack"]["upper_bound"] = False
    page = run_page.render(record(values), [])
    assert "AutoAttack is among the attacks" in page and "was not run" not in page


@pytest.mark.parametrize("lacking", [("attacks", "teachers", "seed"), ("dataset", "eps", "config")])
def test_missing_parts_of_the_record(lacking):
    values = record({key: value for key, value in evaluation().items() if key not in lacking})
    assert "61.25" in run_page.render(values, make_metrics(20), make_images())
    assert "61.25" in run_page.summary_table(values)


def test_nets_with_missing_or_odd_values():
    nan = {"clean": "nan", "attacks": {"cw": {"accuracy": "nan", "ci95": None}}}
    values = record(evaluation(nets={"only clean": {"clean": 0.5}, "nan": nan, "nothing": {}}))
    text = run_page.render(values, [])
    assert "50.00" in text and "nan" in text
    rows = {
        line.split()[0]: line.split()[1:]
        for line in run_page.summary_table(values).splitlines()
        if line
    }
    assert rows["nan"][0] == "nan" and set(rows["nothing"]) == {"-"}


def test_empty_evaluation_and_metrics():
    text = run_page.render(Evaluation(), [])
    assert "No network was evaluated" in text and "svg" not in Page(text).tags
    assert run_page.summary_table(Evaluation()) and run_page.csv_text(Evaluation()).count("\n") == 1


@pytest.mark.parametrize(
    "metrics",
    [
        [{"kind": "eval", "step": 0, "net": "student", "split": "test", "clean": 0.1}],
        [{"kind": "train", "step": 1, "loss": float("nan"), "accuracy": float("nan")}] * 2,
        [{"kind": "train", "step": s, "loss": 10.0**s, "lr": "inf"} for s in range(6)],
        [
            {"kind": "train", "step": 1, "note": "text"},
            {"kind": "train", "loss": 1.0},
            {"kind": "event"},
        ],
    ],
)
def test_few_and_odd_metrics(metrics):
    assert "student (best)" in run_page.render(record(), metrics)


def _decode(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


def test_images_are_magnified_and_differences_centred():
    clean = np.full((2, 8, 8, 1), 0.5)
    adversarial = clean.copy()
    adversarial[0, 0, 0], adversarial[0, 7, 7] = 0.6, 0.45
    images = {"clean": clean, "adversarial": adversarial, "labels": [0, 1]}
    images |= {"predicted_clean": [0, 1], "predicted_adversarial": [1, 12]}
    rows, factor = run_page.image_rows(images, ("zero", "one"))
    assert factor == pytest.approx(5.0, rel=1e-4)
    picture = _decode(rows[0]["difference"])
    assert picture.shape == (96, 96)
    blocks = picture.reshape(8, 12, 8, 12).transpose(0, 2, 1, 3).reshape(8, 8, -1)
    assert (blocks == blocks[..., :1]).all()  # nearest neighbour: every pixel a flat square
    assert blocks[0, 0, 0] == 255 and blocks[7, 7, 0] == 64 and blocks[3, 3, 0] == 128
    assert (_decode(rows[1]["clean"]) == 128).all()
    assert rows[0]["label"] == "zero" and rows[0]["predicted_adversarial"] == "one"
    assert rows[0]["clean_right"] and not rows[0]["adversarial_right"]
    assert rows[1]["predicted_adversarial"] == "12"


def test_confidences_stand_beside_what_the_net_says():
    sure = {"confidence_clean": np.full(12, 0.987), "confidence_adversarial": np.full(12, np.nan)}
    text = run_page.render(record(), [], make_images() | sure)
    assert text.count("<small>98.7 %</small>") == 12 and "with its confidence" in text
    assert "with its confidence" not in run_page.render(record(), [], make_images())


def test_attack_parameters_that_are_the_same_stand_below():
    values = evaluation()
    page = run_page.render(record(values), [])
    assert "The same in all that have it: norm linf; step size 2/255; restarts 1." in page
    assert "<tr><th>norm</th>" not in page and "<tr><th>steps</th><td" in page


def test_other_sizes_channels_and_values():
    rows, _ = run_page.image_rows(make_images(2, 32, 3), ())
    assert _decode(rows[0]["clean"]).shape == (96, 96, 3) and rows[1]["label"] == "1"
    images = make_images(2, 64, 2)
    rows, factor = run_page.image_rows(images | {"adversarial": images["clean"]}, ())
    assert factor == 1.0 and (_decode(rows[0]["difference"]) == np.full((128, 128), 128)).all()
    assert run_page.image_rows(images | {"adversarial": np.full((2, 64, 64, 2), np.nan)}, ())[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.arange(3)}, "12 images, but .*'labels': 3"),
        ({"adversarial": np.zeros((12, 8, 8))}, r"\(12, 8, 8, 1\) and adversarial \(12, 8, 8\)"),
        ({"labels": None}, "lacks .*labels"),
    ],
)
def test_images_that_do_not_fit(change, message):
    images = {k: v for k, v in (make_images() | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        run_page.render(record(), [], images)


def test_an_edited_record_counts_as_missing(tmp_path, caplog):
    made = Evaluation.from_json(evaluation())
    path = tmp_path / "evaluation.json"
    path.write_text(made.text())
    assert read_evaluation(tmp_path) == made
    path.write_text(path.read_text().replace("0.6125", "0.7125", 1))
    assert read_evaluation(tmp_path) is None
    assert "evaluation.json was changed after it was written" in caplog.text
