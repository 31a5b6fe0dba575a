"""SIGKILL at random moments, then the same command again: the result is that of a run never killed."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ard_jax.io.metric_writer import read_metrics

REPOSITORY = Path(__file__).parents[2]
KILLS = 10


def command(folder):
    # Sizes as in experiments.tiny; here they have to pass the command line.
    small = [f"--config.teachers.{role}.{option}" for role in ("robust", "clean") for option in (
        "min_clean=0.0", "net.kwargs.widths=(4,)", "net.kwargs.blocks=1",
        "recipe.epochs=3", "recipe.batch_size=256",
    )]  # fmt: skip
    return [
        sys.executable, "-m", "ard_jax.main", "--config=configs/ciard_digits.py",
        f"--config.workdir={folder / 'run'}", f"--config.teachers.cache={folder / 'teachers'}",
        "--config.epochs=24", "--config.batch_size=256", "--config.attack.steps=3",
        "--config.student.kwargs.widths=(4,)", "--config.eval.attacks=('fgsm','pgd_sat')",
        "--config.eval.every=2", "--config.eval.max_examples=100", "--config.run.save_every=1",
        "--config.run.tensorboard=False", "--config.method.itt_start=4", *small,
    ]  # fmt: skip


def environment():
    import os

    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def run_to_the_end(folder):
    began = time.monotonic()
    done = subprocess.run(
        command(folder), cwd=REPOSITORY, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return time.monotonic() - began


def everything(folder):
    """All arrays of the last checkpoint: student, teachers, optimisers, temperatures, step."""
    (newest,) = [max((folder / "run" / "last").iterdir(), key=lambda p: int(p.name))]
    with ocp.StandardCheckpointer() as reader:
        return int(newest.name), [reader.restore(newest / item) for item in ("student", "rest")]


def kill_at(folder, moment):
    """Starts the command and kills it after `moment` seconds; True if it was still running."""
    process = subprocess.Popen(
        command(folder), cwd=REPOSITORY, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def assert_same(folder, expected):
    (step, arrays), (step_killed, actual) = map(everything, (expected, folder))
    assert step == step_killed
    for a, b in zip(*map(jax.tree.leaves, (arrays, actual)), strict=True):
        np.testing.assert_array_equal(a, b)
    evaluations = [
        {(r["step"], r["net"]): r["clean"] for r in read_metrics(f / "run" / "metrics.jsonl")
         if r["kind"] == "eval"}
        for f in (expected, folder)
    ]  # fmt: skip
    assert evaluations[0] == evaluations[1]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_killed_ten_times_equals_undisturbed(tmp_path):
    """Ten kills, each at a random moment of the work that is left, none before it begins."""
    expected = tmp_path / "undisturbed"
    run_to_the_end(expected)
    whole = run_to_the_end(tmp_path / "warm")  # the compilation cache is filled now
    idle = run_to_the_end(tmp_path / "warm")  # finds itself finished: the time to start up
    moments, kills, number = random.Random(0), 0, 0
    while kills < KILLS:
        folder = tmp_path / f"killed{number}"
        if kill_at(folder, idle + moments.uniform(0, 0.5) * (whole - idle)):
            kills += 1
        else:  # it got to its end between kills; the others hit a fresh run
            assert_same(folder, expected)
            number += 1
        assert number < 20, "the run ends before it can be killed"
    run_to_the_end(folder)
    assert_same(folder, expected)

    evaluate = [
        sys.executable, "-m", "ard_jax.main", "--mode=evaluate", f"--checkpoint={folder / 'run'}",
        "--attacks=bim,cw_inf",
    ]  # fmt: skip
    done = subprocess.run(
        evaluate, cwd=REPOSITORY, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0 and "BIM" in done.stdout, done.stderr[-3000:]
