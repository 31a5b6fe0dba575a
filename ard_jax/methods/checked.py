"""What a method is given, looked at before anything is computed with it."""

import contextlib
import dataclasses
import inspect
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var

from ard_jax.attacks import registry, threat_model
from ard_jax.attacks.attack import Attack
from ard_jax.attacks.auto_attack.apgd import ApgdAttack
from ard_jax.attacks.friendly import FriendlyAttack
from ard_jax.attacks.projected_gradient import PgdAttack
from ard_jax.io.options import Options
from ard_jax.losses import checks
from ard_jax.models.bundle import ModelBundle, check_fit
from ard_jax.state import NetState, RunState

_OURS = (PgdAttack, FriendlyAttack, ApgdAttack)
# Metrics that a method's update and the log of a run have of their own.
OF_UPDATE = ("loss", "lr")
_OF_FROM_LOSS = (*OF_UPDATE, "accuracy", "robust_accuracy", "loss_base", "loss_igdm")
# Operations without a gradient; those that give integers or truth values have none either.
_FLAT = ("stop_gradient", "sign", "floor", "ceil", "round")
OF_LOG = ("kind", "step", "epoch", "time", "images_per_second", "param_norm")


def names(value: Any, what: str, choices: tuple[str, ...] = ()) -> None:
    """Raises ValueError unless `value` is a tuple of some of `choices`, or of any texts, each once."""
    several = isinstance(value, tuple | list) and all(isinstance(n, str) for n in value)
    if not several or len(set(value)) < len(value) or choices and not set(value) <= set(choices):
        some = f"some of {choices}" if choices else "texts"
        raise ValueError(f"{what}={value!r}: must be a tuple of {some}, each once")


def registration(entry: Any) -> None:
    """Raises ValueError for a field that is not what a paper's file must give."""
    if not isinstance(entry.name, str) or not entry.name:
        raise ValueError(f"a Registration has the name {entry.name!r}; give a text")
    where = f"Registration {entry.name!r}:"
    if not isinstance(entry.options, type) or not issubclass(entry.options, Options):
        raise ValueError(f"{where} options={entry.options!r}; give a subclass of options.Options")
    if not callable(entry.make) or not _takes_two(entry.make):
        raise ValueError(f"{where} make={entry.make!r}; give a function (options, parts) -> Method")
    for field in ("teachers", "trained_teachers"):
        names(getattr(entry, field), f"{where} {field}")
    if left := set(entry.trained_teachers) - set(entry.teachers):
        raise ValueError(f"{where} trained_teachers has {sorted(left)}, which teachers lacks")
    checks.choice(entry.attack, f"attack of {where[:-1]}", ("", *registry.training_names()))


def _takes_two(function: Callable) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # of a function without a signature
        return True
    return True


def kinds(parts: Any, wanted: dict[str, tuple[Any, str]]) -> None:
    """Raises ValueError unless every field of `wanted`, {name: (kind, what makes one)}, is of its kind.

    "teachers" and "teacher_optims" are mappings to what "student" and "student_optim" are.
    """
    given = [(name, getattr(parts, name), *kind) for name, kind in wanted.items()]
    for field, of in (("teachers", "student"), ("teacher_optims", "student_optim")):
        several = getattr(parts, field)
        if not isinstance(several, Mapping):
            one = f"{{'robust': {wanted[of][1]}}}"
            raise ValueError(f"{field} is {type(several).__name__}; give a dict, such as {one}")
        given += [(f"{field}[{role!r}]", one, *wanted[of]) for role, one in several.items()]
    for name, value, kind, instead in given:
        if not isinstance(value, kind):
            raise ValueError(f"{name} is {type(value).__name__}; give {instead}")


def attack(one: Attack, student: ModelBundle) -> None:
    """Runs an attack of a user's once, as a step would, on two images and a linear function.

    Warns of one that moves none of them.

    Raises:
      ValueError: it fails, or its images are outside of what it declares.
    """
    if type(one) in _OURS:  # which the tests hold to it
        return
    shape, classes = (2, *student.image_shape), student.num_classes
    images = np.random.default_rng(0).random(shape, np.float32)
    images[1] = np.round(images[1])  # both ends of the range

    def predict(x: jax.Array):
        flat = x.reshape(len(x), -1)
        flat = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % classes)))
        return jnp.mean(flat.reshape(len(x), -1, classes), axis=1)

    labels = jnp.argmax(predict(jnp.asarray(images)), -1)

    def run(images: jax.Array):
        given: dict[str, Any] = {"teacher_logits": None, "state": None, "unroll": 1}
        if one.needs_teacher == "logits":
            given["teacher_logits"] = predict(images)
        if one.needs_teacher == "network":
            given["teacher"] = predict
        return one.run(predict, images, labels, jax.random.key(0), **given)

    try:
        found = jax.jit(run)(images)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise ValueError(
            f"attack {one.name!r} reads the values of its images (NumPy, float(), if ...), so that no step "
            "can train with it; write it with jax.numpy"
        ) from error
    except Exception as error:  # whatever a user's function raises
        text = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"attack {one.name!r} fails in training: {type(error).__name__}: {text}"
        ) from error
    threat_model.check_like(found, images, one.name)
    threat = one.threat if one.bounded else dataclasses.replace(one.threat, order="range_only")
    beyond = np.asarray(threat_model.excess(found, images, threat))
    threat_model.check_excess(beyond, threat, one.name)
    if np.array_equal(found, images):
        warnings.warn(
            f"attack {one.name!r} returned its images unchanged, so that a method would train on clean ones",
            stacklevel=3,
        )


