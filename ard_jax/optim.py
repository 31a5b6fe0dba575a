"""SGD and AdamW as the papers use them, with learning rates that change once per epoch or at every update.

Every paper's code here uses torch's SGD: weight decay is added to the gradient before the momentum, on all
parameters including biases and BatchNorm. Nearly all set the learning rate per epoch. The rate is an
argument of the update rather than part of the optimiser's state, so that a resumed run needs only its step;
the state of the schedule that changes at every update counts them. AdamW is torch's, with a
weight decay of arrays of two dimensions and more, which leaves out biases and scales of normalisation.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from pydantic import Field

from ard_jax.io.options import AtLeastOne, Count, NotNegative, Options, Share
from ard_jax.losses import checks

_CYCLE_FALL = 0.1  # of the momentum, in the middle of a cycle
# Option -> the schedule that it is of; no other reads it.
OF_SCHEDULE = {
    "boundaries": "multistep", "decay": "multistep", "start": "ciard", "idle_before_start": "ciard",
}  # fmt: skip


class OptimConfig(Options):
    """An optimiser and its schedule."""

    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd",
        description="`sgd` as torch has it, or `adamw`, whose weight decay is times the rate and of "
        "arrays of two dimensions and more alone.",
    )
    lr: Annotated[float, Field(gt=0, le=100)] = Field(
        default=0.1, description="Base learning rate."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="Momentum, 0 for none; AdamW's first beta."
    )
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.999, description="AdamW's second beta."
    )
    nesterov: bool = Field(default=False, description="Nesterov momentum.")
    weight_decay: Share = Field(
        default=2e-4, description="Of SGD: coupled L2 on all parameters. Of AdamW: see `optimizer`."
    )
    clip_norm: NotNegative = Field(
        default=0.0,
        description="Largest norm of the gradient of all parameters, which is scaled down to it; 0: any.",
    )
    schedule: Literal["constant", "multistep", "cosine", "one_cycle", "cyclic", "ciard"] = Field(
        default="constant",
        description=(
            "`constant`; `multistep` (times `decay` from each epoch of `boundaries` on); `cosine` (from "
            "lr to `last_lr` over the run, after `warmup` epochs of linear increase); `one_cycle` "
            "(cosines from lr/25 to lr in epoch `warmup`, then to lr/250000 in the last; the momentum "
            "goes from 0.05 above `momentum` to 0.05 below and back); `cyclic` (changes at every update: "
            "linear from 0 to lr in the middle of the run and back, the momentum from `momentum` to 0.1 "
            "less and back); `ciard` (`lr` before epoch `start`, then a cosine to 0 times exp(-0.01 "
            "progress^2))."
        ),
    )
    boundaries: tuple[AtLeastOne, ...] = Field(
        default=(), description="First epochs (counted from 1) at each lower rate, for `multistep`."
    )
    decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1, description="Factor of `multistep`."
    )
    last_lr: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0, description="Where `cosine` ends, after the last epoch."
    )
    warmup: Count = Field(default=0, description="Epochs of warm-up, for `cosine` and `one_cycle`.")
    start: AtLeastOne = Field(default=1, description="Epoch at which the `ciard` cosine begins.")
    idle_before_start: bool = Field(
        default=False,
        description="For `ciard`, rate 0 before `start` (robust teacher) instead of `lr` (student).",
    )

    def __init__(self, **values: Any):
        """Raises ValueError for a value of another schedule too, which a config file may keep of a former."""
        super().__init__(**values)
        for name, of in OF_SCHEDULE.items():
            idle = values.get(name, None) not in (None, (), [], False)
            if idle and self.schedule != of:
                raise ValueError(
                    f"OptimConfig: {name}={values[name]!r} is of schedule={of!r}: leave it out with "
                    f"schedule={self.schedule!r}"
                )

    # As in `Options`.
    __init__.__pydantic_base_init__ = True  # pyright: ignore[reportFunctionMemberAccess]

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        found = []
        if self.nesterov and self.momentum == 0:
            found.append("nesterov=True needs a momentum greater than 0")
        if self.warmup and self.schedule not in ("cosine", "one_cycle"):
            found.append(
                f"warmup={self.warmup}: schedule={self.schedule!r} has no warm-up; give 0, or schedule=cosine"
            )
        if self.optimizer == "adamw":
            if self.nesterov:
                found.append("nesterov=True is of optimizer='sgd'; leave it out")
            if self.schedule in ("one_cycle", "cyclic"):
                found.append(
                    f"schedule={self.schedule!r} changes the momentum of optimizer='sgd'; use cosine "
                    "with adamw"
                )
        elif self.beta2 != 0.999:
            found.append(f"beta2={self.beta2}: is of optimizer='adamw'; leave it out")
        if self.last_lr and self.schedule != "cosine":
            found.append(
                f"last_lr={self.last_lr}: schedule={self.schedule!r} does not end there; give 0, or "
                "schedule=cosine"
            )
        if self.last_lr >= self.lr:
            found.append(f"last_lr={self.last_lr}: must be less than lr={self.lr}")
        if list(self.boundaries) != sorted(set(self.boundaries)):
            found.append(f"boundaries={self.boundaries}: epochs must increase")
        if self.schedule == "multistep" and not self.boundaries:
            found.append("boundaries=(): schedule='multistep' needs at least one epoch")
        if self.schedule == "cyclic" and self.momentum < _CYCLE_FALL:
            found.append(
                f"momentum={self.momentum}: schedule='cyclic' lowers it by {_CYCLE_FALL}; give at least that"
            )
        if self.schedule == "one_cycle" and self.warmup < 2:
            found.append(f"warmup={self.warmup}: schedule='one_cycle' needs at least 2 epochs")
        if self.schedule == "one_cycle" and not 0.05 <= self.momentum < 0.95:
            found.append(
                f"momentum={self.momentum}: schedule='one_cycle' needs one from 0.05 to below 0.95"
            )
        return found

    def misfits(self, epochs: int) -> list[str]:
        """What of the schedule does not fit into a run of `epochs` epochs, as `Options.conflicts`."""
        found = []
        if self.schedule == "multistep" and (late := [b for b in self.boundaries if b > epochs]):
            kept = tuple(b for b in self.boundaries if b <= epochs)
            found.append(
                f"boundaries={self.boundaries}: {late} lie behind the last of {epochs} epochs; give "
                f"{kept or 'earlier ones'}, or schedule=cosine"
            )
        if self.schedule in ("cosine", "one_cycle") and self.warmup >= max(epochs, 1):
            found.append(f"warmup={self.warmup}: must be less than the {epochs} epochs of the run")
        return found


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Pure functions: `init(params)`, `update(grads, opt_state, params, lr, momentum)`, rates of an epoch.

    `lr` and `momentum` take the epoch, from 1, and the `opt_state`, at which only a schedule that changes at
    every update looks, and which may be left out. Without its last argument `update` takes the configured
    momentum. `epochs` is the length of the run that it is made for, 0 where that is not known; `updates`
    likewise, of a schedule that changes at every update, and 0 for others.
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]
    lr: Callable[..., jax.Array]
    momentum: Callable[..., Any]
    epochs: int = 0
    updates: int = 0


class Counted(NamedTuple):
    """State of an optimiser whose schedule changes at every update.

    Attributes:
      inner: optax state.
      updates: number of updates done, int32 scalar.
    """

    inner: Any
    updates: jax.Array


def cycle(config: OptimConfig, progress: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(rate, momentum) of `cyclic` at the share `progress` of a run: PyTorch's CyclicLR with one cycle.

    The momentum goes the other way, which is that scheduler's default.
    """
    height = jnp.maximum(1 - jnp.abs(2 * progress - 1), 0)  # past the end the rate stays 0
    return config.lr * height, config.momentum - _CYCLE_FALL * height


