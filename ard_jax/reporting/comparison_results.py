"""Means over the seeds of a comparison, and what a reader must know beside them.

The functions take evaluation records (see `report`) and make the parts of the dict that comparison.json
holds, the comparison's record. Accuracies are fractions in [0, 1].
"""

import re
import statistics
from typing import Any

from ard_jax.reporting import report

_TITLE = re.compile(r"student\s*(.*?)\s*\((best|last)\)")


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (n - 1; None for one value), n and the values themselves."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "n": len(values), "values": values}


def net_metrics(net: dict[str, Any]) -> dict[str, float]:
    """Flat metrics of one network: "clean", "pgd_sat", "pgd_sat/nrr", "worst_case", ..."""
    found = {"clean": net["clean"], "clean/worst_class": net.get("worst_class_clean")}
    for name, result in net["attacks"].items():
        found[name] = result["accuracy"]
        found |= {f"{name}/{part}": result.get(part) for part in ("weighted", "nrr", "worst_class")}
    found["worst_case"] = (net.get("worst_case") or {}).get("accuracy")
    return {name: value for name, value in found.items() if value is not None}


def aggregate(
    methods: tuple[str, ...], seeds: tuple[int, ...], done: dict[tuple[str, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Results over the finished seeds: one for each method, network ("" or "EMA") and checkpoint.

    Args:
      methods: in the order of the results.
      seeds: in the order of the values.
      done: (method, seed) -> evaluation record, of finished runs only.
    """
    results = []
    for method in methods:
        rows: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
        for seed in seeds:
            evaluation = done.get((method, seed)) or {"nets": {}}
            for title, net in evaluation["nets"].items():
                if match := _TITLE.fullmatch(title):
                    metrics = net_metrics(net)
                    seconds = evaluation.get("timing", {}).get("seconds_per_epoch")
                    if seconds is not None:
                        metrics["seconds_per_epoch"] = seconds
                    rows.setdefault(match.groups(), {})[seed] = metrics
        for (net, checkpoint), by_seed in rows.items():
            row = f"{method} ({net})" if net else method
            result = {"row": row, "method": method, "role": "student", "net": net}
            results.append(result | {"checkpoint": checkpoint} | _over_seeds(by_seed))
    return results


def _over_seeds(by_seed: dict[int, dict[str, float]]) -> dict[str, Any]:
    names = dict.fromkeys(name for metrics in by_seed.values() for name in metrics)
    values = {n: [m[n] for m in by_seed.values() if n in m] for n in names}
    return {"seeds": list(by_seed), "metrics": {n: spread(v) for n, v in values.items()}}


def teacher_results(teachers: dict[str, Any]) -> list[dict[str, Any]]:
    """Results of the teachers, which no seed of a student changes."""
    return [
        {"row": f"{role} teacher", "method": "", "role": "teacher", "net": "", "checkpoint": ""}
        | {"seeds": []}
        | {"metrics": {n: spread([v]) for n, v in net_metrics(teacher["net"]).items()}}
        for role, teacher in teachers.items()
        if "net" in teacher
    ]


def shared(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """What all evaluations of one protocol have in common: test set, radius, attacks."""
    if not evaluations:
        return {"dataset": {}, "attacks": {}}
    names = ("dataset", "eps", "norm", "select_on", "attacks")
    record = {name: evaluations[0][name] for name in names}
    for evaluation in evaluations:  # transfer attacks differ between methods
        record["attacks"] = record["attacks"] | evaluation["attacks"]
    return record


def notes(record: dict[str, Any]) -> list[str]:
    """What a reader must know beside the numbers."""
    n = len(record["seeds"])
    found = [f"{n} seed{'s' if n > 1 else ''} of the students: "
             f"{', '.join(map(str, record['seeds']))}; the teachers are the same in all runs."]  # fmt: skip
    if n == 1:
        found.append("One seed says nothing about the spread: no difference here is established.")
    if record.get("dataset"):
        d = record["dataset"]
        count = record.get("protocol", {}).get("eval.max_examples")
        found.append(
            f"Test set: {d['num_examples']} images" + (", the first ones." if count else ".")
        )
    found.append(report.selection_note(record))
    found.append("Best: the evaluated epoch with the highest (clean + robust)/2 on that split; last: the end "
                 "of training.")  # fmt: skip
    if not {"autoattack", "autoattack_plus"} & set(record["attacks"]):
        found.append(
            "AutoAttack is not among the attacks: PGD accuracies are upper bounds of robustness."
        )
    elif 0 < record["protocol"].get("eval.autoattack_examples", 0) < d["num_examples"]:
        few = record["protocol"]["eval.autoattack_examples"]
        found.append(f"AutoAttack: the first {few} images.")
    found.append("Seconds per epoch: images of an epoch over the median training speed after the first "
                 "epoch, on the machine that made the run; without evaluation and compilation.")  # fmt: skip
    return [text for text in found if text]


def warnings(record: dict[str, Any], done: dict[tuple[str, int], Any]) -> list[str]:
    """Runs that are not there, teachers that are not the same, and the warnings of the runs."""
    found = []
    for run in record.get("runs", ()):
        where = f"{run['method']}, seed {run['seed']}"
        if run["status"] == "failed":
            found.append(f"{where} failed: {run['error']}")
    left = sum(run["status"] == "pending" for run in record.get("runs", ()))
    if left:
        found.append(
            f"{left} of {len(record['runs'])} runs are not finished: the tables are partial."
        )
    for (method, seed), evaluation in done.items():
        where = f"{method}, seed {seed}"
        for role, teacher in (evaluation.get("teachers") or {}).items():
            now = record["teachers"].get(role, {}).get("identity")
            if now and teacher.get("identity") not in (None, now):
                found.append(f"{where} learned from another {role} teacher ({teacher['identity']}) than "
                             f"the one in this table ({now})")  # fmt: skip
        found += [f"{where}: {text}" for text in evaluation.get("warnings") or ()]
    return found
