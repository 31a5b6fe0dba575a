"""Tables, CSV and the HTML report, from made-up evaluations."""

import csv
import html.parser
import math
import re

import numpy as np
import pytest

from ard_jax.reporting import report, run_page

HOSTILE = '<script>alert("x")</script> & $\\frac{'


def make_net(clean, robust, role="student", classes=10, **extra):
    rng = np.random.default_rng(int(1000 * clean))
    attacks = {}
    for index, name in enumerate(["fgsm", "pgd_sat", "pgd_trades", "cw"]):
        accuracy = max(robust - 0.02 * index, 0.0)
        attacks[name] = {
            "accuracy": accuracy,
            "ci95": [max(accuracy - 0.03, 0), min(accuracy + 0.03, 1)],
            "weighted": (clean + accuracy) / 2,
            "nrr": 2 * clean * accuracy / (clean + accuracy),
            "worst_class": accuracy / 2,
            "per_class": list(np.clip(accuracy + rng.normal(0, 0.1, classes), 0, 1)),
        }
    return {
        "role": role,
        "model": "small_resnet",
        "num_params": 123456,
        "step": 600,
        "epoch": 75,
        "clean": clean,
        "clean_ci95": [clean - 0.02, clean + 0.01],
        "attacks": attacks,
        "per_class_clean": list(np.clip(clean + rng.normal(0, 0.03, classes), 0, 1)),
        "worst_class_clean": clean - 0.1,
        "worst_case": {"accuracy": robust - 0.07, "weighted": 0.5, "nrr": 0.6},
        "eps_sweep": {
            "attack": "pgd_sat",
            "eps": [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4],
            "accuracy": [
                clean / (1 + math.exp(12 * (e - 0.4 * robust))) for e in np.linspace(0, 0.6, 8)
            ],
        },
        **extra,
    }


def make_evaluation():
    nets = {
        "student (best)": make_net(0.95, 0.6125),
        "student (last)": make_net(0.9611, 0.57),
        "robust teacher": make_net(0.92, 0.65, role="teacher"),
        "clean teacher": make_net(0.99, 0.08, role="teacher"),
    }
    nets["student (best)"]["attacks"]["transfer_pgd_robust"] = {"accuracy": 0.8123}
    attack = {"eps": 0.2, "step_size": 0.025, "steps": 20, "start": "uniform", "restarts": 1}
    labels = {"fgsm": "FGSM", "pgd_sat": "PGD_sat", "pgd_trades": "PGD_trades", "cw": "CW"}
    attacks = {name: {"label": label, **attack} for name, label in labels.items()}
    attacks["fgsm"] = {"label": "FGSM", "eps": 8 / 255, "steps": 1, "loss": "cross-entropy"}
    attacks["transfer_pgd_robust"] = {"label": "Transfer PGD_trades (robust)", **attack}
    return {
        "schema": 1,
        "name": "ciard_digits",
        "created": "2025-11-21T06:40:00",
        "seed": 0,
        "dataset": {
            "name": "digits",
            "split": "test",
            "num_examples": 360,
            "num_classes": 10,
            "class_names": [f"class {digit}" for digit in range(10)],
            "image_shape": [8, 8, 1],
        },
        "eps": 0.2,
        "norm": "linf",
        "select_on": "validation",
        "command": "python -m ard_jax.main --config=configs/ciard_digits.py",
        "versions": {"ard_jax": "0.1.0", "jax": "0.10.2", "python": "3.11"},
        "config": {"method": {"name": "ciard", "itt_start": 51}, "data": {"name": "digits"}},
        "attacks": attacks,
        "teachers": {
            "robust": {
                "source": "trained by recipe trades, cached in runs/teachers/robust-1a2b",
                "model": "small_resnet",
                "accuracy": {"clean": 0.92, "pgd_sat": 0.63},
            },
            "clean": {"source": "checkpoint clean.ckpt", "accuracy": {"clean": 0.99}},
        },
        "nets": nets,
        "timing": {"train_seconds": 143.2, "images_per_second": 5120.0},
        "warnings": ["The clean teacher is not robust."],
    }