def learning_rate(config: OptimConfig, epochs: int, epoch: jax.Array) -> jax.Array:
    """Rate during `epoch` (int, counted from 1; may be traced), of `cyclic` in its middle; float32 scalar.

    Source of "ciard": eminentgu/CIARD, CIARD.py: student
    0.1 (0.5 + 0.5 cos(pi (e-150)/150)) exp(-0.01 (e-150)^2/150^2) from e = 150 of 300 epochs; the
    robust teacher the same from e = 50 with base 1e-4, and 0 before.

    Raises:
      ValueError: a schedule that does not fit into the epochs, or a readable epoch that is not one of them.
    """
    if found := config.misfits(checks.count(epochs, "epochs", 1)):
        raise ValueError("; ".join(found))
    checks.numbers(epoch, "epoch", 1, epochs)
    e = jnp.asarray(epoch, jnp.float32)
    if config.schedule == "constant":
        return jnp.full((), config.lr, jnp.float32)
    if config.schedule == "multistep":
        passed = sum((e >= b).astype(jnp.float32) for b in config.boundaries)
        return jnp.asarray(config.lr * config.decay**passed, jnp.float32)
    if config.schedule == "cosine":
        progress = (e - 1) / epochs
        rate = (config.lr - config.last_lr) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        rate = rate + config.last_lr
        return rate * jnp.minimum(e / max(config.warmup, 1), 1.0) if config.warmup else rate
    if config.schedule == "one_cycle":
        return config.lr * one_cycle(e - 1, config.warmup - 1, epochs - 1)[0]
    if config.schedule == "cyclic":
        return cycle(config, (e - 0.5) / epochs)[0]
    progress = (e - config.start) / max(epochs - config.start, 1)
    rate = config.lr * (0.5 + 0.5 * jnp.cos(jnp.pi * progress)) * jnp.exp(-0.01 * progress**2)
    before = 0.0 if config.idle_before_start else config.lr
    return jnp.where(e < config.start, before, rate)


