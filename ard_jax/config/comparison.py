"""What a comparison runs, validated whole before any compute: methods times seeds, one protocol."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from ard_jax import attacks
from ard_jax.config import parse
from ard_jax.config.parse import ConfigError, of_results, to_dict
from ard_jax.config.schema import PARTNERS, Experiment, Folder
from ard_jax.data import augment
from ard_jax.io.options import Options, Seed, read
from ard_jax.methods import ATTACKING, TEACHERS, TRAINED_TEACHERS

# Groups that every run must agree on, beside the teachers that it uses.
_PROTOCOL = ("data", "eps", "norm", "precision", "select_on", "batch_size", "student", "eval")
# Of data: what may differ all the same. Teachers have the plain kind of the augmentation, which may not.
_OF_STUDENT = ("augment", "flip", "extra", "extra_fraction")
# Of which run it is, not how it trains; teachers are of the protocol.
_NO_SETTING = ("name", "seed", "teachers")
# What runs without `full_reports` are set to.
SHORTENED = {"eval.teachers": False, "eval.transfer": False, "eval.eps_sweep": (), "eval.grid": 0}
_OWN = "teachers.robust.checkpoint"
# What a row of published numbers may say beside them.
_ABOUT_ROW = {"checkpoint": ("best", "last"), "net": ("EMA", "SWA")}
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


class ComparisonConfig(Options):
    """The values of a comparison."""

    name: Annotated[str, Field(min_length=1)] = Field(description="Title of the report.")
    workdir: Folder = Field("", description="Folder of runs and report; empty for runs/NAME.")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(
        description="Of the students; the teachers have their own."
    )
    methods: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="Names out of `runs`, in the order of the table."
    )
    main_attack: str = Field(
        "pgd_sat",
        description="Its robust accuracy heads the plot, its weighted one, NRR and worst class the table.",
    )
    full_reports: bool = Field(False, description="Each run gets the report of a single run.")
    data_dir: str = Field("", description="Replaces data.dir of every run.")
    teachers: dict[str, Folder | None] = Field(
        {},
        description="Name -> folder of a robust teacher's checkpoint, None to leave it out. Every run with a "
        "robust teacher is made with each of them, as RUN-NAME; without names, with its own.",
    )
    teachers_about: dict[str, str] = Field({}, description="Name -> which network it has to be.")
    published: dict[str, Any] = Field(
        {}, description="The papers' numbers, see `Comparison.published`."
    )
    runs: dict[str, dict[str, Any]] = Field(description="Name -> a whole experiment.")

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        found = []
        for field in ("seeds", "methods"):
            values = getattr(self, field)
            if twice := sorted({v for v in values if values.count(v) > 1}):
                found.append(f"{field}: {', '.join(map(repr, twice))} more than once")
        known = ", ".join(self.runs) or "none"
        for name in self.methods:
            if name not in self.runs:
                found.append(f"methods: no run {name!r}; there are {known}")
            elif not _FOLDER_NAME.fullmatch(name):
                found.append(f"methods: {name!r} is no name for a folder")
        found += self._teacher_problems()
        known = ", ".join(dict.fromkeys((*self.runs, *self.expanded(left_out=True))))
        return found + [f"published{text}" for text in _published_problems(self.published, known)]

    def _teacher_problems(self) -> list[str]:
        found = []
        for name, folder in self.teachers.items():
            about = self.teachers_about.get(name, "")
            if not _FOLDER_NAME.fullmatch(name):
                found.append(f"teachers: {name!r} is no name for a folder")
            elif folder == "":
                found.append(
                    f"teachers.{name} is missing{about and ': '}{about}; give "
                    f"--config.teachers.{name}=FOLDER of an imported network (--mode=import) or of a run, or "
                    f"--config.teachers.{name}=None to do without"
                )
        if self.teachers and not any(folder is not None for folder in self.teachers.values()):
            found.append("teachers are all None: leave one")
        expanded = self.expanded()
        if (
            expanded
            and not any(teacher for _, teacher in expanded.values())
            and any(self.teachers.values())
        ):
            found.append(
                f"teachers: no method of {', '.join(expanded)} has a robust teacher: leave teachers out, or "
                "compare one that has"
            )
        return found

    def expanded(self, left_out: bool = False) -> dict[str, tuple[str, str]]:
        """Name in the table -> (name out of `runs`, name of its robust teacher, "" for its own).

        With `left_out` also for teachers that are None.
        """
        found = {}
        names = [n for n, folder in self.teachers.items() if left_out or folder is not None]
        for run in (run for run in self.methods if run in self.runs):
            method = self.runs[run].get("method", {}).get("name", "")
            if names and "robust" in TEACHERS.get(method, ()):
                found |= {f"{run}-{name}": (run, name) for name in names}
            else:
                found[run] = (run, "")
        return found


class SharedTeacher(NamedTuple):
    """A teacher that several runs share: its role, and their names in the table."""

    role: str
    methods: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison that can run.

    Attributes:
      name, seeds, main_attack: as in `ComparisonConfig`.
      methods: names of the table's rows, with those of named teachers.
      workdir: holds <method>/seed<k> for every run, and the report.
      experiments: (method, seed) -> experiment, seed by seed, so that a part of them is worth a table.
      teachers: name, or role where it has none -> a teacher; partners belong to their run.
      protocol: dotted key -> value, the same in all runs.
      settings: method -> dotted key -> value, what may differ between methods.
      published: {} or the papers' numbers: "protocol" -> text, "rows" -> method -> {"source": text,
        optionally "checkpoint" ("best" or "last") and "net" ("EMA" or "SWA") that they are of, and "clean" or
        the name of an attack -> accuracy in percent}.
    """

    name: str
    workdir: Path
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    main_attack: str
    experiments: dict[tuple[str, int], Experiment]
    teachers: dict[str, SharedTeacher]
    protocol: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    published: dict[str, Any]