def passes(parts: Any, student: Any, teacher_at: Any, views: tuple[str, ...]) -> None:
    """Raises ValueError unless `parts` has what passes of the student and the teacher at `views` need."""
    if not hasattr(parts, "teacher_optims"):
        raise ValueError(f"parts is {type(parts).__name__}; give methods.Parts(student=..., ...)")
    for name, value in (("passes", student), ("teacher_at", teacher_at)):
        names(value, name, views)
    if not student:
        raise ValueError("passes=(): the student needs at least one, such as ('adv',)")
    if teacher_at and "robust" not in parts.teachers:
        raise ValueError(f"teacher_at={teacher_at!r}, but Parts has no teachers['robust']")
    if "adv" in (*student, *teacher_at) and parts.attack is None:
        raise ValueError("'adv' needs Parts(attack=attacks.make(...))")


def lengths(parts: Any) -> None:
    """Raises ValueError for an optimiser whose schedule ends before the run; warns of one beyond it."""
    named = {"student_optim": parts.student_optim}
    named |= {f"teacher_optims[{role!r}]": one for role, one in parts.teacher_optims.items()}
    updates = parts.epochs * parts.steps_per_epoch
    for name, one in named.items():
        if 0 < one.epochs < parts.epochs:
            raise ValueError(
                f"{name} is made for {one.epochs} epochs, but Parts has epochs={parts.epochs}; give "
                f"optim.make(config, {parts.epochs})"
            )
        beyond = one.epochs > parts.epochs
        if beyond and float(one.lr(one.epochs)) != float(one.lr(parts.epochs)):
            warnings.warn(
                f"{name} is made for {one.epochs} epochs, but Parts has epochs={parts.epochs}: its schedule "
                f"does not come to its end; give optim.make(config, {parts.epochs}), unless that is meant",
                stacklevel=4,
            )
        if 0 < one.updates < updates:
            raise ValueError(
                f"{name} is made for {one.updates} updates, but Parts has {parts.epochs} epochs of "
                f"{parts.steps_per_epoch} steps; give optim.make(config, {parts.epochs}, "
                f"{parts.steps_per_epoch})"
            )


def start(parts: Any, student: Any, teachers: Any, roles: tuple[str, ...]) -> None:
    """Raises ValueError unless these are the variables of the student and of the teachers in `parts`."""
    given = teachers if isinstance(teachers, Mapping) else {}
    if missing := [role for role in roles if role not in given]:
        raise ValueError(f"teachers lack {' and '.join(missing)}; give role -> variables")
    if idle := [role for role in given if role not in roles]:
        raise ValueError(f"the method takes no teacher {idle}; it takes {list(roles)}")
    networks = {"the student": (parts.student, student)}
    networks |= {f"the {r} teacher": (parts.teachers[r], v) for r, v in given.items()}
    for name, (network, variables) in networks.items():
        check_fit(network, variables, name)


