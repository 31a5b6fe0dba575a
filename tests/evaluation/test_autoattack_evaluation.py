"""AutoAttack in the evaluation of runs: the record, the files, the report, transfer, noise."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import tiny

from ard_jax import attacks, data, evaluate
from ard_jax.checkpoints import networks
from ard_jax.cli import train
from ard_jax.config import build, parse
from ard_jax.evaluation import autoattack, diagnostics, full, noise
from ard_jax.evaluation.accuracies import ExampleResults, summarize
from ard_jax.evaluation.evaluator import Evaluator, for_network
from ard_jax.reporting import run_page
from ard_jax.reporting.record import Evaluation, NetworkResult
from ard_jax.runtime import sharding

SUITES = ("autoattack_fast", "square100")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny naturally trained run with suites on the first 30 of 60 images: (experiment, folder)."""
    folder = tmp_path_factory.mktemp("finished")
    changes = {
        "attacks": ("fgsm", "pgd_sat", *SUITES),
        "max_examples": 60,
        "autoattack_examples": 30,
        "autoattack_nets": "students",
        "batch_size": 32,
        "save_images": True,
    }
    raw = tiny(folder, "natural", **{f"eval__{n}": v for n, v in changes.items()})
    experiment = parse.to_experiment(raw)
    return experiment, train.run(experiment).parent


@pytest.fixture(scope="module")
def evaluation(finished):
    return json.loads((finished[1] / "evaluation.json").read_text())


def linear(seed=0):
    """A classifier of the digits by class means: some accuracy, little robustness."""
    train_set = data.load("digits").train
    images = train_set.images.reshape(len(train_set), -1) / np.float32(255)
    means = np.stack([images[train_set.labels == c].mean(0) for c in range(10)])
    shift = -0.5 * (means**2).sum(1)
    return lambda x: 5 * (x.reshape(x.shape[0], -1) @ jnp.asarray(means.T) + jnp.asarray(shift))


def test_record(evaluation):
    assert set(SUITES) <= set(evaluation["attacks"])
    assert evaluation["attacks"]["autoattack_fast"]["label"] == (
        "AutoAttack fast (upper bound), first 30"
    )
    for net in evaluation["nets"].values():
        for name in SUITES:
            result = net["attacks"][name]
            assert result["num_examples"] == 30 and result["ci95"][0] < result["accuracy"] + 1e-9
            assert {"weighted", "nrr", "worst_class"} <= set(result)
        fast = net["autoattack"]["autoattack_fast"]
        assert fast["upper_bound"] and fast["num_examples"] == 30
        assert [s["attack"] for s in fast["stages"]] == ["apgd-ce", "apgd-t"]
        assert fast["stages"][-1]["accuracy"] == net["attacks"]["autoattack_fast"]["accuracy"]
        lost = round(30 * (fast["clean"] - fast["stages"][-1]["accuracy"]))
        assert sum(fast["broken_by"].values()) == lost
        curve = net["autoattack"]["square100"]["curve"]
        assert curve["accuracy"][-1] == net["attacks"]["square100"]["accuracy"]
        assert set(net["noise"]) == {"uniform", "gaussian"}


def test_flags_and_images(finished, evaluation):
    flags = np.load(finished[1] / "evaluation_flags.npz")
    images = np.load(finished[1] / "evaluation_images.npz")
    clean = data.load("digits").test.images[:30] / np.float32(255)
    for title, net in evaluation["nets"].items():
        robust = flags[f"{title}/autoattack_fast/correct"]
        assert robust.shape == (30,)
        assert robust.mean() == pytest.approx(net["attacks"]["autoattack_fast"]["accuracy"])
        np.testing.assert_array_equal(robust, flags[f"{title}/autoattack_fast/after/apgd-t"])
        assert flags[f"{title}/square100/queries"].max() <= 101
        moved = np.abs(images[f"{title}/autoattack_fast"] - clean).max((1, 2, 3))
        assert moved.max() <= evaluation["eps"] + 1e-6
        broken = flags[f"{title}/autoattack_fast/broken_by"] != ""
        np.testing.assert_array_equal(moved > 0, broken)


def test_the_worst_case_is_of_the_images_that_all_attacks_got(finished, evaluation):
    flags = np.load(finished[1] / "evaluation_flags.npz")
    for title, net in evaluation["nets"].items():
        names = (
            ("clean", "fgsm", "pgd_sat", *SUITES)
            if net["role"] == "student"
            else ("clean", "fgsm", "pgd_sat")
        )
        count = 30 if net["role"] == "student" else 60
        seen = [flags[f"{title}/{name}/correct"][:count] for name in names]
        assert net["worst_case"]["accuracy"] == pytest.approx(np.all(seen, axis=0).mean())
        assert net["worst_case"].get("num_examples", 60) == count
    assert any(note.startswith("Worst case of student (best)") for note in evaluation["notes"])


