"""What a method is given, looked at before anything is computed with it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from ard_jax.losses import checks
from ard_jax.models.bundle import ModelBundle, check_variables
from ard_jax.state import RunState


def names(value: Any, what: str, choices: tuple[str, ...] = ()) -> None:
    """Raises ValueError unless `value` is a tuple of some of `choices`, or of any texts, each once."""
    several = isinstance(value, tuple | list) and all(isinstance(n, str) for n in value)
    if not several or len(set(value)) < len(value) or choices and not set(value) <= set(choices):
        some = f"some of {choices}" if choices else "texts"
        raise ValueError(f"{what}={value!r}: must be a tuple of {some}, each once")


def start(student: Any, teachers: Any, roles: tuple[str, ...]) -> None:
    """Raises ValueError unless these are the variables of a student and of its teachers."""
    check_variables("the student", student)
    given = teachers if isinstance(teachers, Mapping) else {}
    if missing := [role for role in roles if role not in given]:
        raise ValueError(f"teachers lack {' and '.join(missing)}; give role -> variables")
    for role, variables in given.items():
        check_variables(f"the {role} teacher", variables)


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
