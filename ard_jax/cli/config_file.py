"""The file of --config, and the values that --config.PATH=VALUE puts into what it makes.

ml_collections' own flag takes only values that the file lists, and no fractions; what may be set here is
what the schema has, parsed by the schema's types.
"""

import codecs
import importlib.machinery
import importlib.util
import inspect
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_collections

from ard_jax import attacks, configs, methods
from ard_jax.cli import values
from ard_jax.config.comparison import SHORTENED, ComparisonConfig
from ard_jax.config.schema import Experiment
from ard_jax.data.augment import PADDED, PLAIN
from ard_jax.io import options
from ard_jax.optim import OF_SCHEDULE

# A file of one method, as there was for each: configs/rslad_cifar10.py is configs/cifar10.py:rslad.
_METHOD_FILE = re.compile(r"(\w+)_(digits|cifar100|cifar10|tiny_imagenet)(\.py)?")
# The experiments that come with the package.
_SHIPPED = Path(configs.__path__[0])


class ConfigFileError(ValueError):
    """A config file that makes no configuration, or a value that it cannot take."""


def load(name: str, overrides: Iterable[str] = ()) -> Any:
    """Returns the configuration of a file, with the overrides in it.

    Args:
      name: FILE.py, or FILE.py:CHOICE for `get_config(CHOICE)`. NAME and configs/NAME.py are, where there is
        no such file, an experiment of the package.
      overrides: PATH=VALUE, applied in order; `values.parse` says what a value looks like.

    Raises:
      ConfigFileError: no such file, one that cannot be run or has no `get_config`, or the problems of all
        overrides together.
    """
    file, colon, choice = name.partition(":")
    config = _made(_path(file), name, (choice,) if colon else ())
    overrides = list(overrides)
    types_, former = (_types(config), _methods(config)) if overrides else ({}, {})
    problems = [problem for one in overrides if (problem := _apply(config, types_, one))]
    given = [one.partition("=")[0] for one in overrides]
    problems = problems or _idle(config, given)
    if overrides and not problems:
        problems = _foreign(config, given, name, former)
    if problems:
        raise ConfigFileError(
            "\n  - ".join(["The command line sets what cannot be set:", *problems])
        )
    return config


def _path(file: str) -> Path:
    """The file, or where there is none that of the package's experiment of this name."""
    path = Path(file)
    shipped = _SHIPPED / f"{path.name.removesuffix('.py')}.py"
    named = path.parent in (Path(), Path("configs")) and shipped.is_file()
    return shipped if named and not path.is_file() else path


def _made(path: Path, name: str, arguments: tuple[str, ...]) -> Any:
    """What `get_config` of the file returns."""
    if not path.is_file():
        raise ConfigFileError(_missing(path, name))
    if path.suffix == ".json":
        raise ConfigFileError(
            f"--config={name}: {path} is JSON, not a Python file with get_config(); what a run was trained "
            "with is taken from its folder: --mode=evaluate or export with --checkpoint=FOLDER"
        )
    if path.suffix != ".py":
        raise ConfigFileError(
            f"--config={name}: {path} is no Python file with get_config(), such as FILE.py"
        )
    get_config = getattr(_module(path), "get_config", None)
    if not callable(get_config):
        raise ConfigFileError(f"--config={name}: {path} is no config file; it has no get_config()")
    if not _takes(get_config, arguments):
        takes = (
            "needs a choice behind a colon" if not arguments else "takes no choice behind its colon"
        )
        if not _takes(get_config, ()) and not _takes(get_config, ("",)):
            takes = (
                f"has get_config{inspect.signature(get_config)}, which must take nothing, or one text: what "
                "stands behind a colon"
            )
        raise ConfigFileError(f"--config={name}: {path} {takes}")
    try:
        config = get_config(*arguments)
    except ValueError as error:
        raise ConfigFileError(str(error)) from error
    except (Exception, SystemExit) as error:
        raise _broken(path, error) from error
    if isinstance(config, dict):
        config = ml_collections.ConfigDict(config)
    if not isinstance(config, ml_collections.ConfigDict):
        kind = type(config).__name__
        raise ConfigFileError(f"--config={name}: get_config() returned {kind}, not a ConfigDict")
    if lacks := [
        group for group in ("data", "method") if group not in config and "runs" not in config
    ]:
        raise ConfigFileError(
            f"--config={name}: get_config() returned no {' and no '.join(lacks)}; change values of a whole "
            "configuration, such as that of configs/digits.py"
        )
    return config