def from_config(config: Any) -> Comparison:
    """Comparison from a ConfigDict or nested dict (its keys: see `compare`), validated.

    Raises:
      ConfigError: listing every problem of the comparison and of all its runs.
    """
    raw = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    if "runs" not in raw and "method" in raw:
        raise ConfigError(
            "this is the configuration of one experiment: use --mode=train, or a comparison such as "
            "--config=configs/compare_digits.py"
        )
    values, problems = read(ComparisonConfig, raw, "config")
    built = {} if problems else _build_runs(values, problems)
    if problems:
        raise ConfigError("This comparison cannot run:\n  - " + "\n  - ".join(problems))
    workdir = Path(values.workdir or f"runs/{values.name}")
    protocol: dict[str, Any] = {}
    expanded = values.expanded()
    named = {name for name, (_, teacher) in expanded.items() if teacher}
    for name, experiment in built.items():
        protocol |= _protocol(experiment, name in named)
    return Comparison(
        name=values.name,
        workdir=workdir,
        seeds=values.seeds,
        methods=tuple(expanded),
        main_attack=values.main_attack,
        experiments={
            (method, seed): built[method].replace(
                seed=seed, workdir=str(workdir / method / f"seed{seed}")
            )
            for seed in values.seeds
            for method in expanded
        },
        teachers=_shared(built, expanded),
        protocol=protocol,
        settings={
            method: _settings(experiment)
            | ({_OWN: experiment.teachers.robust.checkpoint} if method in named else {})  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
            for method, experiment in built.items()
        },
        published=values.published,
    )


def _build_runs(values: ComparisonConfig, problems: list[str]) -> dict[str, Experiment]:
    """Method -> experiment, of whatever seed; adds what is wrong to `problems`."""
    built: dict[str, Experiment] = {}
    main, expanded = values.main_attack, values.expanded()
    for method, (run, teacher) in expanded.items():
        raw = _with_data_dir(values.runs[run], values.data_dir)
        if teacher:
            robust = raw["teachers"]["robust"] | {"checkpoint": values.teachers[teacher]}
            raw = raw | {"teachers": raw["teachers"] | {"robust": robust}}
        try:
            experiment = parse.to_experiment(raw)
        except ConfigError as error:
            lines = str(error).split("\n  - ")[1:] or [str(error)]
            problems += [f"{method}: {line}" for line in lines]
            continue
        built[method] = experiment if values.full_reports else _short_report(experiment)
        if main not in experiment.eval.attacks:
            known = ", ".join(experiment.eval.attacks)
            problems.append(
                f"{method}: config.eval.attacks lacks main_attack={main!r}; it has {known}"
            )
    problems += _disagreements(built, {name for name, (_, teacher) in expanded.items() if teacher})
    return built


