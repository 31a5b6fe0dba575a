"""Finds everything that is wrong with an experiment before any compute is spent."""

from typing import Any

from ard_jax import attacks, data, methods, models
from ard_jax.config import build
from ard_jax.config.schema import (
    AttackConfig,
    DataConfig,
    EvalConfig,
    Experiment,
    NetConfig,
    TeacherConfig,
)
from ard_jax.data.augment import KINDS

RECIPES = ("natural", "sat", "trades")


def find_problems(experiment: Experiment) -> list[str]:
    """Every problem of the experiment, one sentence each; empty when it can run."""
    e, found = experiment, []
    for name in ("epochs", "batch_size"):
        if getattr(e, name) < 1:
            found.append(f"config.{name}={getattr(e, name)}: must be at least 1")
    if not 0 < e.eps <= 1 and e.norm == "linf":
        found.append(
            f"config.eps={e.eps}: must be in (0, 1], in units of [0,1] pixels (8/255 = 0.0314)"
        )
    _choice(found, "config.norm", e.norm, ("linf", "l2"))
    _choice(found, "config.select_on", e.select_on, ("validation", "test"))
    _choice(found, "config.precision", e.precision, ("float32", "bfloat16"))
    if not 0 <= e.ema_decay < 1:
        found.append(f"config.ema_decay={e.ema_decay}: must be in [0, 1)")
    if e.swa_start < 0:
        found.append(f"config.swa_start={e.swa_start}: an epoch, or 0 for no weight average")
    if e.ema_decay and e.swa_start:
        found.append("config.ema_decay and config.swa_start are both set: choose one average")
    found += _bn_problems("config.batch_size", e.batch_size, e.bn_groups)
    if e.awp.gamma < 0:
        found.append(f"config.awp.gamma={e.awp.gamma}: must not be negative; 0 for none")
    if e.select_on == "validation" and not e.data.holdout > 0:
        found.append("config.data.holdout=0 leaves no validation images to select on; hold some out, "
                     "or set config.select_on=test as the papers do")  # fmt: skip
    _validate_data(found, e.data)
    _validate_net(found, "config.student", e.student)
    found += e.student_optim.problems("config.student_optim")
    _validate_method(found, e)
    _validate_eval(found, e.eval)
    if e.norm == "linf" and e.eps == 1 and set(e.eval.attacks) & set(attacks.suite_names()):
        found.append("config.eps=1: every image is within reach; AutoAttack needs eps below 1")
    return found


def _validate_data(found: list[str], d: DataConfig) -> None:
    _choice(found, "config.data.name", d.name, data.names())
    _choice(found, "config.data.augment", d.augment, KINDS)
    _choice(found, "config.data.last_batch", d.last_batch, ("drop", "keep"))
    if d.holdout < 0 or (d.holdout >= 1 and d.holdout != int(d.holdout)):
        found.append(
            f"config.data.holdout={d.holdout}: a share below 1, or a whole number of images"
        )
    if d.pad < 0:
        found.append(f"config.data.pad={d.pad}: must not be negative")
    reading = data.Reading(d.loader, d.image_size, d.workers, d.prefetch)
    found += data.reading_problems(d.name, reading)
    _choice(found, "config.data.on_device", d.on_device, ("auto", "on", "off"))
    if d.on_device == "on" and d.loader == "grain":
        found.append(
            "config.data.on_device='on' with config.data.loader='grain': what is kept on device has to be in "
            "memory first; use config.data.loader=memory, or config.data.on_device=off"
        )


def _validate_method(found: list[str], e: Experiment) -> None:
    try:
        options = methods.make_config(e.method.name, e.method.options)
        found += [f"config.{p}" for p in options.problems()]
    except (ValueError, TypeError) as error:
        found.append(f"config.method: {error}")
        return
    roles = methods.TEACHERS[e.method.name]
    _validate_attack(found, "config.attack", e.attack, e)
    found += [f"config.attack: {p}" for p in _attack_problems(e)]
    if "robust" in methods.TRAINED_TEACHERS[e.method.name]:
        found += e.robust_teacher_optim.problems("config.robust_teacher_optim")
    for role in ("robust", "clean"):
        teacher, where = getattr(e.teachers, role), f"config.teachers.{role}"
        if teacher is None and role in roles:
            found.append(f"{where} is None, but method {e.method.name!r} needs a {role} teacher")
        elif teacher is not None and role not in roles:
            takes = f"only {' and '.join(roles)}" if roles else "no teacher"
            found.append(
                f"{where} is given, but method {e.method.name!r} takes {takes}; set it to None"
            )
        elif teacher is not None:
            _validate_teacher(found, where, teacher, e)


