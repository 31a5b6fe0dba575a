"""A run that is asked to stop saves where it is, says so by its exit code, and loses nothing."""

import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from experiments import tiny
from run_processes import (
    assert_ended,
    assert_preempted,
    assert_same,
    log,
    marks,
    newest,
    run,
    start,
    stop_at,
    terminate,
    wait_for,
)  # fmt: skip

from ard_jax.checkpoints import manager, networks
from ard_jax.cli import train
from ard_jax.config import parse
from ard_jax.io.metric_writer import read_metrics
from ard_jax.runtime import preemption


def evaluations(folder):
    return [r for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "eval"]


@pytest.mark.slow
def test_stops_at_many_questions_change_nothing(tmp_path, monkeypatch):
    """Stops are counted from each start, so that they fall on steps, evaluations and the final one."""
    expected = train.run(parse.to_experiment(tiny(tmp_path / "a", "natural"))).parent
    raw, seen = tiny(tmp_path / "b", "natural"), {"mid-epoch": 0, "unevaluated": 0, "at the end": 0}
    for stop in (1, 4, 3, 4, 9, 3, 8, 7, 12):
        left = iter(range(stop - 1, -1, -1))
        monkeypatch.setattr(preemption, "requested", lambda left=left: next(left, 0) == 0)
        with pytest.raises(preemption.PreemptedError, match="stopped"):
            train.run(parse.to_experiment(raw))
        last = tmp_path / "b" / "run" / "last"
        if last.is_dir():
            meta = manager.read_meta(manager.find(last))
            seen["mid-epoch"] += bool(meta["step"] % 5)
            seen["unevaluated"] += "unevaluated" in meta
            seen["at the end"] += meta["step"] == 10
    assert all(seen.values()), seen
    monkeypatch.undo()
    actual = train.run(parse.to_experiment(raw)).parent
    for which in ("last", "best"):
        states = [networks.load(str(folder / which))[1] for folder in (expected, actual)]
        for a, b in zip(*map(jax.tree.leaves, states), strict=True):
            np.testing.assert_array_equal(a, b)
    assert evaluations(actual) == evaluations(expected)
    with (
        np.load(expected / "evaluation_flags.npz") as a,
        np.load(actual / "evaluation_flags.npz") as b,
    ):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    assert "unevaluated" not in manager.read_meta(manager.find(actual / "last"))


def test_nothing_is_noticed_before_install():
    assert not preemption.requested()
    preemption.check("a test")


def test_an_interrupt_that_was_lost_is_raised_again(monkeypatch):
    monkeypatch.setattr(preemption._State, "installed", True)
    monkeypatch.setitem(preemption._State.since, signal.SIGINT, 0.0)
    with pytest.raises(KeyboardInterrupt):
        preemption.check("AutoAttack")


AUTOATTACK = """
import jax.numpy as jnp
import numpy as np
from absl import app
from ard_jax import attacks, main
from ard_jax.cli import command_line, modes

def attack(_):
    images, weights = np.random.default_rng(0).random((64, 8, 8, 3), np.float32), np.eye(192, 9)
    print("ready", flush=True)
    for shift in np.arange(1e6):
        predict = lambda x: jnp.tanh(x.reshape(len(x), -1) - 0.5) @ weights + shift
        labels = np.asarray(predict(images).argmax(-1))
        attacks.autoattack(predict, images, labels, eps=0.002, progress=False, batch_size=32)

modes.BY_NAME["train"] = attack
app.run(main.main, flags_parser=command_line.parse)
"""


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("wait", [0.3, 1.5, 4.0, 9.0])  # tracing and compiling, then attacks
def test_ctrl_c_in_autoattack_ends_the_process(wait):
    process = subprocess.Popen(
        [sys.executable, "-c", AUTOATTACK],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        assert process.stdout and process.stdout.readline() == "ready\n"
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "INTERRUPTED" in told


SUITES = {"eval.attacks": "('fgsm','square100')"}


@pytest.mark.slow
@pytest.mark.multiprocess
def test_sigterm_at_every_stage(tmp_path):
    """Compilation, a step, a save, an evaluation, the final evaluation, AutoAttack: one after another."""
    expected, folder = tmp_path / "undisturbed", tmp_path / "stopped"
    run(expected, variant="natural", **SUITES)
    cold = SUITES | {"run.compilation_cache": "off"}
    processes = start(folder, variant="natural", **cold)
    wait_for("student compile", folder, processes)
    time.sleep(0.2)  # in the middle of it, then
    assert "student step 1" not in marks(folder)
    terminate(processes)
    assert_preempted(folder, processes)
    assert newest(folder) == 1  # nothing to save before the first step
    stop_at("student step 7", folder, variant="natural", **SUITES)
    assert newest(folder) == 7
    stop_at("save last 10", folder, variant="natural", **SUITES)
    assert newest(folder) == 10
    stop_at("evaluation", folder, variant="natural", **SUITES)
    assert "unevaluated" in manager.read_meta(folder / "run" / "last" / "20")
    stop_at("evaluation", folder, times=2, variant="natural", **SUITES)  # the first makes up for it
    assert "evaluating student (best)" in log(folder)
    stop_at("autoattack batch", folder, variant="natural", **SUITES)
    (store,) = (folder / "run" / "autoattack").iterdir()
    assert list(store.glob("square*.npz"))
    run(folder, variant="natural", **SUITES)
    assert_same(folder, expected)
    assert evaluations(folder / "run") == evaluations(expected / "run")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_second_sigterm_ends_at_once(tmp_path):
    processes = start(tmp_path, hold="student compile:1", variant="natural")
    wait_for("student compile", tmp_path, processes)
    processes[0].send_signal(signal.SIGTERM)
    time.sleep(1.5)  # two within a second count as one
    assert processes[0].poll() is None
    processes[0].send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert_ended(tmp_path, processes, 128 + signal.SIGTERM)
    assert time.monotonic() - began < 5
