"""What a method is given, looked at before anything is computed with it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var

from ard_jax.attacks import registry
from ard_jax.io.options import Options
from ard_jax.losses import checks
from ard_jax.models.bundle import ModelBundle, check_variables
from ard_jax.state import RunState


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
    if not callable(entry.make):
        raise ValueError(f"{where} make={entry.make!r}; give a function (options, parts) -> Method")
    for field in ("teachers", "trained_teachers"):
        names(getattr(entry, field), f"{where} {field}")
    if left := set(entry.trained_teachers) - set(entry.teachers):
        raise ValueError(f"{where} trained_teachers has {sorted(left)}, which teachers lacks")
    checks.choice(entry.attack, f"attack of {where[:-1]}", ("", *registry.training_names()))


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
        check_variables(name, variables)
        wanted = jax.eval_shape(network.init, jax.random.key(0))
        shapes = {k: dict(_shapes(wanted[k])) for k in ("params", "batch_stats")}
        for group, of in shapes.items():
            if (found := dict(_shapes(variables[group]))) != of:
                wrong = sorted(n for n in {*of, *found} if of.get(n) != found.get(n))[0]
                raise ValueError(
                    f"variables are not those of {name}: {group}{wrong} has shape {found.get(wrong)} but "
                    f"must have {of.get(wrong)}"
                )


def _shapes(tree: Any) -> list[tuple[str, tuple[int, ...]]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), np.shape(leaf)) for path, leaf in leaves]


def step(student: ModelBundle, columns: tuple[str, ...], state: Any, batch: Any) -> None:
    """Raises ValueError unless a step can begin; inside of jit it looks at kinds and shapes alone."""
    if not isinstance(state, RunState):
        raise ValueError(f"state is {type(state).__name__}; give that of init or of the last step")
    given = batch if isinstance(batch, Mapping) else {}
    if missing := [n for n in ("image", "label", "epoch", *columns) if n not in given]:
        raise ValueError(
            f"the batch lacks {', '.join(missing)}: it has image [B,H,W,C] float32 in [0,1], label [B] int32 "
            "and epoch int32, counted from 1"
        )
    images = checks.pixels(batch["image"])
    if images.shape[1:] != student.image_shape:
        raise ValueError(
            f"the batch has images {list(images.shape)}, the student takes {student.image_shape}"
        )
    if np.shape(batch.get("start_noise", images)) != images.shape:
        raise ValueError(
            f"start_noise has shape {np.shape(batch['start_noise'])}; give that of image, {images.shape}"
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
        if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.number):
            raise ValueError(
                f"{name} is {value}; the loss and its metrics are scalars, means of the batch"
            )
    reached: set[Any] = set(traced.jaxpr.invars[: len(jax.tree.leaves(z))])
    for equation in traced.jaxpr.eqns:
        if any(isinstance(v, Var) and v in reached for v in equation.invars):
            reached.update(equation.outvars)
    out = traced.jaxpr.outvars[0]
    if not isinstance(out, Var) or out not in reached:
        raise ValueError("the loss is a constant: it depends on none of the student's logits")
