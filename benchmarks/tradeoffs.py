"""What the options that trade cost for accuracy cost and give, on the handwritten digits.

    python -m benchmarks.tradeoffs                          # RSLAD, seeds 0, 1, 2: hours on 2 cores
    python -m benchmarks.tradeoffs --epochs 2 --seeds 0     # shows that it runs, measures nothing
    python -m benchmarks.tradeoffs --config configs/ciard_digits.py --only baseline "4 steps"

Every row is a run of the product with a changed configuration, from training to evaluation: seconds per epoch
(evaluation, compilation and soft labels left out), seconds of all of training (with them), clean, PGD-20 and
AutoAttack accuracy of the best checkpoint on the test images, mean and standard deviation over the seeds.
Fewer attack steps can teach a student to mislead gradients: PGD-20 alone would not show it. Writes
tradeoffs.md and tradeoffs.json into --out.

The runs are kept there and never repeated: the same command goes on after an interruption. Settings take
turns within each seed, so that a disturbance of the machine does not fall on one row. Run it where nothing
else runs.

Fewer attack steps are longer ones: about 2 eps in all, as the 2.5 eps of 10 steps of eps/4 let an attack
cross the ball.
"""

import argparse
import importlib
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import jax

from ard_jax.cli import train
from ard_jax.config.parse import to_experiment
from ard_jax.io.files import write_text_atomic
from ard_jax.reporting.record import read_evaluation
from ard_jax.runtime import sharding

ATTACKS = ("pgd20", "autoattack")


def attack(steps: int, step_per_eps: float) -> Callable:
    """Fewer steps of the inner attack, each step_per_eps times eps."""

    def change(config):
        config.attack.update(steps=steps, step_size=step_per_eps * config.eps)

    return change


def batch_times_4(config) -> None:
    """Four times the batch and the rate, reached in five epochs (Goyal et al. 2017)."""
    config.batch_size *= 4
    config.student_optim.lr *= 4
    config.student_optim.warmup = 5 if config.epochs > 10 else 0


def bfloat16(config) -> None:
    """Student and teachers train in bfloat16: this row has teachers of its own. Evaluation is in float32."""
    config.precision = "bfloat16"


# Row -> what it changes in the configuration.
SETTINGS: dict[str, Callable] = {
    "baseline": lambda config: None,
    "4 steps": attack(4, 0.5),
    "2 steps": attack(2, 1.0),
    "batch x 4, rate x 4": batch_times_4,
    "bfloat16": bfloat16,
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/digits.py:rslad", help="of the baseline")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=0, help="of the student; 0: as configured")
    parser.add_argument("--teacher-epochs", type=int, default=0, help="0: as configured")
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--out", type=Path, default=Path("runs/tradeoffs"))
    return parser.parse_args()


def configured(args, setting: str, seed: int):
    """The configuration of one run."""
    path, _, variant = args.config.partition(":")
    config = importlib.import_module(f"ard_jax.configs.{Path(path).stem}").get_config(variant)
    config.epochs = args.epochs or config.epochs
    folder = args.out / f"{config.name}-{config.epochs}-epochs"
    config.seed = seed
    config.workdir = str(folder / setting.replace(",", "").replace(" ", "_") / f"seed{seed}")
    config.teachers.cache = str(args.out / "teachers")
    for role in ("robust", "clean"):
        teacher = config.teachers[role]
        if teacher is not None and args.teacher_epochs:
            teacher.recipe.epochs, teacher.min_clean = args.teacher_epochs, 0.0
    config.eval.update(attacks=ATTACKS, eps_sweep=(), transfer=False, teachers=False, grid=0)
    config.eval.update(autoattack_nets="best", autoattack_examples=0)
    config.run.update(tensorboard=False)
    SETTINGS[setting](config)
    return config


def run(config) -> dict:
    """Trains and evaluates, or reads what an earlier start did."""
    experiment = to_experiment(config)
    train.use_compilation_cache(experiment)
    report = train.run(experiment)
    evaluation = read_evaluation(report.parent)
    best, timing = evaluation.nets["student (best)"], evaluation.timing
    return {
        "clean": best.clean,
        "pgd20": best.robust("pgd20").accuracy,
        "autoattack": best.autoattack["autoattack"].stages[-1].accuracy,
        "seconds_per_epoch": timing.seconds_per_epoch,
        "train_seconds": timing.train_seconds,
    }


def mean_and_spread(values: list[float]) -> str:
    """Mean ± sample standard deviation; a single value has no spread."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def table(results: dict[str, dict[int, dict]]) -> str:
    """Markdown, one row for each setting that has a result."""
    base = epoch_seconds(results.get("baseline", {}))
    lines = [
        "| Setting | s per epoch | Speed-up | Training, s | Clean, % | PGD-20, % | AutoAttack, % | Seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for setting, runs in results.items():
        seconds = epoch_seconds(runs)
        shown = [f"{seconds:.2f}" if seconds else "-"]
        shown.append(f"{base / seconds:.2f}" if base and seconds else "-")
        shown.append(f"{statistics.median(r['train_seconds'] for r in runs.values()):.0f}")
        for name in ("clean", *ATTACKS):
            shown.append(mean_and_spread([100 * r[name] for r in runs.values()]))
        lines.append(f"| {setting} | {' | '.join(shown)} | {len(runs)} |")
    return "\n".join(lines) + "\n"


def epoch_seconds(runs: dict[int, dict]) -> float | None:
    """Median over the seeds; None where no run has a second epoch."""
    found = [r["seconds_per_epoch"] for r in runs.values() if r["seconds_per_epoch"]]
    return statistics.median(found) if found else None


def main():
    """Runs what is not there yet, and writes both files after every run."""
    args = arguments()
    sharding.use_cores()  # as `ard_jax.main`
    results: dict[str, dict[int, dict]] = {setting: {} for setting in args.only}
    for seed in args.seeds:
        for setting in args.only:
            config = configured(args, setting, seed)
            results[setting][seed] = run(config)
            done = {setting: runs for setting, runs in results.items() if runs}
            where = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
            about = f"{args.config}, {config.epochs} epochs, {where}"
            record = {"about": about, "jax": jax.__version__, "settings": done}
            args.out.mkdir(parents=True, exist_ok=True)
            write_text_atomic(args.out / "tradeoffs.json", json.dumps(record, indent=1))
            write_text_atomic(args.out / "tradeoffs.md", f"{about}\n\n{table(done)}")
    print(table(results), f"Written: {args.out / 'tradeoffs.md'}", sep="\n")


if __name__ == "__main__":
    main()