def _takes(function: Callable, arguments: tuple[str, ...]) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


def _missing(path: Path, name: str) -> str:
    choice = name.partition(":")[2]
    if path.is_dir():
        return f"--config={name}: {path} is a folder; give a config file"
    if "://" in name:
        return f"--config={name}: give a file of this machine; nothing is loaded from the network"
    if "\\" in name and os.sep == "/":
        return f"--config={name}: write folders with /: --config={name.replace(chr(92), '/')}"
    if Path(name).is_file():
        return f"--config={name}: a colon stands before a choice; give the file a name without one"
    method = _METHOD_FILE.fullmatch(path.name)
    if method and _path(str(file := path.with_name(f"{method[2]}{path.suffix}"))).is_file():
        choice = f"{method[1]}:{choice}" if choice else method[1]
        return f"{path} does not exist; the config of a method is --config={file}:{choice}"
    choice = f":{choice}" if choice else ""
    for folder in (path.parent, Path("configs"), _SHIPPED):
        files = sorted(p.stem for p in folder.glob("[!_]*.py"))
        prefix, ending = str(folder / "_")[:-1], f".py{choice}"
        if folder is _SHIPPED:  # by name alone
            prefix, ending = "", choice
        if near := values.nearest(path.stem, files, prefix, ending):
            break
    return f"--config={name}: {path} does not exist{near}"


