"""The one jitted, donated train step of a run, built out of a Method."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ard_jax import rng
from ard_jax.data.augment import augment
from ard_jax.methods.base import Method
from ard_jax.sharding import put_replicated, replicated, split_batch
from ard_jax.state import RunState

# How often each program of this process was traced, by name; a run traces each exactly once.
TRACES: Counter[str] = Counter()


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What a step needs beside its method.

    Attributes:
      seed: of augmentation and attack noise.
      steps_per_epoch: updates per epoch.
      augment: kind of augmentation ("none", "crop", "crop_flip").
      pad: its zero padding, pixels.
      ema_decay: decay per step of the student's exponential moving average; 0 for none.
      swa_start: first epoch, from 1, at whose end the student enters the stochastic weight average; 0
        for none. Not together with `ema_decay`: both are kept in `RunState.ema`.
    """

    seed: int
    steps_per_epoch: int
    augment: str
    pad: int = 4
    ema_decay: float = 0.0
    swa_start: int = 0


def start_average(state: RunState, config: StepConfig) -> RunState:
    """The state with a fresh average of the student, if one is wanted."""
    if not (config.ema_decay or config.swa_start):
        return state
    return state.replace(ema=state.student.variables)


def _average(config: StepConfig, average: Any, student: Any, step: jax.Array) -> Any:
    """The average after the update number step + 1.

    SWA (Izmailov et al. 2018): the mean of the student at the ends of the epochs from swa_start on, and
    the student itself before; running statistics of BatchNorm are averaged like parameters.
    """
    if config.ema_decay:
        kept = config.ema_decay
    else:
        epoch, within = step // config.steps_per_epoch + 1, (step + 1) % config.steps_per_epoch
        count = epoch - config.swa_start  # students in the average so far
        share = jnp.where(within == 0, 1 / (jnp.maximum(count, 0) + 1), 0.0)
        kept = 1 - jnp.where(count < 0, 1.0, share)
    return jax.tree.map(lambda m, v: kept * m + (1 - kept) * v, average, student)


def build(
    method: Method, config: StepConfig, mesh: Any, name: str = "train_step"
) -> Callable[[RunState, dict[str, jax.Array]], tuple[RunState, dict[str, jax.Array]]]:
    """(state, {"image" uint8 [B,H,W,C], "label" int32 [B], the method's columns}) -> (state, metrics).

    The state is donated. Randomness is a function of (seed, state.step) only; the seed is an argument
    of the program, so that runs which differ in it alone share one compiled program.
    """
    step = program(method, config, mesh, name)
    root = put_replicated(mesh, jax.random.key(config.seed))
    return lambda state, batch: step(state, batch, root)


def program(method: Method, config: StepConfig, mesh: Any, name: str = "train_step") -> Any:
    """The jitted function (state, batch, root key) -> (state, metrics) that `build` runs."""

    def step(state: RunState, batch: dict[str, jax.Array], root: jax.Array):
        TRACES[name] += 1
        images = augment(
            rng.stream(root, "augment", state.step), batch["image"], config.augment, pad=config.pad
        )
        epoch = state.step // config.steps_per_epoch + 1
        new, metrics = method.step(
            state, batch | {"image": images, "epoch": epoch}, rng.stream(root, "attack", state.step)
        )
        if state.ema is not None:
            new = new.replace(ema=_average(config, state.ema, new.student.variables, state.step))
        # A finite loss can have an infinite gradient: the norm shows it before the state is saved.
        trained = [new.student.params]
        trained += [t.params for t in new.teachers.values() if t.opt_state is not None]
        metrics |= {"param_norm": optax.tree.norm(trained)}
        return new.replace(step=state.step + 1), metrics

    same, split = replicated(mesh), split_batch(mesh)
    return jax.jit(
        step, in_shardings=(same, split, same), out_shardings=(same, same), donate_argnums=0
    )