def one_cycle(position: jax.Array, peak: float, last: float) -> tuple[jax.Array, jax.Array]:
    """PyTorch's OneCycleLR with cosines, as imrahulr/hat has it, per step and in its longer runs per epoch.

    Args:
      position: of 0 ... last; may be traced.
      peak: position of the largest rate, above 0.
      last: position of the end.

    Returns:
      (the rate as a part of the largest: 1/25 at 0, 1 at `peak`, 1/250000 at `last`; what is added to the
      momentum: 0.05, -0.05, 0.05), float32.

    Raises:
      ValueError: `peak` is not above 0, `last` not above `peak`, or a readable position outside [0, `last`].
    """
    checks.positive(peak, "peak of one_cycle")
    if not last > peak:
        raise ValueError(f"last={last}: one_cycle needs it above peak={peak}")
    checks.numbers(position, "position of one_cycle", 0.0, last)
    rising = position <= peak
    up = 0.5 - 0.5 * jnp.cos(jnp.pi * position / peak)
    down = 0.5 + 0.5 * jnp.cos(jnp.pi * (position - peak) / (last - peak))
    height, low = jnp.where(rising, up, down), jnp.where(rising, 1 / 25, 1 / 250_000)
    return low + (1 - low) * height, 0.05 - 0.1 * height


def _arrays(params: Any) -> Any:
    """Which parameters have two dimensions and more: no biases, no scales."""
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


class Accumulated(NamedTuple):
    """State of an optimiser of `accumulating` inside of a step.

    Attributes:
      inner: state of the optimiser itself.
      total: sum of the gradients since the last update.
      count: how many these are, int32 scalar.
    """

    inner: Any
    total: Any
    count: jax.Array


def begin_accumulating(params: Any, opt_state: Any) -> Accumulated:
    """Returns the state that `accumulating` takes, from the optimiser's own."""
    return Accumulated(opt_state, jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32))