def step(parts: Any, method: Any, state: Any, batch: Any) -> None:
    """Raises ValueError unless a step can begin; inside of jit it looks at kinds and shapes alone."""
    if not isinstance(state, RunState):
        raise ValueError(f"state is {type(state).__name__}; give that of init or of the last step")
    for name, net in {"student": state.student, **state.teachers}.items():
        if not isinstance(net, NetState):
            raise ValueError(
                f"the state's {name} is {type(net).__name__}; give NetState, such as "
                "NetState.create(variables, opt_state)"
            )
    given = batch if isinstance(batch, Mapping) else {}
    views = ("view",) if method.views == 2 else ()
    if missing := [
        n for n in ("image", "label", "epoch", *views, *method.columns) if n not in given
    ]:
        second = ", view, another augmentation of the images," if views else ""
        raise ValueError(
            f"the batch lacks {', '.join(missing)}: it has image [B,H,W,C] float32 in [0,1], label [B] int32"
            f"{second} and epoch int32, counted from 1"
        )
    images, student = checks.pixels(batch["image"]), parts.student
    if images.shape[1:] != student.image_shape:
        raise ValueError(
            f"the batch has images {list(images.shape)}, the student takes {student.image_shape}"
        )
    for name in ("start_noise", *views):
        if np.shape(batch.get(name, images)) != images.shape:
            raise ValueError(
                f"{name} has shape {np.shape(batch[name])}; give that of image, {images.shape}"
            )
    labels = checks.integer_labels(batch["label"], len(images))
    checks.labels_in_range(labels, student.num_classes)
    epoch = checks.array(batch["epoch"], "epoch")
    if epoch.ndim or not jnp.issubdtype(epoch.dtype, jnp.integer):
        raise ValueError(
            f"epoch is {epoch.dtype}{list(epoch.shape)}; give one integer, counted from 1"
        )
    if checks.is_concrete(epoch):
        checks.count(int(epoch), "epoch", 1)
        if 0 < parts.student_optim.epochs < epoch:
            raise ValueError(
                f"epoch={epoch}: the optimiser is made for {parts.student_optim.epochs} epochs; make "
                "it for all of the run: optim.make(config, epochs)"
            )


def metrics(given: Mapping[str, Any], taken: Iterable[str] = OF_UPDATE) -> None:
    """Raises ValueError for a metric of a name that is `taken` by the update or by the log."""
    if others := [name for name in given if not isinstance(name, str)]:
        raise ValueError(f"a metric is called {others[0]!r}; give a text")
    if twice := sorted(set(given) & set(taken)):
        raise ValueError(
            f"a metric is called {', '.join(map(repr, twice))}, which an update or the log has of its own: "
            "one of the two would be lost; give it another name"
        )


@contextlib.contextmanager
def keys(what: str, batch: Mapping[str, Any], **others: Mapping[str, Any]) -> Iterator[None]:
    """Turns a KeyError of a user's function into a ValueError with the place, and with what there is.

    Args:
      what: the function.
      batch: that it is given.
      **others: further mappings that it is given, by name.
    """
    try:
        yield
    except KeyError as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        have = [
            f"{n.replace('_', ' ')} {', '.join(map(str, m)) or 'nothing'}"
            for n, m in ({"the_batch_has": batch} | others).items()
        ]
        raise ValueError(
            f"{what} finds no {error.args[0] if error.args else ''!r} in {place.filename}, line "
            f"{place.lineno}: {place.line}; {', '.join(have)}"
        ) from error


def loss(function: Callable, student: ModelBundle, z: Any, soft: Any) -> None:
    """Traces a loss once: it must be a scalar that depends on the student, beside scalar metrics.

    Args:
      function: (z, soft, batch) -> (scalar, metrics).
      student: the network.
      z: its logits, as shapes; None where there are none.
      soft: the teacher's logits, likewise.

    Raises:
      ValueError: it is not.
    """
    if not callable(function):
        kind = type(function).__name__
        raise ValueError(f"loss is {kind}; give a function (z, soft, batch) -> (scalar, metrics)")
    of = jax.ShapeDtypeStruct
    batch = {"image": of((2, *student.image_shape), jnp.float32), "label": of((2,), jnp.int32)}
    batch["epoch"] = of((), jnp.int32)
    try:
        make = jax.make_jaxpr(lambda *given: function(*given), return_shape=True)
        traced, found = make(z, soft, batch)
    except KeyError:  # a column of the method, whose shape is not known here
        return
    except Exception as error:  # whatever a user's function raises
        raise ValueError(
            "the loss fails on these passes and this teacher_at, whose other views are None: "
            f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        ) from error
    if not isinstance(found, tuple | list) or len(found) != 2 or not isinstance(found[1], Mapping):
        raise ValueError(
            f"the loss returned {type(found).__name__}; it must return (scalar, metrics)"
        )
    for name, value in {"the loss": found[0], **found[1]}.items():
        kind = jnp.floating if name == "the loss" else jnp.number
        if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, kind):
            raise ValueError(
                f"{name} is {value}; the loss and its metrics are real scalars, means of the batch"
            )
    metrics(found[1], (*_OF_FROM_LOSS, *OF_LOG))
    reached: set[Any] = set(traced.jaxpr.invars[: len(jax.tree.leaves(z))])
    for equation in traced.jaxpr.eqns:
        if equation.primitive.name in _FLAT:
            continue
        if any(isinstance(v, Var) and v in reached for v in equation.invars):
            smooth = (v for v in equation.outvars if jnp.issubdtype(v.aval.dtype, jnp.inexact))
            reached.update(smooth)
    out = traced.jaxpr.outvars[0]
    if not isinstance(out, Var) or out not in reached:
        raise ValueError(
            "the loss has no gradient: it depends on none of the student's logits, or through stop_gradient, "
            "argmax or comparisons alone"
        )
