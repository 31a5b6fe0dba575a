"""`--mode=show`: runs below a folder, their states and best numbers; of two runs what differs.

    ard-jax --mode=show runs
    ard-jax --mode=show runs/ciard_digits-seed0 runs/rslad_digits-seed0

Reads what the runs wrote, and computes nothing.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ard_jax.io.metric_writer import METRICS_FILE, read_metrics
from ard_jax.reporting.record import (
    EVALUATION_FILE,
    Accuracy,
    Evaluation,
    NetworkResult,
    read_evaluation,
)
from ard_jax.reporting.tables import MISSING, Cell, Table, percent, text, value_text
from ard_jax.runtime import locks

_BEST = "student (best)"
_WORST = "worst case"


class Run(NamedTuple):
    """What a folder says of its run.

    Attributes:
      folder: where it lies.
      config: its configuration, as `parse.to_dict` writes it.
      state: "finished", "running", "diverged" or "stopped".
      epoch: the last one that its metrics name, 0 without any.
      evaluation: of a finished run.
      scores: accuracies of the best evaluation so far on the split that selects; {} without one.
    """

    folder: Path
    config: dict[str, Any]
    state: str
    epoch: int
    evaluation: Evaluation | None
    scores: dict[str, float]


def run(folders: Sequence[str]) -> int:
    """Prints the runs below the folders, or two runs beside each other. Returns exit code 0.

    Raises:
      ValueError: a folder does not exist, or holds no run.
    """
    found = list(dict.fromkeys(path for folder in folders for path in _below(Path(folder))))
    runs = [_read(path) for path in found]
    if len(folders) == len(runs) == 2:
        print(beside(*runs))
    else:
        print(overview(runs))
    return 0


def _below(root: Path) -> list[Path]:
    """Folders of runs in `root`, itself included, by name."""
    if not root.is_dir():
        raise ValueError(f"--runs={root}: there is no such folder; give that of runs, e.g. runs")
    found = []
    for folder, inner, files in os.walk(root):
        if "config.json" in files and _config(Path(folder)):
            found.append(Path(folder))
            inner.clear()  # checkpoints
        elif "config.json" in files or EVALUATION_FILE in files:
            what = "a damaged config.json" if "config.json" in files else "no config.json"
            logging.warning("%s: a run with %s, which is left out; put it back", folder, what)
            inner.clear()
    if not found:
        raise ValueError(f"--runs={root}: no run lies in it; the folder of a run has a config.json")
    return sorted(found)


def _config(folder: Path) -> dict[str, Any]:
    """The configuration of a run; {} where the file is none."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) and {"method", "epochs"} <= set(config) else {}


def _read(folder: Path) -> Run:
    config, evaluation = _config(folder), read_evaluation(folder)
    records = read_metrics(folder / METRICS_FILE)
    epoch = max((r.get("epoch", 0) for r in records), default=0)
    if evaluation and evaluation.config.get("epochs") != config["epochs"]:
        evaluation = None  # of the run before it was made longer
    if evaluation:
        state = "finished"
    elif locks.held(folder):
        state = "running"
    else:
        state = "diverged" if records and records[-1].get("event") == "diverged" else "stopped"
    return Run(folder, config, state, epoch, evaluation, _best(config, records))


def _best(config: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, float]:
    """The accuracies of the evaluation that the run would choose, by (clean + robust)/2."""
    attack = config.get("eval", {}).get("select_attack", "")
    scores = [
        {name: r[name] for name in ("clean", attack)}
        for r in records
        if r.get("kind") == "eval" and r.get("net") == "student" and {"clean", attack} <= set(r)
    ]
    return max(scores, key=lambda s: sum(s.values()), default={})


def overview(runs: Sequence[Run]) -> str:
    """The table of all runs, one row for each."""
    names = dict.fromkeys(name for run in runs for name in _accuracies(run))
    attacks = [name for name in names if not name.startswith("transfer_")]  # see the report
    rows = []
    for run in runs:
        numbers = _accuracies(run)
        mark = "" if run.evaluation else "close"
        cells = [Cell(percent(numbers.get(a)), mark if a in numbers else "") for a in attacks]
        rows.append([str(run.folder), run.state, f"{run.epoch}/{run.config['epochs']}", *cells])
    lines = text(Table(["run", "state", "epoch", *attacks], rows), _width())
    lines += ["", "Accuracy in % of the best checkpoint, on the test set."]
    if any(_accuracies(run) and not run.evaluation for run in runs):
        lines.append("†: the best evaluation so far, on the split that selects the checkpoint.")
    return "\n".join(lines)


def _accuracies(run: Run) -> dict[str, float | None]:
    """Clean, each attack and the worst case of the best student."""
    if run.evaluation is None:
        return dict(run.scores)
    return _of_network(run.evaluation.nets.get(_BEST, NetworkResult()))


def _of_network(net: NetworkResult) -> dict[str, float | None]:
    attacks = {name: result.accuracy for name, result in net.attacks.items()}
    return {"clean": net.clean, **attacks, _WORST: (net.worst_case or Accuracy()).accuracy}


def beside(first: Run, second: Run) -> str:
    """What differs between the configurations of two runs, and their results."""
    runs = (first, second)
    titles = ["A", "B"]
    values = [dict(_leaves(run.config)) for run in runs]
    names = [n for n in dict.fromkeys([*values[0], *values[1]]) if n != "workdir"]
    differ = [n for n in names if values[0].get(n) != values[1].get(n)]
    rows = [[n, *(value_text(one[n]) if n in one else MISSING for one in values)] for n in differ]
    lines = [f"{title}: {run.folder}" for title, run in zip(titles, runs, strict=True)]
    lines += ["", "CONFIGURATION", ""]
    lines += text(Table(["config", *titles], rows), _width()) if rows else ["The same."]
    rows = [
        ["state", *(run.state for run in runs), ""],
        ["epoch", *(f"{run.epoch}/{run.config['epochs']}" for run in runs), ""],
    ]
    results = [_results(run) for run in runs]
    for name in dict.fromkeys([*results[0], *results[1]]):
        a, b = (one.get(name) for one in results)
        difference = MISSING if a is None or b is None else f"{100 * (b - a):+.2f}"
        rows.append([name, percent(a), percent(b), difference])
    lines += ["", "RESULTS, accuracy in %", ""]
    lines += text(Table(["", *titles, "B - A"], rows), _width())
    if not all(run.evaluation for run in runs):
        lines += ["", "Of a run that is not finished: the best evaluation so far, on the split that "
                  "selects the checkpoint."]  # fmt: skip
    return "\n".join(lines)


def _width() -> int:
    """Columns of the terminal; 120 without one."""
    return shutil.get_terminal_size((120, 24)).columns


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _results(run: Run) -> dict[str, float | None]:
    """Accuracies of all students of a run, by network and attack."""
    if run.evaluation is None:
        return {f"{_BEST}, {name}": value for name, value in run.scores.items()}
    return {
        f"{title}, {name}": value
        for title, net in run.evaluation.nets.items()
        if net.role == "student"
        for name, value in _of_network(net).items()
    }