def test_without_an_attack_there_is_no_worst_case():
    right = np.array([True, True, False])
    results = ExampleResults({"clean": right}, {"clean": right.astype(int)}, np.zeros(3, int))
    assert summarize(results, 1, ["autoattack"]).worst_case is None


def test_attacks_of_several_radii_are_told():
    specs = {"pgd_sat": attacks.make("pgd_sat"), "l2": attacks.make("pgd_sat", 0.5, "l2")}
    right = np.array([True, False])
    names = ("clean", *specs)
    results = ExampleResults(
        dict.fromkeys(names, right), dict.fromkeys(names, np.zeros(2, int)), np.zeros(2, int)
    )
    (told,) = diagnostics.warnings("net", results, summarize(results, 1, specs), specs)
    assert "several radii (linf 0.03137, l2 0.5)" in told


def test_stored_batches_are_gone_when_the_run_is_finished(finished):
    assert not (finished[1] / "autoattack").exists()


def test_the_upper_bound_is_named_everywhere(finished, evaluation):
    text = run_page.summary_table(Evaluation.from_json(evaluation))
    assert "AutoAttack fast (upper bound), accuracy in % after each attack (30 images)" in text
    page = (finished[1] / "report.html").read_text()
    assert page.count("AutoAttack fast") == page.count("AutoAttack fast (upper bound)") > 0
    assert "AutoAttack was not run" in page and "AutoAttack is among" not in page
    assert "Black box: accuracy against queries" in page and "Noise of the same size" in page
    table = (finished[1] / "evaluation.csv").read_text()
    assert "autoattack_fast after apgd-ce" in table and "uniform noise" in table


@pytest.mark.slow
def test_evaluate_again_with_transfer_from_another_run(finished, tmp_path):
    experiment, folder = finished
    other = parse.to_experiment(
        tiny(tmp_path, "natural", seed=3, name="other", eval__attacks=("fgsm",))
    )
    source = train.run(other).parent
    path = train.evaluate_checkpoint(experiment, str(folder), ["fgsm"], str(source))
    record = json.loads((path.parent / "evaluation.json").read_text())
    student = record["nets"]["student (best)"]
    assert {"fgsm", "transfer_pgd_trades_run", "transfer_cw_inf_run"} == set(student["attacks"])
    own = record["nets"]["source run"]["attacks"]
    assert set(own) == {"fgsm"}
    assert student["attacks"]["transfer_pgd_trades_run"]["accuracy"] <= student["clean"] + 0.1


def settings_of(experiment, names, **changes):
    changed = experiment.eval.replace(**changes)
    return build.evaluation_settings(experiment.replace(eval=changed), names)


def test_only_the_chosen_networks_are_attacked(finished, monkeypatch):
    chosen = []
    monkeypatch.setattr(
        autoattack, "run_suite", lambda *args, title, **kwargs: chosen.append(title) and None
    )
    roles = {"student (best)": "student", "student (last)": "student", "robust teacher": "teacher"}
    networks = [
        full.EvaluatedNetwork(title, role, None, None, None, sweep=title != "student (last)")
        for title, role in roles.items()
    ]
    test = data.load("digits").test
    for nets, expected in (("all", 3), ("students", 2), ("best", 1)):
        settings = settings_of(finished[0], ["autoattack"], autoattack_nets=nets)
        full._run_suites(settings, test, networks, {}, None)
        assert chosen == list(roles)[:expected]
        chosen.clear()


def test_equal_networks_are_evaluated_once(finished, monkeypatch):
    experiment, folder = finished
    bundle, variables, _, _ = networks.load(str(folder))
    evaluator = for_network("equal", bundle, experiment.eval, sharding.make_mesh(1))
    moved = jax.tree.map(lambda leaf: 1.1 * leaf, variables)
    nets = {"student (best)": variables, "student (last)": variables, "student EMA (best)": moved}
    evaluated = [
        full.EvaluatedNetwork(t, "student", bundle, v, evaluator, sweep=t == "student (best)")
        for t, v in nets.items()
    ]
    ran = []
    original = Evaluator.run
    monkeypatch.setattr(
        Evaluator, "run", lambda self, v, *a, **k: ran.append(v) or original(self, v, *a, **k)
    )
    test = data.load("digits").test.subset(np.arange(40))
    settings = settings_of(experiment, ["fgsm", "square100"], autoattack_nets="best")
    record, results = full.evaluate_all(settings, test, evaluated)
    assert [v is variables for v in ran] == [True, True, False]  # the sweep is the second
    best, last, average = (record.nets[title] for title in nets)
    assert best.attacks == last.attacks and set(best.attacks) == {"fgsm", "square100"}
    assert set(average.attacks) == {"fgsm"} and set(results) == set(nets)
    same, left, _ = record.notes
    assert same == "student (last) is the same network as student (best): evaluated once."
    where = "student EMA (best) (config.eval.autoattack_nets='best')"
    assert f"Square, 100 queries not run on {where}" in left