def _shared(
    built: dict[str, Experiment], expanded: dict[str, tuple[str, str]]
) -> dict[str, SharedTeacher]:
    found: dict[str, SharedTeacher] = {}
    for method, experiment in built.items():
        for role in (r for r in TEACHERS[experiment.method.name] if r not in PARTNERS):
            name = (role == "robust" and expanded[method][1]) or role
            before = found.get(name, SharedTeacher(role, ()))
            found[name] = before._replace(methods=(*before.methods, method))
    return found


def _with_data_dir(run: dict[str, Any], folder: str) -> dict[str, Any]:
    return run | {"data": run["data"] | {"dir": folder}} if folder and "data" in run else run


def _published_problems(published: dict[str, Any], runs: str) -> list[str]:
    """What is wrong with `ComparisonConfig.published`; `runs` are the names that rows may have."""
    if not published:
        return []
    if set(published) != {"protocol", "rows"} or not isinstance(published["rows"], dict):
        return [" must be protocol (a text) and rows (method -> source and numbers)"]
    known, found = {"clean", *attacks.names(), *attacks.SUITES}, []
    if not isinstance(published["protocol"], str) or not published["protocol"]:
        found.append(".protocol must say under which protocol the numbers were made")
    for method, row in published["rows"].items():
        where = f".rows.{method}"
        if method not in runs.split(", "):
            found.append(f"{where}: no run {method!r}; there are {runs}")
        if not isinstance(row, dict) or not isinstance(row.get("source"), str) or not row["source"]:
            found.append(f"{where}.source must say where its numbers stand")
            continue
        for column, value in row.items():
            if choices := _ABOUT_ROW.get(column):
                if value not in choices:
                    found.append(f"{where}.{column}={value!r}: choose among {', '.join(choices)}")
            elif column not in known | {"source"}:
                found.append(f"{where}.{column}: neither clean nor an attack")
            elif column != "source" and not _is_percentage(value):
                found.append(f"{where}.{column}={value!r}: expected a percentage, 0 to 100")
    return found


def _is_percentage(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100


def _short_report(experiment: Experiment) -> Experiment:
    """Without what a table of methods does not show: it would be measured anew for every run."""
    short = {name.removeprefix("eval."): value for name, value in SHORTENED.items()}
    return experiment.replace(eval=experiment.eval.replace(**short))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested groups -> dotted keys; an empty group has none."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= _flat(item, f"{prefix}.{name}" if prefix else str(name))
    return found


def teacher_values(experiment: Experiment, role: str) -> dict[str, Any]:
    """Dotted key -> value of one teacher's configuration."""
    return _flat({"teachers": {role: to_dict(experiment)["teachers"][role]}})


def _protocol(experiment: Experiment, named: bool) -> dict[str, Any]:
    """`named`: its robust teacher is one of several, and so not of the protocol."""
    raw = to_dict(experiment)
    roles = [r for r in TEACHERS[experiment.method.name] if not (named and r == "robust")]
    teachers = {
        name: raw["teachers"][name] for name in (*roles, *(("cache", "precision") if roles else ()))
    }
    shared = {name: raw[name] for name in _PROTOCOL}
    shared["data"] = {k: v for k, v in raw["data"].items() if k not in _OF_STUDENT}
    d = experiment.data
    shared["data"]["augment"] = augment.plain(d.augment, d.mirrors)
    return _flat(shared | {"teachers": teachers})


def _settings(experiment: Experiment) -> dict[str, Any]:
    unused = {*_PROTOCOL, *_NO_SETTING}
    if experiment.method.name not in ATTACKING:
        unused.add("attack")
    if "robust" not in TRAINED_TEACHERS[experiment.method.name]:
        unused.add("robust_teacher_optim")
    raw = of_results(experiment)
    kept = {k: v for k, v in raw.items() if k not in unused}
    return _flat(kept | {"data": {k: v for k, v in raw["data"].items() if k in _OF_STUDENT}})


def _disagreements(built: dict[str, Experiment], named: set[str]) -> list[str]:
    """One problem for each key of the protocol on which runs differ, with the values."""
    protocols = {method: _protocol(e, method in named) for method, e in built.items()}
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
