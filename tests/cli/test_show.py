"""What is told of runs, from the files that they write."""

import json

import pytest

from ard_jax.cli import show
from ard_jax.reporting.record import Accuracy, AttackResult, Evaluation, NetworkResult
from ard_jax.runtime import locks


def config(**values):
    base = {"name": "r", "workdir": "", "epochs": 4, "eps": 0.2, "method": {"name": "sat"}}
    return base | {"eval": {"select_attack": "pgd_trades"}} | values


def metrics(*epochs):
    scores = {"kind": "eval", "split": "validation", "net": "student"}
    return [scores | {"step": 5 * e, "epoch": e, "clean": c, "pgd_trades": r} for e, c, r in epochs]


def write(folder, config, records=(), evaluation=None):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if evaluation:
        (folder / "evaluation.json").write_text(evaluation.text())


def evaluation(config, clean, pgd):
    attacks = {"pgd_sat": AttackResult(accuracy=pgd), "transfer_cw": AttackResult(accuracy=1.0)}
    net = NetworkResult(
        role="student", clean=clean, attacks=attacks, worst_case=Accuracy(accuracy=pgd)
    )
    return Evaluation(
        config=config, nets={"student (best)": net, "clean teacher": NetworkResult(clean=1.0)}
    )


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    done = config()
    write(root / "a", done, metrics((2, 0.5, 0.3), (4, 0.6, 0.4)), evaluation(done, 0.875, 0.5))
    write(root / "sat" / "seed0", config(eps=0.1), metrics((1, 0.9, 0.2), (2, 0.5, 0.7)))
    longer = config(epochs=8)
    write(root / "b", longer, metrics((4, 0.6, 0.4)), evaluation(done, 0.875, 0.5))
    write(
        root / "d",
        config(),
        [*metrics((1, 0.1, 0.1)), {"kind": "event", "event": "diverged", "step": 7}],
    )
    write(root / "e", config())
    (root / "other").mkdir()
    (root / "other" / "config.json").write_text('{"model_type": "bert"}')
    (root / "a" / "best").mkdir()
    (root / "a" / "best" / "config.json").write_text(json.dumps(done))  # nothing below a run is one
    return root


def test_states_and_best_numbers_of_all_runs(runs, main, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    with locks.hold(runs / "b"):
        code, told, _ = main("--mode=show", str(runs))
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line.startswith("/")}
    assert {path.removeprefix(f"{runs}/"): row for path, row in rows.items()} == {
        "a": ["finished", "4/4", "87.50", "50.00", "50.00", "-"],
        "b": ["running", "4/8", "60.00†", "-", "-", "40.00†"],
        "d": ["diverged", "1/4", "10.00†", "-", "-", "10.00†"],
        "e": ["stopped", "0/4", "-", "-", "-", "-"],
        "sat/seed0": ["stopped", "2/4", "50.00†", "-", "-", "70.00†"],
    }
    assert "†: the best evaluation so far" in told and "transfer" not in told
    assert not (runs / "e" / ".lock").exists()


def test_two_runs_beside_each_other(runs, main):
    write(runs / "c", config(eps=0.1, seed=3), [], evaluation(config(eps=0.1), 0.75, 0.625))
    code, told, _ = main("--mode=show", f"--runs={runs}/a,{runs}/c")
    assert code == 0 and told.startswith(f"A: {runs}/a\nB: {runs}/c\n")
    rows = [line.split() for line in told.splitlines()]
    assert ["eps", "0.2", "0.1"] in rows and ["seed", "-", "3"] in rows
    assert not any(row[:1] == ["epochs"] for row in rows)
    assert "student (best), clean".split() + ["87.50", "75.00", "-12.50"] in rows
    assert "student (best), pgd_sat".split() + ["50.00", "62.50", "+12.50"] in rows
    assert "teacher" not in told and "not finished" not in told


def test_a_run_that_goes_on_beside_a_finished_one(runs):
    told = show.beside(*(show._read(runs / name) for name in ("a", "sat/seed0")))
    assert "Of a run that is not finished" in told
    rows = [line.split() for line in told.splitlines()]
    assert "student (best), pgd_trades".split() + ["-", "70.00", "-"] in rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode=show", "/nowhere"], "--runs=/nowhere: there is no such folder"),
        (["--mode=show", "tests/golden"], "--runs=tests/golden: no run lies in it"),
        (["--mode=show", "--config=ciard_digits", "tests"], "--mode=show takes folders of runs, no --config"),
        (["--mode=train", "tests"], "unexpected arguments ['tests']"),
        (["--mode=show", "--runs=a", "tests"], "unexpected arguments ['tests']"),
        (["--runs=a"], "--runs is for --mode=show, not for --mode=train"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown(arguments, message, main):
    code, told, wrong = main(*arguments)
    assert code == 2 and not told and message in wrong
