"""What a comparison runs, validated whole before any compute: methods times seeds, one protocol."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from ard_jax import attacks
from ard_jax.config import parse
from ard_jax.config.parse import ConfigError, of_results, to_dict
from ard_jax.config.schema import Experiment
from ard_jax.methods import ATTACKING, TEACHERS, TRAINED_TEACHERS

_FIELDS = {
    "name": str,
    "workdir": str,
    "main_attack": str,
    "full_reports": bool,
    "data_dir": str,
    "published": dict,
    "runs": dict,
}
_DEFAULTS = {
    "workdir": "",
    "main_attack": "pgd_sat",
    "full_reports": False,
    "data_dir": "",
    "published": {},
}
# Groups that every run must agree on, beside the teachers that it uses.
_PROTOCOL = ("data", "eps", "norm", "precision", "select_on", "batch_size", "student", "eval")
# Of which run it is, not how it trains; teachers are of the protocol.
_NO_SETTING = ("name", "seed", "teachers")
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison that can run.

    Attributes:
      name: title of the report.
      workdir: holds <method>/seed<k> for every run, and the report.
      seeds: of the students; the teachers have their own.
      methods: names of the runs, in the order of the table.
      main_attack: its robust accuracy heads the plot, its weighted accuracy, NRR and worst class the table.
      experiments: (method, seed) -> experiment, seed by seed, so that a part of them is worth a table.
      roles: of the teachers that the methods use.
      protocol: dotted key -> value, the same in all runs.
      settings: method -> dotted key -> value, what may differ between methods.
      published: {} or the papers' numbers: "protocol" -> text, "rows" -> method -> {"source": text, and
        "clean" or the name of an attack -> accuracy in percent}.
    """

    name: str
    workdir: Path
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    main_attack: str
    experiments: dict[tuple[str, int], Experiment]
    roles: tuple[str, ...]
    protocol: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    published: dict[str, Any]


def from_config(config: Any) -> Comparison:
    """Comparison from a ConfigDict or nested dict (its keys: see `compare`), validated.

    Raises:
      ConfigError: listing every problem of the comparison and of all its runs.
    """
    raw = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    raw = _DEFAULTS | raw
    problems, built = _problems(raw), {}
    if not problems:
        built = _build_runs(raw, problems)
    if problems:
        raise ConfigError("This comparison cannot run:\n  - " + "\n  - ".join(problems))
    workdir = Path(raw["workdir"] or f"runs/{raw['name']}")
    protocol: dict[str, Any] = {}
    for experiment in built.values():
        protocol |= _protocol(experiment)
    return Comparison(
        name=raw["name"],
        workdir=workdir,
        seeds=tuple(raw["seeds"]),
        methods=tuple(raw["methods"]),
        main_attack=raw["main_attack"],
        experiments={
            (method, seed): built[method].replace(
                seed=seed, workdir=str(workdir / method / f"seed{seed}")
            )
            for seed in raw["seeds"]
            for method in raw["methods"]
        },
        roles=tuple(dict.fromkeys(r for e in built.values() for r in TEACHERS[e.method.name])),
        protocol=protocol,
        settings={method: _settings(experiment) for method, experiment in built.items()},
        published=raw["published"],
    )


def _build_runs(raw: dict[str, Any], problems: list[str]) -> dict[str, Experiment]:
    """Method -> experiment, of whatever seed; adds what is wrong to `problems`."""
    built: dict[str, Experiment] = {}
    main = raw["main_attack"]
    for method in raw["methods"]:
        try:
            experiment = parse.to_experiment(_with_data_dir(raw["runs"][method], raw["data_dir"]))
        except ConfigError as error:
            lines = str(error).split("\n  - ")[1:] or [str(error)]
            problems += [f"{method}: {line}" for line in lines]
            continue
        built[method] = experiment if raw["full_reports"] else _short_report(experiment)
        if main not in experiment.eval.attacks:
            known = ", ".join(experiment.eval.attacks)
            problems.append(
                f"{method}: config.eval.attacks lacks main_attack={main!r}; it has {known}"
            )
    problems += _disagreements(built)
    return built


def _with_data_dir(run: dict[str, Any], folder: str) -> dict[str, Any]:
    return run | {"data": run["data"] | {"dir": folder}} if folder and "data" in run else run