def test_interrupted_evaluation_continues(finished, monkeypatch):
    from ard_jax.attacks.auto_attack.engine import Engine

    experiment, folder = finished
    names, original, calls = ["autoattack_fast"], Engine.gradient_attack, []

    def failing(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Engine, "gradient_attack", failing)
    with pytest.raises(KeyboardInterrupt):
        train.evaluate_checkpoint(experiment, str(folder), names)
    path = train.evaluate_checkpoint(experiment, str(folder), names)
    assert not (path.parents[1] / "unfinished").exists()
    record = json.loads((path.parent / "evaluation.json").read_text())
    first = json.loads((folder / "evaluation.json").read_text())
    for key in ("stages", "broken_by"):
        assert [n["autoattack"]["autoattack_fast"][key] for n in record["nets"].values()] == [
            first["nets"]["student (best)"]["autoattack"]["autoattack_fast"][key]
        ]


def test_evaluate_takes_any_function():
    test = data.load("digits").test.subset(np.arange(40))
    found = evaluate.evaluate(linear(), test, ("fgsm", "apgd_ce"), eps=0.05, batch_size=40)
    assert set(found["attacks"]) == {"fgsm", "apgd_ce"}
    flags = found["flags"].correct
    worst = np.all([flags[n] for n in ("clean", "fgsm", "apgd_ce")], axis=0).mean()
    assert found["worst_case"]["accuracy"] == pytest.approx(worst)
    assert found["attacks"]["apgd_ce"]["accuracy"] <= found["clean"]
    with pytest.raises(ValueError, match="unknown attack 'autoatack'.*autoattack"):
        evaluate.evaluate(linear(), test, ("autoatack",))


def test_few_classes_leave_out_what_is_undefined():
    chosen, warnings = autoattack.defined_members("autoattack", 3)
    assert [member.name for member in chosen] == ["apgd-ce", "fab-t", "square"]
    assert "without apgd-t" in warnings[0] and "upper bound" in warnings[0]
    assert autoattack.defined_members("apgd_t", 3)[0] == ()


UNTARGETED = attacks.make("pgd_sat")


def clean_results(count=50):
    """(evaluator, its images, its results without attacks)."""
    test = data.load("digits").test.subset(np.arange(count))
    predict = linear()
    evaluator = Evaluator("net", lambda _, x: predict(x), batch_size=32)
    return evaluator, test, evaluator.run((), test, {})


def test_noise_stays_in_the_ball_and_above_is_told():
    evaluator, test, results = clean_results()
    for norm, eps in (("linf", 0.3), ("l2", 1.0)):
        found = noise.noise_accuracy(evaluator, (), test, eps, norm)
        assert set(found) == {"uniform", "gaussian"} and 0 <= min(found.values()) <= 1
    results.correct["weak"] = np.ones(50, bool)  # an attack that breaks nothing and mends some
    net = NetworkResult(noise={"uniform": 0.5})
    above_clean, above_noise = diagnostics.warnings("net", results, net, {"weak": UNTARGETED})
    assert "under weak is above clean accuracy" in above_clean
    assert "above that under uniform noise" in above_noise
    targeted = attacks.make("tpgd")
    assert diagnostics.warnings("net", results, net, {"weak": targeted}) == []


def test_masking_gap_is_told():
    _, _, results = clean_results()
    robust = np.arange(50) < 10
    results.correct.update({"pgd_sat": np.arange(50) < 30, "autoattack": robust})

    def texts(after_ce):
        found = dataclasses.make_dataclass("Found", ["stages"])({"apgd-ce": after_ce})
        results.suites["autoattack"] = found
        return diagnostics.warnings("net", results, NetworkResult(), {"pgd_sat": UNTARGETED})

    (text,) = texts(robust)
    assert "40.0 points below PGD_sat" in text and "too weak" in text
    (text,) = texts(np.arange(50) < 30)
    assert "gradient masking is likely" in text
    results.correct["pgd_sat"] = np.arange(50) < 14
    assert texts(robust) == []


@pytest.mark.multiprocess
@pytest.mark.slow
def test_from_the_command_line(finished):
    """--mode=evaluate --attacks=autoattack, as the documentation says it."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "ard_jax.main", "--mode=evaluate", f"--checkpoint={finished[1]}",
         "--attacks=pgd_sat,autoattack"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "AutoAttack, accuracy in % after each attack (30 images)" in done.stdout
    assert "apgd-ce" in done.stdout and "robust accuracy" in done.stderr
