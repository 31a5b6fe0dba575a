"""Checks of an experiment that need other packages: the registries, and what is built from several groups."""

import math
import re
from typing import Any

import jax

from ard_jax import attacks, data, methods, models
from ard_jax.config import build
from ard_jax.config.schema import ROLES, AttackConfig, Experiment, NetConfig, TeacherConfig
from ard_jax.data import augment

_LARGEST = 10_000  # width or depth: the widest network of the papers has 1024 channels


def find_problems(experiment: Experiment) -> list[str]:
    """Every problem beyond those of the records, one sentence each; empty when it can run."""
    e = experiment
    folders = {"config.workdir": e.workdir, "config.teachers.cache": e.teachers.cache}
    found = [
        f"{where}={folder}: a run writes to a local folder; give one, and copy it when the run has ended"
        for where, folder in folders.items()
        if "://" in folder
    ]
    found += _data_problems(e)
    found += _net_problems("config.student", e.student, e)
    found += _method_problems(e)
    names = {f"config.eval.attacks: {n!r}": n for n in e.eval.attacks}
    found += _choices(names, build.evaluable())
    names = {f"config.eval.step_sizes: {n!r}": n for n in e.eval.step_sizes}
    names[f"config.eval.select_attack={e.eval.select_attack!r}"] = e.eval.select_attack
    found += _choices(names, [n for n in build.evaluable() if n in attacks.names()])
    made = {*e.eval.attacks, e.eval.select_attack, *build.attacks_beside(e)}
    if idle := [n for n in e.eval.step_sizes if n in attacks.names() and n not in made]:
        found.append(
            f"config.eval.step_sizes: {', '.join(idle)} is no attack of this evaluation; add it to "
            "config.eval.attacks, or leave its step size out"
        )
    if e.norm == "linf" and e.eps == 1 and set(e.eval.attacks) & set(attacks.suite_names()):
        found.append("config.eps=1: every image is within reach; AutoAttack needs eps below 1")
    return found


def _data_problems(e: Experiment) -> list[str]:
    d = e.data
    if d.name not in data.names():
        return _choices({f"config.data.name={d.name!r}": d.name}, data.names())
    found = data.reading_problems(d.name, build.reading(d))
    shape = data.known_shape(d.name, d.image_size)
    if shape and d.augment in augment.PADDED and d.pad >= min(shape[:2]):
        found.append(
            f"config.data.pad={d.pad}: must be less than the images' {min(shape[:2])} pixels"
        )
    return found + (radius_problems(e, shape) if shape else [])


def radius_problems(e: Experiment, shape: tuple[int, ...]) -> list[str]:
    """Which radii are beyond any two images [H,W,C] of this shape; `schema` looks at those of Linf."""
    widest = math.sqrt(math.prod(shape))
    if e.norm != "l2":
        return []
    if e.eps > widest:
        return [
            f"config.eps={e.eps}: no two images of {e.data.name} are further apart than {widest:.4g} in L2, "
            "in units of [0,1] pixels (128/255 = 0.502)"
        ]
    if over := [m for m in e.eval.eps_sweep if m * e.eps > widest]:
        return [
            f"config.eval.eps_sweep={e.eval.eps_sweep}: {over} times config.eps={e.eps:.4g} is more than "
            f"{widest:.4g}, the distance of any two images in L2; multiples up to {widest / e.eps:.4g}"
        ]
    return []


def _method_problems(e: Experiment) -> list[str]:
    try:
        options, found = methods.read_options(e.method.name, e.method.options, "config.method")
    except ValueError as error:
        return [f"config.method: {error}"]
    roles = methods.TEACHERS[e.method.name]
    found += _attack_problems("config.attack", e.attack, e, options=options)
    found += [] if options is None else _label_problems(e, options)
    if e.data.augment == augment.ON_HOST and getattr(options, "labels", "") == "offline":
        found.append(
            "config.method.labels='offline': soft labels of whole images are not those of the parts that "
            "config.data.augment='resized_crop' trains on; use online_shared"
        )
    if e.method.name == "consistency_at" and e.data.augment == "none":
        found.append(
            "config.data.augment='none': method 'consistency_at' compares two augmentations of an image, "
            "which would be equal; use another, such as autoaugment"
        )
    if e.accumulate > 1 and options is not None:
        told = methods.accumulation_problems(e.method.name, e.method.options)
        found += [f"config.accumulate={e.accumulate}: {text}" for text in told]
    found += [f"config.{text}" for text in methods.igdm_problems(e.method.name, e.igdm)]
    found += _natural_teacher_problems(e)
    if "robust" in methods.TRAINED_TEACHERS[e.method.name]:
        optim = e.robust_teacher_optim
        found += [f"config.robust_teacher_optim.{text}" for text in optim.misfits(e.epochs)]
    for role in ROLES:
        teacher, where = getattr(e.teachers, role), f"config.teachers.{role}"
        if teacher is None and role in roles:
            found.append(f"{where} is None, but method {e.method.name!r} needs a {role} teacher")
        elif teacher is not None and role not in roles:
            takes = f"only {' and '.join(roles)}" if roles else "no teacher"
            found.append(
                f"{where} is given, but method {e.method.name!r} takes {takes}; set it to None"
            )
        elif teacher is not None and not getattr(teacher, "checkpoint", ""):
            found += _net_problems(f"{where}.net", teacher.net, e)
            if isinstance(teacher, TeacherConfig):
                found += _attack_problems(
                    f"{where}.recipe.attack", teacher.recipe.attack, e, teacher.recipe.method
                )
    return found