def _module(path: Path) -> types.ModuleType:
    """The file's module, whatever its name ends in; it may import the package's from `.`."""
    loader = importlib.machinery.SourceFileLoader(f"{configs.__name__}._{path.stem}", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look for the module of their class
    kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # beside foreign files
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _broken(path, error) from error
    finally:
        sys.dont_write_bytecode = kept
    return module


def _broken(path: Path, error: BaseException) -> ConfigFileError:
    if path.read_bytes()[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return ConfigFileError(f"{path} is saved as UTF-16; save it as UTF-8")
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f"{path}, line {line}" if line else str(path)
    return ConfigFileError(
        f"{where}: {type(error).__name__}: {error}; it is no working config file"
    )


def _apply(config: Any, types_: dict[str, Any], override: str) -> str:
    """Sets one value; returns what is wrong with it, or ""."""
    path, given, text = override.partition("=")
    if not given and types_.get(path, bool) is bool:
        text = "True"
    elif not given and path in types_:
        return f"config.{path} has no value; write --config.{path}=VALUE"
    if ":" in path:
        name, _, value = path.partition(":")
        return f"config.{path}: = stands before a value: --config.{name}={value}"
    inside = sorted(known for known in types_ if known.startswith(f"{path}."))
    opened = next(
        (p for p in types_ if path.startswith(f"{p}.") and typing.get_origin(types_[p]) is dict), ""
    )
    if path not in types_ and not inside and not opened:
        return _unknown(path, sorted(types_))
    if inside and text.lower() != "none":
        return f"config.{path} is a group of values: set those in it, such as config.{inside[0]}"
    *groups, last = path.split(".")
    group, where = config, "config"
    for name in groups:
        where = f"{where}.{name}"
        if name not in group:
            with group.unlocked():
                group[name] = ml_collections.ConfigDict()
        group = group[name]
        if not isinstance(group, ml_collections.ConfigDict):
            takers = ", ".join(m for m in methods.names() if name in methods.TEACHERS[m])
            fix = takers and f"; methods with a {name} teacher are {takers}: choose a config of one"
            return f"config.{path}: {where} is {group!r}, so nothing in it can be set{fix}"
    try:
        value = values.parse(text, types_.get(path, Any), group.get(last))
    except ValueError as error:
        return f"config.{path}={text}: {error}"
    if path == "seeds" and text.strip().isdecimal():
        return (
            f"config.seeds={text}: give the seeds themselves, such as 0,1,2 for three of them, or {text}, "
            f"with its comma for seed {text} alone"
        )
    with group.unlocked(), group.ignore_type():
        group[last] = value
    return ""


def _idle(config: Any, given: list[str]) -> list[str]:
    """Which of the values that were set are never read, beside the others, and why."""
    found = [text for path in dict.fromkeys(given) if (text := _idle_in_teacher(config, path))]
    if "runs" in config:
        return found + [text for path in dict.fromkeys(given) if (text := _idle_run(config, path))]
    kind = config.data.get("augment")
    if "data.pad" in given and kind not in PADDED:
        found.append(
            f"config.data.pad is of random crops: leave it out with config.data.augment={kind}"
        )
    if "data.flip" in given and kind in PLAIN:
        found.append(
            f"config.data.flip is of the stronger augmentations: leave it out with "
            f"config.data.augment={kind}; crop_flip mirrors, crop does not"
        )
    if "data.extra_fraction" in given and not config.data.get("extra"):
        found.append(
            "config.data.extra_fraction is of config.data.extra: give that file, or leave it out"
        )
    return found + [text for path in dict.fromkeys(given) if (text := _unread(config, path))]


def _unread(config: Any, path: str) -> str:
    """Why a value of one experiment has no effect beside the others; "" if it has."""
    group, _, name = path.rpartition(".")
    schedule = config[group].get("schedule", "constant") if group.endswith("_optim") else ""
    of = OF_SCHEDULE.get(name, schedule)
    if schedule and of != schedule and config[group][name] not in ((), False):
        return f"config.{path} is of {of}: leave it out with config.{group}.schedule={schedule}"
    method = config.get("method", {}).get("name", "")
    if group.startswith("attack") and not methods.ATTACKS.get(method, "any"):
        return f"config.{path}: {method} trains without an attack; leave it out"
    if path == "attack.bn_stats" and config.attack.get("bn", "eval") == "eval":
        return f"config.{path} is of config.attack.bn=train: set that too, or leave it out"
    if path == "eval.save_images" and config.eval.save_images:
        if not set(config.eval.get("attacks", attacks.SUITES)) & set(attacks.SUITES):
            return f"config.{path}: AutoAttack's images are saved; add autoattack to config.eval.attacks"
    if path == "eval.autoattack_examples" and config.eval.autoattack_examples:
        if not set(config.eval.get("attacks", attacks.SUITES)) & set(attacks.SUITES):
            return f"config.{path}: AutoAttack is not run; add autoattack to config.eval.attacks"
    if group == "robust_teacher_optim" and "robust" not in methods.TRAINED_TEACHERS.get(
        method, "robust"
    ):
        return f"config.{path}: {method} does not train its robust teacher; leave it out"
    if path == "eval.dense_from" and config.eval.dense_from > config.get("epochs", math.inf):
        return (
            f"config.{path}={config.eval.dense_from} lies behind the last of {config.epochs} epochs"
        )
    if path in ("data.workers", "data.prefetch") and config.data.get("loader") != "grain":
        return f"config.{path} is of config.data.loader=grain: set that too, or leave it out"
    return ""


def _idle_in_teacher(config: Any, path: str) -> str:
    """Why a value of a teacher's network or recipe is never read; "" if it is."""
    match = re.fullmatch(r"((?:runs\.\w+\.)?)teachers\.(\w+)\.((net|recipe)\..*)", path)
    if not match:
        return ""
    prefix, role, field, _ = match.groups()
    teacher, where = _experiments(config)[prefix].teachers[role], f"config.{prefix}teachers.{role}"
    if teacher is None:
        return ""
    if teacher.get("checkpoint"):
        return (
            f"config.{path} is of a teacher that is trained: leave it out with {where}.checkpoint="
            f"{teacher.checkpoint}, which brings its own network, or leave that out"
        )
    method = teacher.get("recipe", {}).get("method")
    if field == "recipe.beta" and method != "trades":
        reader = "'trades'"
    elif field.startswith("recipe.attack.") and method == "natural":
        reader = "'sat' and 'trades'"
    else:
        return ""
    return f"config.{path} is of {reader}: leave it out with {where}.recipe.method={method!r}"


def _experiments(config: Any) -> dict[str, Any]:
    """Beginning of dotted names -> experiment: one, or the runs of a comparison."""
    runs: Any = config.get("runs")
    return {"": config} if runs is None else {f"runs.{name}.": runs[name] for name in runs}


def _methods(config: Any) -> dict[str, Any]:
    """Likewise -> name of the method."""
    return {
        prefix: one.get("method", {}).get("name") for prefix, one in _experiments(config).items()
    }


def _foreign(config: Any, given: list[str], name: str, former: dict[str, Any]) -> list[str]:
    """What would stay of the `former` methods of the file `name` where others were set."""
    changed = {p: m for p, m in _methods(config).items() if m != former[p] and m in methods.ATTACKS}
    found = []
    for prefix, method in changed.items():
        one, own = _experiments(config)[prefix], methods.ATTACKS[method]
        set_, attack = f"config.{prefix}method.name={method}: {name} has", one.get("attack")
        has = attack.get("name") if isinstance(attack, ml_collections.ConfigDict) else None
        instead = f"use a config of {method}, such as configs/digits.py:{method}"
        attack_given = any(path.startswith(f"{prefix}attack.") for path in given)
        if own and has not in (None, own) and not attack_given:
            found.append(
                f"{set_} the attack {has}, that of {method} is {own}; {instead}, or set "
                f"config.{prefix}attack.name too"
            )
        kept = [n for n in one.method if n != "name" and f"{prefix}method.{n}" not in given]
        if kept:
            values_ = ", ".join(f"{n}={one.method[n]}" for n in kept[:3])
            more = ", ..." if kept[3:] else ""
            found.append(f"{set_} {values_}{more} for {former[prefix]}; {instead}")
    return found


def _idle_run(config: Any, path: str) -> str:
    """Why a value of one run of a comparison is never read; "" if it is."""
    group, _, inner = path.partition(".")
    name, _, field = inner.partition(".")
    methods_ = config.get("methods", ())
    if group != "runs" or not isinstance(methods_, tuple | list):
        return ""
    if name not in methods_:
        compared = ", ".join(map(str, methods_))
        return f"config.{path}: run {name!r} is not compared; config.methods has {compared}"
    if instead := {"seed": "seeds", "workdir": "workdir", "name": "name"}.get(field):
        return f"config.{path}: the runs of a comparison follow config.{instead}; set that"
    set_to = config.runs[name].eval.get(field.rpartition(".")[2]) if field in SHORTENED else None
    if set_to and not config.get("full_reports"):  # empty, as without a full report, is no mistake
        return f"config.{path}: not measured without config.full_reports=True; set that too"
    if config.get("data_dir") and field == "data.dir":
        return f"config.{path}: config.data_dir={config.data_dir!r} replaces it; set one of them"
    return ""


def _unknown(path: str, known: list[str]) -> str:
    """What to write instead of an unknown name: similar ones, else what its group has."""
    if group := re.match(r"(?:runs\.\w+\.)?method(?=\.)", path):
        have = [
            p.rpartition(".")[2]
            for p in known
            if p.startswith(f"{group[0]}.") and p != f"{group[0]}.name"
        ]
        return f"config.{path} does not exist: this method has " + (
            f"the options {', '.join(have)}" if have else "no options"
        )
    where, _, end = path.rpartition(".")
    if end in ("name", "optimiser") and where.endswith("optim"):
        return (
            f"config.{path} does not exist; did you mean config.{where}.optimizer (sgd or adamw)?"
        )
    if where in known:
        return f"config.{path} does not exist: config.{where} is one value; set that"
    if near := values.nearest(path, known, "config."):
        return f"config.{path} does not exist{near}"
    depth = path.count(".")
    group = [p for p in known if p.startswith(f"{where}.") or not where]
    names = dict.fromkeys(p.split(".")[depth] for p in group)
    return f"config.{path} does not exist; config{where and '.'}{where} has {', '.join(names) or 'none'}"


def _types(config: Any) -> dict[str, Any]:
    """Dotted name -> type of everything that can be set; those below a name of type dict are free."""
    if "runs" not in config:
        return dict(_of_experiment(config))
    found = {n: t for n, t in _leaves(ComparisonConfig) if n != "runs"}
    for name, run in config.runs.items():
        found |= {f"runs.{name}.{path}": hint for path, hint in _of_experiment(run)}
    return found


def _of_experiment(config: Any) -> Iterator[tuple[str, Any]]:
    yield from (leaf for leaf in _leaves(Experiment) if leaf[0] != "method.options")
    method = config.get("method", {}).get("name", "")
    if method in methods.names():
        yield from _leaves(type(methods.make_config(method, {})), "method.")


def _leaves(record: type[options.Options], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in record.model_fields.items():
        if inner := options.record_of(field.annotation):
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field.annotation