def _problems(raw: dict[str, Any]) -> list[str]:
    """Problems of the comparison's own fields."""
    known = [*_FIELDS, "seeds", "methods"]
    found = [f"config.{n} does not exist; a comparison has {', '.join(sorted(known))}"
             for n in sorted(set(raw) - set(known))]  # fmt: skip
    found += [f"config.{name} is missing" for name in known if name not in raw]
    if found:
        return found
    for name, kind in _FIELDS.items():
        if not isinstance(raw[name], kind):
            found.append(f"config.{name}={raw[name]!r}: expected {kind.__name__}")
    if isinstance(raw["name"], str) and not raw["name"]:
        found.append("config.name is empty")
    found += _list_problems("seeds", raw["seeds"], int)
    methods, runs = raw["methods"], raw["runs"] if isinstance(raw["runs"], dict) else {}
    found += _list_problems("methods", methods, str)
    for name in methods if isinstance(methods, list | tuple) else ():
        if name not in runs:
            found.append(f"config.methods: no run {name!r}; there are {', '.join(runs) or 'none'}")
        elif not _FOLDER_NAME.fullmatch(str(name)):
            found.append(f"config.methods: {name!r} is no name for a folder")
        elif not isinstance(runs[name], dict):
            found.append(f"config.runs.{name} must be an experiment, got {runs[name]!r}")
    return found + _published_problems(raw["published"], runs)


def _published_problems(published: Any, runs: dict[str, Any]) -> list[str]:
    if not published or not isinstance(published, dict):
        return []
    if set(published) != {"protocol", "rows"} or not isinstance(published["rows"], dict):
        return [
            "config.published must be protocol (a text) and rows (method -> source and numbers)"
        ]
    known, found = {"clean", *attacks.names(), *attacks.SUITES}, []
    if not isinstance(published["protocol"], str) or not published["protocol"]:
        found.append(
            "config.published.protocol must say under which protocol the numbers were made"
        )
    for method, row in published["rows"].items():
        where = f"config.published.rows.{method}"
        if method not in runs:
            found.append(f"{where}: no run {method!r}; there are {', '.join(runs) or 'none'}")
        if not isinstance(row, dict) or not isinstance(row.get("source"), str) or not row["source"]:
            found.append(f"{where}.source must say where its numbers stand")
            continue
        for column, value in row.items():
            if column not in known | {"source"}:
                found.append(f"{where}.{column}: neither clean nor an attack")
            elif column != "source" and not _is_percentage(value):
                found.append(f"{where}.{column}={value!r}: expected a percentage, 0 to 100")
    return found


def _is_percentage(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100


def _list_problems(name: str, values: Any, kind: type) -> list[str]:
    if not isinstance(values, list | tuple):
        return [f"config.{name}={values!r}: expected a tuple of {kind.__name__}"]
    found = [] if values else [f"config.{name} is empty: name at least one"]
    if bad := [v for v in values if not isinstance(v, kind) or isinstance(v, bool)]:
        found.append(f"config.{name}: {bad} are not {kind.__name__}")
    elif twice := sorted({v for v in values if list(values).count(v) > 1}):
        found.append(f"config.{name}: {', '.join(map(repr, twice))} more than once")
    return found


def _short_report(experiment: Experiment) -> Experiment:
    """Without what a table of methods does not show: it would be measured anew for every run."""
    short = experiment.eval.replace(teachers=False, transfer=False, eps_sweep=(), grid=0)
    return experiment.replace(eval=short)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested groups -> dotted keys; an empty group has none."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= _flat(item, f"{prefix}.{name}" if prefix else str(name))
    return found


def _protocol(experiment: Experiment) -> dict[str, Any]:
    raw = to_dict(experiment)
    roles = TEACHERS[experiment.method.name]
    teachers = {name: raw["teachers"][name] for name in (*roles, *(("cache",) if roles else ()))}
    return _flat({name: raw[name] for name in _PROTOCOL} | {"teachers": teachers})


def _settings(experiment: Experiment) -> dict[str, Any]:
    unused = {*_PROTOCOL, *_NO_SETTING}
    if experiment.method.name not in ATTACKING:
        unused.add("attack")
    if "robust" not in TRAINED_TEACHERS[experiment.method.name]:
        unused.add("robust_teacher_optim")
    return _flat({k: v for k, v in of_results(experiment).items() if k not in unused})


def _disagreements(built: dict[str, Experiment]) -> list[str]:
    """One problem for each key of the protocol on which runs differ, with the values."""
    protocols = {method: _protocol(experiment) for method, experiment in built.items()}
    found = []
    for key in dict.fromkeys(key for one in protocols.values() for key in one):
        role = key.split(".")[1] if key.startswith("teachers.") else ""
        by_value: dict[str, list[str]] = {}
        for method, one in protocols.items():
            uses = not role or any(name.startswith(f"teachers.{role}") for name in one)
            if uses:
                value = json.dumps(one[key]) if key in one else "absent"
                by_value.setdefault(value, []).append(method)
        if len(by_value) > 1:
            parts = "; ".join(f"{v} in {', '.join(names)}" for v, names in by_value.items())
            found.append(f"config.{key} must be the same in all runs: {parts}")
    return found
