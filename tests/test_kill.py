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

from ard_jax.writers import read_metrics

REPOSITORY = Path(__file__).parents[1]
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
        "--config.epochs=12", "--config.batch_size=256", "--config.attack.steps=3",
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


@pytest.mark.slow
@pytest.mark.multiprocess
def test_killed_ten_times_equals_undisturbed(tmp_path):
    run_to_the_end(tmp_path / "undisturbed")
    seconds = run_to_the_end(
        tmp_path / "again"
    )  # with a warm compilation cache, as the killed ones
    moments = random.Random(0)
    folder, killed = tmp_path / "killed", []
    for _ in range(KILLS):
        process = subprocess.Popen(
            command(folder), cwd=REPOSITORY, env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            process.wait(timeout=moments.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        killed.append(process.wait() == -signal.SIGKILL)
    run_to_the_end(folder)
    assert sum(killed) >= 3, "too few kills hit a running process to prove anything"

    evaluate = [
        sys.executable, "-m", "ard_jax.main", "--mode=evaluate", f"--checkpoint={folder / 'run'}",
        "--attacks=bim,cw_inf",
    ]  # fmt: skip
    done = subprocess.run(
        evaluate, cwd=REPOSITORY, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0 and "BIM" in done.stdout, done.stderr[-3000:]

    (step, expected), (step_killed, actual) = map(everything, (tmp_path / "undisturbed", folder))
    assert step == step_killed
    for a, b in zip(*map(jax.tree.leaves, (expected, actual)), strict=True):
        np.testing.assert_array_equal(a, b)
    evaluations = [
        {(r["step"], r["net"]): r["clean"] for r in read_metrics(f / "run" / "metrics.jsonl")
         if r["kind"] == "eval"}
        for f in (tmp_path / "undisturbed", folder)
    ]  # fmt: skip
    assert evaluations[0] == evaluations[1]
