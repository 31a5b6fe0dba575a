"""What evaluation.json and comparison.json hold. No other file knows their keys.

Accuracies are fractions in [0, 1]. Reading never fails: a key that is missing, or holds what its field cannot
be, has the field's default, and keys without a field are left out, so that files of older runs can be read.
"""

import dataclasses
import json
import logging
import math
import numbers
import os
import types
import typing
import zlib
from pathlib import Path
from typing import Any, Self

COMPLETE = ("autoattack", "autoattack_plus")  # attacks whose accuracy may be called AutoAttack's
EVALUATION_FILE = "evaluation.json"
TEACHER_FILE = "teacher.json"
_CHECKSUM = "checksum"

_OMIT = {"omit": True}  # a field that is not written where it is empty
_REST = {"rest": True}  # a field that holds all keys without a field of their own


def number(value: Any) -> float | None:
    """Returns a float, also from our JSON's strings "nan" and "inf"; None for anything else."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return float(value)


def _decode(kind: Any, value: Any) -> Any:
    """Returns the JSON `value` as an instance of the type `kind`, None where it cannot be one."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if value is None or kind is Any:
        return value
    if origin is types.UnionType:
        return _decode(args[0], value)
    if origin is dict:
        return (
            {str(k): _decode(args[1], v) for k, v in value.items()}
            if isinstance(value, dict)
            else None
        )
    if origin is tuple:
        return (
            tuple(_decode(args[0], v) for v in value) if isinstance(value, list | tuple) else None
        )
    if issubclass(kind, Record):
        return kind.from_json(value) if isinstance(value, dict) else None
    if kind in (float, int):
        found = number(value)
        return (
            kind(found) if found is not None and (kind is float or math.isfinite(found)) else None
        )
    return kind(value)


def _encode(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    return [_encode(item) for item in value] if isinstance(value, list | tuple) else value


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
class Record:
    """A JSON object with known keys, the names of the fields; every subclass is a frozen dataclass."""

    __dataclass_fields__: typing.ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        """Makes the dataclass."""
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Reads a JSON object."""
        kinds, fields = typing.get_type_hints(cls), dataclasses.fields(cls)
        named = [field.name for field in fields if not field.metadata.get("rest")]
        found = {name: _decode(kinds[name], values.get(name)) for name in named}
        found = {name: value for name, value in found.items() if value is not None}
        rest = {name: value for name, value in values.items() if name not in named}
        return cls(**found, **{f.name: rest for f in fields if f.name not in named})

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON object that `from_json` reads."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata.get("rest"):
                found |= _encode(value)
            elif not field.metadata.get("omit") or value not in (None, "", {}, ()):
                found[field.name] = _encode(value)
        return found


def _dict() -> Any:
    return dataclasses.field(default_factory=dict)


def _dict_or_omitted() -> Any:
    return dataclasses.field(default_factory=dict, metadata=_OMIT)


def _omitted(default: Any = None) -> Any:
    return dataclasses.field(default=default, metadata=_OMIT)


Floats = tuple[float | None, ...]


class Accuracy(Record):
    """weighted: (clean + robust) / 2; nrr: their harmonic mean; num_examples: of the first, None for all."""

    accuracy: float | None = None
    weighted: float | None = None
    nrr: float | None = None
    num_examples: int | None = _omitted()


class AttackResult(Accuracy):
    """Accuracy under one attack."""

    ci95: Floats | None = None
    worst_class: float | None = None
    per_class: Floats = ()


class Stage(Record):
    """Accuracy after one attack of AutoAttack and all before it."""

    attack: str = ""
    accuracy: float | None = None
    ci95: Floats | None = None


class QueryCurve(Record):
    """Accuracy over Square's queries."""

    queries: tuple[int, ...] = ()
    accuracy: Floats = ()


class AutoAttackRecord(Record):
    """AutoAttack, or one like it, on one network; padding: share of the rows that it computed."""

    label: str = ""
    version: str = ""
    upper_bound: bool = True
    num_examples: int | None = None
    clean: float | None = None
    stages: tuple[Stage, ...] = ()
    broken_by: dict[str, int] = _dict()
    warnings: tuple[str, ...] = ()
    curve: QueryCurve | None = _omitted()
    seconds: float | None = _omitted()
    programs: int | None = _omitted()
    padding: float | None = _omitted()


class Sweep(Record):
    """Accuracy over radii."""

    attack: str = ""
    eps: Floats = ()
    accuracy: Floats = ()


class Selection(Record):
    """What chose the best checkpoint; scores: "clean" and the selecting attack -> accuracy."""

    split: str = ""
    epoch: int | None = None
    scores: dict[str, Any] = dataclasses.field(default_factory=dict, metadata=_REST)


class NetworkResult(Record):
    """All that was measured on one network; role: "student", "teacher" or "source"."""

    role: str = ""
    model: str = ""
    num_params: int | None = None
    step: int | None = None
    epoch: int | None = None
    clean: float | None = None
    clean_ci95: Floats | None = None
    per_class_clean: Floats = ()
    worst_class_clean: float | None = None
    attacks: dict[str, AttackResult] = _dict()
    worst_case: Accuracy | None = None
    noise: dict[str, float] = _dict()
    autoattack: dict[str, AutoAttackRecord] = _dict_or_omitted()
    eps_sweep: Sweep | None = _omitted()
    selected_by: Selection | None = _omitted()

    def robust(self, attack: str | None) -> AttackResult:
        """The result under an attack; an empty one where it was not measured."""
        return self.attacks.get(attack or "") or AttackResult()

    def weighted(self, attack: str | None) -> float | None:
        """Weighted robust accuracy (clean + robust) / 2 under an attack."""
        result = self.robust(attack)
        if result.weighted is not None or self.clean is None or result.accuracy is None:
            return result.weighted
        return (self.clean + result.accuracy) / 2

    def complete(self) -> str:
        """Name of the attack whose accuracy may be called AutoAttack's; "" without one."""
        shown = [n for n in COMPLETE if n in self.attacks]
        known = self.autoattack
        return next((n for n in shown if n in known and not known[n].upper_bound), "")


class Dataset(Record):
    """The images of an evaluation."""

    name: str = ""
    split: str = ""
    num_examples: int | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    image_shape: tuple[int, ...] = ()


class Attack(Record):
    """An attack's printed name and its parameters, those of `attacks.PgdAttack` or of AutoAttack."""

    label: str = ""
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict, metadata=_REST)