def _attack_problems(e: Experiment) -> list[str]:
    """Why the method cannot train with the configured attack."""
    try:
        spec = build.training_attack(e.attack, e)
    except ValueError:
        return []  # told by _validate_attack
    return methods.attack_problems(e.method.name, spec, e.attack.bn_stats, e.attack.bn)


def _validate_teacher(found: list[str], where: str, teacher: TeacherConfig, e: Experiment) -> None:
    if not 0 <= teacher.min_clean <= 1:
        found.append(f"{where}.min_clean={teacher.min_clean}: a share in [0, 1], not percent")
    if teacher.checkpoint:
        return
    _validate_net(found, f"{where}.net", teacher.net)
    _choice(found, f"{where}.recipe.method", teacher.recipe.method, RECIPES)
    found += teacher.recipe.optim.problems(f"{where}.recipe.optim")
    recipe = teacher.recipe
    _validate_attack(found, f"{where}.recipe.attack", recipe.attack, e)
    for name in ("epochs", "batch_size", "eval_every"):
        if getattr(teacher.recipe, name) < 1:
            found.append(f"{where}.recipe.{name}: must be at least 1")
    if e.bn_groups >= 1:  # otherwise told already
        size = teacher.recipe.batch_size
        found += _bn_problems(f"{where}.recipe.batch_size", size, e.bn_groups)


def _bn_problems(where: str, batch_size: int, groups: int) -> list[str]:
    if groups < 1:
        return [f"config.bn_groups={groups}: 1 for BatchNorm over the whole batch, or more"]
    if batch_size % groups:
        return [f"{where}={batch_size} does not divide by config.bn_groups={groups}"]
    return []


def _validate_net(found: list[str], where: str, net: NetConfig) -> None:
    try:
        models.check_name(net.model)
    except ValueError as error:
        found.append(f"{where}.model: {error}")
    _choice(found, f"{where}.init", net.init, ("", "torch", "flax"))


def _validate_attack(found: list[str], where: str, attack: AttackConfig, e: Experiment) -> None:
    _choice(found, f"{where}.init", attack.init, ("", "none", "uniform", "gauss"))
    _choice(found, f"{where}.bn", attack.bn, ("eval", "train"))
    _choice(found, f"{where}.bn_stats", attack.bn_stats, ("discard", "keep"))
    for name in ("step_size", "steps"):
        if getattr(attack, name) < 0:
            found.append(f"{where}.{name}={getattr(attack, name)}: must not be negative")
            return
    if attack.name not in attacks.names():
        _choice(found, f"{where}.name", attack.name, attacks.names())
    elif 0 < e.eps <= 1:  # otherwise told already
        try:
            build.training_attack(attack, e)
        except ValueError as error:
            found.append(f"{where}: {error}")


def _validate_eval(found: list[str], evaluation: EvalConfig) -> None:
    for name in evaluation.attacks:
        _choice(
            found,
            "config.eval attack",
            name,
            list(dict.fromkeys([*attacks.names(), *attacks.suite_names()])),
        )
    for name in (evaluation.select_attack, *evaluation.step_sizes):
        _choice(found, "config.eval attack", name, attacks.names())
    _choice(
        found,
        "config.eval.autoattack_nets",
        evaluation.autoattack_nets,
        ("all", "students", "best"),
    )
    if evaluation.autoattack_examples < 0:
        found.append(
            f"config.eval.autoattack_examples={evaluation.autoattack_examples}: a number of examples, 0 for "
            "all; to leave AutoAttack out, take it from config.eval.attacks"
        )
    if evaluation.attacks and all(name.startswith("dpgd") for name in evaluation.attacks):
        found.append(
            f"config.eval.attacks={evaluation.attacks}: DPGD alone can stall where it should succeed (its "
            "gradient vanishes on confident images); add another attack, such as pgd_sat"
        )
    if evaluation.transfer and not evaluation.teachers:
        found.append(
            "config.eval.transfer needs the teachers' own evaluation: set config.eval.teachers too"
        )
    if not evaluation.attacks:
        found.append("config.eval.attacks is empty: name at least one attack")
    for name in ("batch_size", "every"):
        if getattr(evaluation, name) < 1:
            found.append(f"config.eval.{name}={getattr(evaluation, name)}: must be at least 1")


def _choice(found: list[str], where: str, value: Any, choices: Any) -> None:
    if value not in choices:
        found.append(f"{where}={value!r}: choose one of {', '.join(map(repr, choices))}")