def accumulating(optimizer: Optimizer, parts: int) -> Optimizer:
    """Makes `update` wait for `parts` gradients and then take their mean.

    Its `init` gives the optimiser's own state, of which `begin_accumulating` makes that of `update`; between
    updates there is no more than that to save. (`optax.MultiSteps` keeps the sum in its state.)
    """

    def update(grads: Any, opt_state: Accumulated, params: Any, *rest: Any):
        total = jax.tree.map(jnp.add, opt_state.total, grads)

        def change():
            mean = jax.tree.map(lambda g: g / parts, total)
            after, inner = optimizer.update(mean, opt_state.inner, params, *rest)
            return after, Accumulated(
                inner, jax.tree.map(jnp.zeros_like, total), opt_state.count * 0
            )

        def wait():
            return params, Accumulated(opt_state.inner, total, opt_state.count + 1)

        return jax.lax.cond(opt_state.count == parts - 1, change, wait)

    def of_inner(function: Callable) -> Callable:
        return lambda epoch, state=None: function(
            epoch, state.inner if isinstance(state, Accumulated) else state
        )

    return dataclasses.replace(
        optimizer, update=update, lr=of_inner(optimizer.lr), momentum=of_inner(optimizer.momentum)
    )


def make(config: OptimConfig, epochs: int, steps_per_epoch: int = 0) -> Optimizer:
    """The optimiser of `config`.

    Args:
      config: SGD and its schedule.
      epochs: length of the run.
      steps_per_epoch: updates per epoch, for `cyclic`.

    Raises:
      ValueError: no `OptimConfig`, no epochs, `cyclic` without updates per epoch, or a schedule that does not
        fit into the epochs.
    """
    if not isinstance(config, OptimConfig):
        raise ValueError(f"config is {type(config).__name__}; give optim.OptimConfig(lr=..., ...)")
    if found := config.misfits(checks.count(epochs, "epochs", 1)):
        raise ValueError("; ".join(found))
    counted, total = config.schedule == "cyclic", epochs * steps_per_epoch
    checks.count(steps_per_epoch, "steps_per_epoch", int(counted))

    def transform(momentum: Any):
        parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
        if config.optimizer == "adamw":
            parts.append(optax.scale_by_adam(b1=momentum, b2=config.beta2))
        if config.weight_decay:
            decayed = _arrays if config.optimizer == "adamw" else None
            parts.append(optax.add_decayed_weights(config.weight_decay, decayed))
        if config.optimizer == "sgd" and config.momentum:
            parts.append(optax.trace(decay=momentum, nesterov=config.nesterov))
        return optax.chain(*parts)

    def init(params: Any):
        inner = transform(config.momentum).init(params)
        return Counted(inner, jnp.zeros((), jnp.int32)) if counted else inner

    def update(
        grads: Any, opt_state: Any, params: Any, lr: jax.Array, momentum: Any = config.momentum
    ):
        if jax.tree.structure(grads) != jax.tree.structure(params):
            raise ValueError("grads are not those of params: their trees have other leaves")
        if opt_state is None:
            raise ValueError("opt_state is None; give that of init(params) or of the last update")
        checks.number(lr, "lr of the update")
        shapes = [list(map(jnp.shape, jax.tree.leaves(tree))) for tree in (grads, params)]
        if shapes[0] != shapes[1]:
            raise ValueError("grads are not those of params: their arrays have other shapes")
        inner = opt_state.inner if counted else opt_state
        updates, inner = transform(momentum).update(grads, inner, params)
        params = jax.tree.map(lambda p, u: p - lr * u, params, updates)
        return params, Counted(inner, opt_state.updates + 1) if counted else inner

    def rate(epoch: jax.Array, opt_state: Any = None):
        if counted and opt_state is not None:
            return cycle(config, opt_state.updates / total)[0]
        return learning_rate(config, epochs, epoch)

    def momentum(epoch: jax.Array, opt_state: Any = None):
        if counted and opt_state is not None:
            return cycle(config, opt_state.updates / total)[1]
        if config.schedule == "one_cycle":
            position = jnp.asarray(epoch, jnp.float32) - 1
            return config.momentum + one_cycle(position, config.warmup - 1, epochs - 1)[1]
        return config.momentum

    return Optimizer(init, update, rate, momentum, epochs, total if counted else 0)