class Quartiles(Record):
    """A number over images: its mean, and the 25, 50 and 75 % points."""

    mean: float | None = None
    low: float | None = None
    median: float | None = None
    high: float | None = None


class TeacherView(Record):
    """What a teacher says of one kind of images, see `evaluation.teacher_quality.per_image`."""

    accuracy: float | None = None
    confidence: Quartiles | None = None
    entropy: Quartiles | None = None
    first_order: Quartiles | None = _omitted()
    central: Quartiles | None = _omitted()


class Unlearnable(Record):
    """Images that every reference student misses at its own x'; teacher_wrong: at those x', on them."""

    count: int = 0
    share: float | None = None
    entropy: Quartiles | None = None
    entropy_elsewhere: Quartiles | None = None
    teacher_wrong: float | None = None


class Finding(Record):
    """One part of a judgement; answer: "yes", "no" or "unclear"; threshold: and who says so."""

    question: str = ""
    answer: str = ""
    evidence: str = ""
    threshold: str = ""


class TeacherQuality(Record):
    """Will this teacher help? students: title -> robust accuracy; verdict: "" where it was not judged."""

    attack: str = ""
    num_examples: int | None = None
    num_classes: int | None = None
    views: dict[str, TeacherView] = _dict()
    students: dict[str, float] = _dict()
    unlearnable: Unlearnable | None = _omitted()
    verdict: str = _omitted("")
    findings: tuple[Finding, ...] = _omitted(())


class Teacher(Record):
    """Where a teacher came from; folder: of its network; accuracy: "clean" and attacks -> as seen here."""

    source: str = ""
    identity: str = ""
    model: str = ""
    folder: str = _omitted("")
    accuracy: dict[str, float] = _dict_or_omitted()
    quality: TeacherQuality | None = _omitted()


class Timing(Record):
    """Times of a training, see `train_log.of_training`."""

    train_seconds: float | None = None
    images_per_second: float | None = None
    seconds_per_epoch: float | None = _omitted()
    compile_seconds: float | None = _omitted()
    compilation_cache: dict[str, int] = _dict_or_omitted()


class Evaluation(Record):
    """evaluation.json: networks under attacks, and what was run.

    Attributes:
      schema: version of the layout.
      select_on: split that chose the best checkpoint; "" where nothing was chosen.
      config: the experiment.
      attacks: name -> parameters.
      teachers: role -> where it came from.
      nets: title -> results, in the order of the tables.
      checkpoint: folder of the step that was evaluated; "" for a run's own evaluation.
    """

    schema: int = 1
    name: str = ""
    created: str = ""
    seed: int | None = None
    dataset: Dataset = Dataset()
    eps: float | None = None
    norm: str = "linf"
    select_on: str = ""
    command: str = ""
    versions: dict[str, str] = _dict()
    config: dict[str, Any] = _dict()
    attacks: dict[str, Attack] = _dict()
    teachers: dict[str, Teacher] = _dict()
    nets: dict[str, NetworkResult] = _dict()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    timing: Timing | None = _omitted()
    checkpoint: str = _omitted("")

    def text(self) -> str:
        """Returns what evaluation.json holds: the record, and a checksum of it."""
        values = self.to_json()
        return json.dumps(values | {_CHECKSUM: _checksum(values)}, indent=1)

    def attack_names(self) -> list[str]:
        """All attacks, in the order of the record; those that only a network names come last."""
        return list(
            dict.fromkeys([*self.attacks, *(a for n in self.nets.values() for a in n.attacks)])
        )

    def main_attack(self) -> str | None:
        """The attack whose weighted robust accuracy heads the report; None without attacks."""
        names = self.attack_names()
        return next(
            (n for n in ("autoattack", "pgd_sat", "pgd_trades", *names) if n in names), None
        )


