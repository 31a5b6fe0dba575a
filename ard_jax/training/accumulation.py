"""A step in several parts, one after the other, whose gradients make one update: less memory for a batch.

BatchNorm's running statistics go from part to part, and its statistics, Dice and other numbers of a batch are
those of a part. A method's own arrays begin every part as they were before the step; after it they are the
mean over the parts. What a method does in a step after the student's update sees the updated student in the
last part alone.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ard_jax import optim
from ard_jax.methods.base import Method
from ard_jax.runtime.sharding import split_parts
from ard_jax.state import NetState, RunState


def step(
    method: Method, parts: int, mesh: Any, state: RunState, batch: dict[str, Any], key: jax.Array
) -> tuple[RunState, dict[str, jax.Array]]:
    """`method.step` on `parts` equal parts of a batch.

    Args:
      method: made with optimisers of `optim.accumulating`.
      parts: number of them, at least 2; of B images B / parts are in each.
      mesh: devices; each device has as many images of every part.
      state: before the step.
      batch: as `method.step` takes it.
      key: of the step; each part draws its own numbers.

    Returns:
      The state after the step, and the metrics' means over the parts.
    """
    size = len(batch["label"])
    rows = {name: a for name, a in batch.items() if jnp.ndim(a) and len(a) == size}
    whole = {name: a for name, a in batch.items() if name not in rows}
    split = split_parts(mesh)

    def divide(a: jax.Array) -> jax.Array:
        # Every parts-th row, so that a device keeps its own.
        a = jnp.moveaxis(a.reshape(size // parts, parts, *a.shape[1:]), 1, 0)
        return jax.lax.with_sharding_constraint(a, split)

    def one(carried: RunState, given: tuple[dict[str, jax.Array], jax.Array]):
        part, number = given
        new, metrics = method.step(carried, whole | part, jax.random.fold_in(key, number))
        return new.replace(method=carried.method), (metrics, new.method)

    begun = _each(state, lambda net: optim.begin_accumulating(net.params, net.opt_state))
    inputs = (jax.tree.map(divide, rows), jnp.arange(parts))
    new, (metrics, memories) = jax.lax.scan(one, begun, inputs)
    means = jax.tree.map(lambda a: jnp.mean(a, 0).astype(a.dtype), (metrics, memories))
    return _each(new, lambda net: net.opt_state.inner).replace(method=means[1]), means[0]


def _each(state: RunState, opt_state: Any) -> RunState:
    """The state with opt_state(net) in place of the optimiser's state of every network that is trained."""

    def changed(net: NetState) -> NetState:
        return net if net.opt_state is None else net.replace(opt_state=opt_state(net))

    teachers = {role: changed(net) for role, net in state.teachers.items()}
    return state.replace(student=changed(state.student), teachers=teachers)