def make_metrics(steps=1000):
    records = []
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        fade = math.exp(-step / 300)
        records.append(
            {
                "kind": "train",
                "step": step,
                "epoch": step // 8,
                "time": 1.7e9 + step,
                "loss": 0.2 + fade + rng.normal(0, 0.03),
                "loss_robust": 0.15 + 0.6 * fade + rng.normal(0, 0.02),
                "loss_clean": 0.1 + 0.4 * fade + rng.normal(0, 0.02),
                "loss_push": -0.05 * (1 - fade),
                "accuracy": 0.97 - 0.8 * fade,
                "robust_accuracy": 0.7 - 0.6 * fade,
                "lr_student": 0.1 if step < 700 else 0.01 if step < 900 else 1e-4,
                "push_scale": 10.0 ** (step // 250),
                "temperature_robust": 1 + 0.2 * math.sin(step / 90),
                "images_per_second": 5000 + rng.normal(0, 200),
            }
        )
        if step % 50 == 0:
            for net, top in (("student", 0.6), ("robust", 0.65)):
                records.append(
                    {
                        "kind": "eval",
                        "step": step,
                        "split": "validation",
                        "net": net,
                        "clean": 0.95 - 0.7 * fade,
                        "pgd_trades": top * (1 - fade),
                    }
                )
    records.append({"kind": "event", "step": 400, "event": "itt_started"})
    return records


def make_images(n=12, size=8, channels=1):
    rng = np.random.default_rng(1)
    clean = rng.random((n, size, size, channels))
    return {
        "clean": clean,
        "adversarial": np.clip(clean + rng.choice([-0.2, 0.0, 0.2], clean.shape), 0, 1),
        "labels": np.arange(n) % 10,
        "predicted_clean": np.arange(n) % 10,
        "predicted_adversarial": np.where(np.arange(n) % 3, np.arange(n) % 10, 7),
        "caption": "student (best), PGD_sat.",
    }


class _Page(html.parser.HTMLParser):
    """Collects tags, ids and links; fails on a tag that closes what is not open."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.ids, self.open, self.text = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)
        self.handle_attrs(attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.handle_attrs(attrs)

    def handle_attrs(self, attrs):
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def write(tmp_path, evaluation, metrics=(), images=None):
    path = report.write_report(tmp_path / "run", evaluation, list(metrics), images)
    assert path == tmp_path / "run" / "report.html"
    text = path.read_text(encoding="utf-8")
    return text, _Page(text)


def test_summary_table_numbers_and_alignment():
    text = report.summary_table(make_evaluation())
    lines = text.splitlines()
    assert lines[0] == "ciard_digits: accuracy in % (digits, test, 360 images, linf eps 0.2)"
    row = next(line for line in lines if line.startswith("student (best)"))
    # clean, four attacks, the transfer, the worst case, and (95 + 59.25) / 2 for PGD_sat
    expected = ["95.00", "61.25", "59.25", "57.25", "55.25", "81.23", "54.25", "77.12"]
    assert row.split()[2:] == expected
    rows = [line for line in lines if re.match(r"(student|robust|clean) .*\d$", line)]
    assert len(rows) == 4 and len({len(line) for line in rows}) == 1
    assert [match.end() for match in re.finditer(r"\d\d\.\d\d", rows[0])] == [
        match.end() for match in re.finditer(r"\d\d\.\d\d|(?<= )-(?= )", rows[2])
    ]
    assert " - " in rows[2]  # no transfer attack on the teacher
    for part in (
        "selected on the validation split",
        "  robust (small_resnet): trained by recipe trades, cached in runs/teachers/robust-1a2b; "
        "clean 92.00 %, PGD_sat 63.00 %",
        "  clean: checkpoint clean.ckpt; clean 99.00 %",
        "  ! The clean teacher is not robust.",
    ):
        assert part in text
    assert max(map(len, lines)) <= 120


def test_summary_table_folds_at_width():
    narrow = report.summary_table(make_evaluation(), width=50)
    assert sum(line.startswith("student (best)") for line in narrow.splitlines()) > 1
    table = narrow.split("The best checkpoint")[0].splitlines()[1:]
    assert max(map(len, table)) <= 50
    for value in ("95.00", "61.25", "59.25", "57.25", "55.25", "81.23", "54.25", "77.12"):
        assert value in narrow


def test_selected_on_test_is_said_loudly(tmp_path):
    evaluation = make_evaluation() | {"select_on": "test"}
    assert "selected on the TEST set" in report.summary_table(evaluation)
    text, _ = write(tmp_path, evaluation)
    assert re.search(r'class="card warning"><strong>Model selection.*TEST set', text)
    text, _ = write(tmp_path, make_evaluation())
    assert "TEST set" not in text and "selected on the validation split" in text


def test_main_attack_choice():
    evaluation = make_evaluation()
    assert report.main_attack(evaluation) == "pgd_sat"
    assert report.main_attack(evaluation | {"main_attack": "cw"}) == "cw"
    assert report.main_attack({"attacks": {"bim": {}, "pgd_trades": {}}}) == "pgd_trades"
    assert report.main_attack({"attacks": {"bim": {}, "cw": {}}}) == "bim"
    assert report.main_attack({}) is None


def test_weighted_is_computed_where_the_record_lacks_it():
    net = {"clean": 0.9, "attacks": {"cw": {"accuracy": 0.5}, "bim": {"weighted": 0.1}}}
    assert report.weighted(net, "cw") == pytest.approx(0.7)
    assert report.weighted(net, "bim") == 0.1
    assert report.weighted(net, "fgsm") is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(8 / 255, "8/255"), (0.2, "0.2"), (0, "0"), (0.03, "0.03"), (0.0123, "0.0123"), (None, "-")],
)
def test_eps_text(value, text):
    assert report.eps_text(value) == text


def test_markdown_table():
    evaluation = make_evaluation()
    evaluation["nets"]["a|b\n<i>"] = {"clean": 0.5}
    lines = report.markdown_table(evaluation).splitlines()
    assert lines[0].startswith("| net | clean | FGSM | PGD_sat |")
    assert lines[2].startswith("| student (best) | 95.00 | 61.25 | 59.25 |")
    assert lines[-1].startswith("| a\\|b &lt;i> | 50.00 | - |")
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_csv_has_every_number(tmp_path):
    evaluation = make_evaluation()
    evaluation["nets"]['quote " and, comma'] = {"clean": float("nan")}
    path = report.write_csv(evaluation, tmp_path / "results.csv")
    with open(path, newline="") as file:
        rows = {(row["net"], row["attack"]): row for row in csv.DictReader(file)}
    assert len(rows) == 4 * 6 + 1 + 1
    cell = rows["robust teacher", "cw"]
    result = evaluation["nets"]["robust teacher"]["attacks"]["cw"]
    for column, value in {
        "accuracy": result["accuracy"],
        "ci95_low": result["ci95"][0],
        "ci95_high": result["ci95"][1],
        "weighted": result["weighted"],
        "nrr": result["nrr"],
        "worst_class": result["worst_class"],
    }.items():
        assert float(cell[column]) == value
    assert cell["role"] == "teacher" and cell["label"] == "CW" and cell["step"] == "600"
    assert float(rows["student (best)", "clean"]["accuracy"]) == 0.95
    assert float(rows["student (best)", "worst_case"]["accuracy"]) == 0.6125 - 0.07
    assert rows['quote " and, comma', "clean"]["accuracy"] == "nan"
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]


def test_full_report_holds_everything_and_needs_nothing(tmp_path):
    evaluation = make_evaluation()
    text, page = write(tmp_path, evaluation, make_metrics(), make_images())
    for name in evaluation["nets"]:
        assert f"<tr><th>{name}</th>" in text
    for attack in evaluation["attacks"].values():
        assert f"<th><span>{attack['label']}</span></th>" in text
    for part in (
        "61.25",
        'title="95 % interval: 56.25 to 62.25"',
        "trained by recipe trades, cached in runs/teachers/robust-1a2b",
        "python -m ard_jax.main --config=configs/ciard_digits.py",
        "&#34;itt_start&#34;: 51",
        "8/255",
        "jax 0.10.2",
        "The clean teacher is not robust.",
        "AutoAttack was not run",
        "Accuracy: student",
        "Accuracy: robust",
        "Loss terms",
        "Learning rates",
        "itt",
        "class 9",
        "123,456",
        "student (best), PGD_sat.",
    ):
        assert part in text, part
    assert page.tags.count("svg") >= 6 and page.tags.count("img") == 3 * 12
    assert "script" not in page.tags and "link" not in page.tags
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))  # ids of different figures are kept apart
    used = {link[1:] for link in page.links if link.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert used and used <= set(page.ids)
    assert len(text) < 1_000_000
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_report_is_the_same_each_time(tmp_path):
    first, _ = write(tmp_path / "a", make_evaluation(), make_metrics(60), make_images())
    second, _ = write(tmp_path / "b", make_evaluation(), make_metrics(60), make_images())
    assert first == second


def test_hostile_names_are_text(tmp_path):
    evaluation = make_evaluation()
    for key in ("name", "command", "created", "select_on"):
        evaluation[key] = HOSTILE
    evaluation["nets"][HOSTILE] = make_net(0.5, 0.3)
    evaluation["nets"][HOSTILE]["attacks"][HOSTILE] = {"accuracy": 0.5}
    evaluation["attacks"]["fgsm"] = {"label": HOSTILE, HOSTILE: HOSTILE}
    evaluation["teachers"][HOSTILE] = {"source": HOSTILE, "accuracy": {HOSTILE: 0.5}}
    evaluation["warnings"] = [HOSTILE]
    evaluation["config"] = {HOSTILE: {"</pre>": HOSTILE}}
    evaluation["versions"] = {HOSTILE: HOSTILE}
    evaluation["dataset"]["class_names"] = [HOSTILE] * 10
    metrics = [
        {"kind": "train", "step": 1, "loss_" + HOSTILE: 1.0, HOSTILE: 2.0},
        {"kind": "eval", "step": 1, "net": HOSTILE, "split": HOSTILE, "clean": 0.5},
        {"kind": "event", "step": 1, "event": HOSTILE + "_started"},
    ]
    text, page = write(tmp_path, evaluation, metrics, make_images() | {"caption": HOSTILE})
    assert "script" not in page.tags and "<script" not in text
    assert "".join(page.text).count(HOSTILE) > 20


def test_autoattack_is_recognised(tmp_path):
    evaluation = make_evaluation()
    evaluation["attacks"]["autoattack"] = {"label": "AA"}
    text, _ = write(tmp_path, evaluation)
    assert "AutoAttack was not run" in text  # listed, but no net has a result
    evaluation["nets"]["student (best)"]["attacks"]["autoattack"] = {"accuracy": 0.5}
    text, _ = write(tmp_path, evaluation)
    assert "AutoAttack is among the attacks" in text and "was not run" not in text


@pytest.mark.parametrize(
    "lacking",
    [
        ["teachers", "config", "command", "versions", "timing", "warnings", "created", "seed"],
        ["attacks"],
        ["dataset"],
        ["eps", "select_on", "name"],
    ],
)
def test_missing_parts_of_the_record(tmp_path, lacking):
    evaluation = make_evaluation()
    for key in lacking:
        del evaluation[key]
    text, _ = write(tmp_path, evaluation, make_metrics(20), make_images())
    assert "student (best)" in text and "61.25" in text
    assert "student (best)" in report.summary_table(evaluation)
    assert "61.25" in report.markdown_table(evaluation)


def test_nets_with_missing_or_odd_values(tmp_path):
    evaluation = make_evaluation()
    evaluation["nets"] = {
        "only clean": {"clean": 0.5},
        "nan": {"clean": float("nan"), "attacks": {"cw": {"accuracy": "nan", "ci95": None}}},
        "nothing": {"attacks": None, "worst_case": None, "clean": None, "eps_sweep": None},
    }
    text, _ = write(tmp_path, evaluation)
    assert "50.00" in text and "nan" in text
    table = report.summary_table(evaluation).splitlines()
    assert next(line for line in table if line.startswith("nan")).split()[1] == "nan"
    assert set(next(line for line in table if line.startswith("nothing")).split()[1:]) == {"-"}


def test_empty_evaluation_and_metrics(tmp_path):
    text, page = write(tmp_path, {}, [])
    assert "No network was evaluated" in text and "svg" not in page.tags
    assert report.summary_table({}) and report.markdown_table({})
    assert report.write_csv({}, tmp_path / "a.csv").read_text().count("\n") == 1


@pytest.mark.parametrize(
    "metrics",
    [
        [{"kind": "train", "step": 1, "loss": 0.5, "accuracy": 0.1}],
        [{"kind": "eval", "step": 0, "net": "student", "split": "test", "clean": 0.1}],
        [{"kind": "train", "step": 1, "loss": float("nan"), "accuracy": float("nan")}] * 2,
        [{"kind": "train", "step": s, "loss": 10.0**s, "lr": "inf"} for s in range(6)],
        [{"kind": "train", "step": 1, "note": "text"}, {"kind": "train", "loss": 1.0}],
        [{"kind": "event", "event": "finished"}],
    ],
)
def test_few_and_odd_metrics(tmp_path, metrics):
    text, _ = write(tmp_path, make_evaluation(), metrics)
    assert "student (best)" in text


def test_series_keeps_the_last_of_a_step_and_thins():
    curves = report.series(
        [
            {"step": 2, "loss": 1.0},
            {"step": 1, "loss": 3.0, "epoch": 0},
            {"step": 2, "loss": 2.0},
            {"step": 3, "loss": "nan"},
        ]
    )
    assert list(curves) == ["loss"]
    steps, values = curves["loss"]
    np.testing.assert_array_equal(steps, [1, 2, 3])
    np.testing.assert_array_equal(values, [3.0, 2.0, np.nan])
    many = report.series([{"step": s, "x": float(s)} for s in range(30_000)])["x"]
    assert len(many[0]) == 300
    np.testing.assert_allclose(many[0], many[1])
    np.testing.assert_allclose(many[1].mean(), 14999.5)


def _decode(uri):
    import base64
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


def test_images_are_magnified_and_differences_centred():
    clean = np.full((2, 8, 8, 1), 0.5)
    adversarial = clean.copy()
    adversarial[0, 0, 0], adversarial[0, 7, 7] = 0.6, 0.45
    images = {"clean": clean, "adversarial": adversarial, "labels": [0, 1]}
    images |= {"predicted_clean": [0, 1], "predicted_adversarial": [1, 12]}
    rows, factor = run_page.image_rows(images, ["zero", "one"])
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


@pytest.mark.parametrize(("size", "channels", "shape"), [(32, 3, (96, 96, 3)), (64, 2, (128, 128))])
def test_colour_and_other_channels(size, channels, shape):
    rows, _ = run_page.image_rows(make_images(2, size, channels), [])
    assert _decode(rows[0]["clean"]).shape == shape
    assert rows[1]["label"] == "1"


def test_images_without_change_or_with_nan():
    images = make_images(2)
    rows, factor = run_page.image_rows(images | {"adversarial": images["clean"]}, [])
    assert factor == 1.0 and (_decode(rows[0]["difference"]) == 128).all()
    broken = images["clean"].copy()
    broken[0] = np.nan
    assert run_page.image_rows(images | {"adversarial": broken}, [])[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.arange(3)}, "12 images, but .*'labels': 3"),
        ({"adversarial": np.zeros((12, 8, 8))}, r"\(12, 8, 8, 1\) and adversarial \(12, 8, 8\)"),
    ],
)
def test_images_that_do_not_fit(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        report.write_report(tmp_path, make_evaluation(), [], make_images() | change)
    with pytest.raises(ValueError, match="lacks .*labels"):
        run_page.image_rows({"clean": 0, "adversarial": 0}, [])
