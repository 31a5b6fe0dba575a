"""The one jitted, donated train step of a run, built out of a Method."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import optax

from ard_jax import rng
from ard_jax.data.augment import augment
from ard_jax.methods.base import Method
from ard_jax.sharding import replicated, split_batch
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
      ema_decay: decay per step of the student's moving average; 0 for none.
    """

    seed: int
    steps_per_epoch: int
    augment: str
    pad: int = 4
    ema_decay: float = 0.0


def start_ema(state: RunState, config: StepConfig) -> RunState:
    """The state with a fresh moving average of the student, if one is wanted."""
    if not config.ema_decay:
        return state
    return state.replace(ema=state.student.variables)


def build(
    method: Method, config: StepConfig, mesh: Any, name: str = "train_step"
) -> Callable[[RunState, dict[str, jax.Array]], tuple[RunState, dict[str, jax.Array]]]:
    """(state, {"image" uint8 [B,H,W,C], "label" int32 [B]}) -> (next state, metrics).

    The state is donated. Randomness is a function of (seed, state.step) only.
    """

    def step(state: RunState, batch: dict[str, jax.Array]):
        TRACES[name] += 1
        root = jax.random.key(config.seed)
        images = augment(
            rng.stream(root, "augment", state.step), batch["image"], config.augment, pad=config.pad
        )
        epoch = state.step // config.steps_per_epoch + 1
        new, metrics = method.step(
            state,
            {"image": images, "label": batch["label"], "epoch": epoch},
            rng.stream(root, "attack", state.step),
        )
        if config.ema_decay:
            d = config.ema_decay
            new = new.replace(
                ema=jax.tree.map(lambda m, v: d * m + (1 - d) * v, state.ema, new.student.variables)
            )
        # A finite loss can have an infinite gradient: the norm shows it before the state is saved.
        trained = [new.student.params]
        trained += [t.params for t in new.teachers.values() if t.opt_state is not None]
        metrics |= {"param_norm": optax.tree.norm(trained)}
        return new.replace(step=state.step + 1), metrics

    same, split = replicated(mesh), split_batch(mesh)
    return jax.jit(step, in_shardings=(same, split), out_shardings=(same, same), donate_argnums=0)