class TeacherReport(Record):
    """teacher.json: `--mode=teacher`; students: title -> checkpoint."""

    schema: int = 1
    created: str = ""
    command: str = ""
    versions: dict[str, str] = _dict()
    checkpoint: str = ""
    model: str = ""
    dataset: Dataset = Dataset()
    eps: float | None = None
    norm: str = "linf"
    attack: Attack = Attack()
    students: dict[str, str] = _dict()
    quality: TeacherQuality = TeacherQuality()


class Spread(Record):
    """One metric over the seeds; sd: sample standard deviation (n - 1), None for one value."""

    mean: float = math.nan
    sd: float | None = None
    n: int = 0
    values: Floats = ()


class Result(Record):
    """One row of a comparison.

    Attributes:
      row: its label.
      method: "" for a teacher.
      role: "student" or "teacher".
      net: "" for the student itself, "EMA" or "SWA" for its average.
      checkpoint: "best" or "last"; "" for a teacher.
      seeds: of the finished runs.
      metrics: "clean", "pgd_sat", "pgd_sat/nrr", "worst_case", ... -> its spread.
    """

    row: str = ""
    method: str = ""
    role: str = "student"
    net: str = ""
    checkpoint: str = ""
    seeds: tuple[int, ...] = ()
    metrics: dict[str, Spread] = _dict()


class Run(Record):
    """One run of a comparison; status: "finished", "failed" or "pending"."""

    method: str = ""
    seed: int = 0
    status: str = "pending"
    folder: str = ""
    error: str = _omitted("")
    train_seconds: float | None = _omitted()
    seconds_per_epoch: float | None = _omitted()


class ComparedTeacher(Record):
    """A teacher that `methods` share; config: the protocol of `net`; error: why it cannot teach."""

    role: str = _omitted("")
    methods: tuple[str, ...] = _omitted(())
    source: str = _omitted("")
    identity: str = _omitted("")
    model: str = _omitted("")
    net: NetworkResult | None = _omitted()
    config: dict[str, Any] = _dict_or_omitted()
    error: str = _omitted("")


class ComparisonRecord(Record):
    """comparison.json; see `config.comparison.Comparison` for the fields of the same name."""

    schema: int = 1
    name: str = ""
    created: str = ""
    command: str = ""
    versions: dict[str, str] = _dict()
    main_attack: str = ""
    seeds: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    protocol: dict[str, Any] = _dict()
    settings: dict[str, dict[str, Any]] = _dict()
    published: dict[str, Any] = _dict()
    runs: tuple[Run, ...] = ()
    teachers: dict[str, ComparedTeacher] = _dict()
    dataset: Dataset | None = _omitted()
    eps: float | None = _omitted()
    norm: str = _omitted("")
    select_on: str = _omitted("")
    attacks: dict[str, Attack] = _dict()
    results: tuple[Result, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def label(record: Evaluation | ComparisonRecord, attack: str | None) -> str:
    """Printed name of an attack, for example "PGD_sat" for "pgd_sat"; "" for none."""
    known = record.attacks.get(attack or "")
    return known.label if known and known.label else attack or ""


def selection_note(record: Evaluation | ComparisonRecord) -> str:
    """Says on which split the best checkpoint was chosen; "" when the record does not say."""
    if record.select_on == "test":
        return (
            "The best checkpoint was selected on the TEST set, as the papers do: "
            "its numbers here are optimistic."
        )
    note = f"The best checkpoint was selected on the {record.select_on} split; the test set played no part."
    return note if record.select_on else ""


def read_evaluation(folder: str | os.PathLike) -> Evaluation | None:
    """The evaluation of a folder; None where there is none, or a damaged one, which a warning tells."""
    path, why = Path(folder) / EVALUATION_FILE, "was changed after it was written"
    try:
        values = json.loads(path.read_text())
        saved = values.pop(_CHECKSUM, None)  # none in files of earlier versions
        if saved is None or saved == _checksum(values):
            return Evaluation.from_json(values)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        why = f"cannot be read ({error})"
    logging.warning(
        "%s %s: it counts as missing. Put the original back, or evaluate anew", path, why
    )
    return None


def _checksum(values: dict[str, Any]) -> int:
    """CRC-32 of a JSON object, however it is laid out."""
    plain = json.loads(json.dumps(values))
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())