def _label_problems(e: Experiment, options: Any) -> list[str]:
    """Why the method cannot learn from the labels that smoothing or mixing makes."""
    try:
        attack = build.training_attack(e.attack, e)
    except ValueError:  # told already
        return []
    found = methods.label_problems(e.method.name, options, attack, e.label_smoothing, e.data.mixes)
    return [f"config.{text}" for text in found]


def _natural_teacher_problems(e: Experiment) -> list[str]:
    """Why the robust teacher's recipe makes no teacher for the method."""
    teacher, needing = e.teachers.robust, methods.needs_robust_teacher(e.method.name, e.igdm)
    if not needing or teacher is None or teacher.checkpoint or teacher.recipe.method != "natural":
        return []
    return [
        f"config.teachers.robust.recipe.method='natural': {needing} needs a teacher that is robust, "
        "without one the student falls to chance; use 'sat' or 'trades'"
    ]


def _net_problems(where: str, net: NetConfig, e: Experiment) -> list[str]:
    """Why there is no such network for the images, as far as their size is known."""
    sizes = {f"model={net.model!r}": re.findall(r"\d+", net.model)}
    sizes |= {f"kwargs.{name}={value!r}": value for name, value in net.kwargs.items()}
    if huge := [text for text, value in sizes.items() if _is_huge(value)]:
        return [f"{where}.{text}: must be at most {_LARGEST}" for text in huge]
    try:
        statistics = net.statistics()
        mean = statistics.get("mean") if isinstance(statistics, dict) else None
        unknown = (64, 64, len(mean) if isinstance(mean, list) and mean else 3)
        known = e.data.name in data.names()  # another is told of
        shape = known and data.known_shape(e.data.name, e.data.image_size) or unknown
        init = net.init or "torch"
        models.create(net.model, 10, shape, init=init, normalization=statistics, **net.kwargs)
    except (ValueError, TypeError) as error:
        if "has no option" in str(error):
            fix = f"{where}.kwargs has those of another network: --{where}.kwargs={{}} leaves them out"
            return [f"{where}: {error}; {fix}"]
        return [f"{where}: {error}"]
    return []


def _is_huge(value: Any) -> bool:
    numbers = (float(n) for n in jax.tree.leaves(value) if str(n).replace(".", "").isdecimal())
    return any(number > _LARGEST for number in numbers)


def _attack_problems(
    where: str, attack: AttackConfig, e: Experiment, recipe: str = "", options: Any = None
) -> list[str]:
    """Why there is no such attack, or why the method with these options cannot train with it.

    `recipe`: method of a teacher's recipe, whose attack it is; "" for the student's.
    """
    if attack.name not in (known := attacks.training_names()):
        return _choices({f"{where}.name={attack.name!r}": attack.name}, known)
    try:
        spec = build.training_attack(attack, e)
    except ValueError as error:
        return [f"{where}: {error}"]
    told = methods.ramp_problems(recipe or e.method.name, spec, attack.eps_ramp, options)
    if not recipe and e.method.name in methods.ATTACKING:
        told += methods.attack_problems(
            e.method.name, spec, attack.bn_stats, attack.bn, options,
            soft_labels=build.has_soft_labels(e),
        )  # fmt: skip
    return [f"{where}: {text}" for text in told]


def _choices(values: dict[str, Any], known: list[str]) -> list[str]:
    """One sentence for each text -> value that is not known."""
    choices = ", ".join(map(repr, known))
    return [
        f"{text}: choose one of {choices}" for text, value in values.items() if value not in known
    ]
