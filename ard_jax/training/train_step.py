"""The one jitted, donated train step of a run, built out of a Method."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ard_jax import rng
from ard_jax.convolutions.cpu_conv import splits_batch
from ard_jax.data import augment, mixing
from ard_jax.methods import checked
from ard_jax.methods.base import Method
from ard_jax.runtime.compilation import TRACES
from ard_jax.runtime.sharding import (
    num_devices,
    put_replicated,
    replicated,
    split_array,
    split_batch,
)  # fmt: skip
from ard_jax.state import NetState, RunState
from ard_jax.training import accumulation


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What a step needs beside its method.

    Attributes:
      seed: of augmentation and attack noise.
      steps_per_epoch: updates per epoch.
      augment: kind of augmentation, one of `augment.KINDS`.
      pad: its zero padding, pixels.
      flip: whether its stronger kinds mirror images.
      ema_decay: decay per step of the student's exponential moving average; 0 for none.
      swa_start: first epoch, from 1, at whose end the student enters the stochastic weight average; 0
        for none. Not together with `ema_decay`: both are kept in `RunState.ema`.
      average_bn: running statistics of the average: "averaged" like its parameters, "copied" from the
        student, or "recomputed" by `averaging`.
      label_smoothing: share of each label that is spread over all classes.
      num_classes: needed for soft labels, those of smoothing and of mixing.
      mixup, cutmix, mix_probability: see `mixing.mix`; 0 for none.
      accumulate: parts that a batch is trained on in: see `accumulation`.
      shard_optimizer: whether the optimisers' state is split over the devices: see `placement`.
      crop_area, crop_sizes, crop_boundaries: of `augment` "resized_crop", see `geometry.RandomCrops`.
    """

    seed: int
    steps_per_epoch: int
    augment: str
    pad: int = 4
    flip: bool = True
    ema_decay: float = 0.0
    swa_start: int = 0
    average_bn: str = "averaged"
    label_smoothing: float = 0.0
    num_classes: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    accumulate: int = 1
    shard_optimizer: bool = False
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_sizes: tuple[int, ...] = ()
    crop_boundaries: tuple[int, ...] = ()


def start_average(state: RunState, config: StepConfig) -> RunState:
    """The state with a fresh average of the student, where wanted."""
    if not (config.ema_decay or config.swa_start):
        return state
    return state.replace(ema=state.student.variables)


def _average(config: StepConfig, average: Any, student: Any, step: jax.Array) -> Any:
    """The average after the update number step + 1.

    SWA (Izmailov et al. 2018): the mean of the student at the ends of the epochs from swa_start on, and
    the student itself before.
    """
    if config.ema_decay:
        kept = config.ema_decay
    else:
        epoch, within = step // config.steps_per_epoch + 1, (step + 1) % config.steps_per_epoch
        count = epoch - config.swa_start  # students in the average so far
        share = jnp.where(within == 0, 1 / (jnp.maximum(count, 0) + 1), 0.0)
        kept = 1 - jnp.where(count < 0, 1.0, share)

    def moved(names: tuple[str, ...]):
        parts = ({name: variables[name] for name in names} for variables in (average, student))
        return jax.tree.map(lambda m, v: kept * m + (1 - kept) * v, *parts)

    if config.average_bn == "averaged":
        return moved(("params", "batch_stats"))
    source = student if config.average_bn == "copied" else average
    return moved(("params",)) | {"batch_stats": source["batch_stats"]}


Step = Callable[..., tuple[RunState, dict[str, jax.Array]]]


def placement(config: StepConfig, mesh: Any, state: RunState) -> RunState:
    """Returns the sharding of every array of a state, which may be shapes alone."""
    whole = jax.tree.map(lambda _: replicated(mesh), state)
    if not config.shard_optimizer:
        return whole

    def split(net: NetState, given: NetState) -> NetState:
        parts = functools.partial(split_array, mesh)
        return net.replace(opt_state=jax.tree.map(parts, given.opt_state))

    teachers = {role: split(net, state.teachers[role]) for role, net in whole.teachers.items()}
    return whole.replace(student=split(whole.student, state.student), teachers=teachers)


def placed_shapes(config: StepConfig, mesh: Any, state: RunState) -> RunState:
    """Returns the shapes of a state with their `placement`, for a program compiled without arrays."""
    return jax.tree.map(
        lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where),
        state,
        placement(config, mesh, state),
    )


def build(method: Method, config: StepConfig, mesh: Any, name: str = "train_step") -> Step:
    """(state, batch) -> (state, metrics).

    The batch holds "image" uint8 [B,H,W,C], "label" int32 [B], the method's columns, and perhaps "index"
    int32 [B], positions in the training split; all of it reaches the method.

    The state is donated. Randomness is a function of (seed, state.step) only; the seed is an argument
    of the program, so that runs which differ in it alone share one compiled program.
    """
    step = program(method, config, mesh, name)
    root = put_replicated(mesh, jax.random.key(config.seed))
    return lambda state, batch: step(state, batch, root)


def build_indexed(method: Method, config: StepConfig, mesh: Any, name: str = "train_step") -> Step:
    """(state, examples, index) -> (state, metrics): as `build`, for data that is on the device already.

    `examples` are the batch's arrays for the whole training split, [N,...], replicated; `index` int32 [B]
    says which of them are the batch.
    """
    step = indexed_program(method, config, mesh, name)
    root = put_replicated(mesh, jax.random.key(config.seed))
    return lambda state, examples, index: step(state, examples, index, root)


def program(method: Method, config: StepConfig, mesh: Any, name: str = "train_step") -> Any:
    """The jitted function (state, batch, root key) -> (state, metrics) that `build` runs."""

    def step(state: RunState, batch: dict[str, jax.Array], root: jax.Array):
        TRACES[name] += 1
        with splits_batch(num_devices(mesh)):
            return _update(method, config, mesh, state, batch, root)

    same, split = replicated(mesh), split_batch(mesh)
    return _placed(config, mesh, step, split, same)


def indexed_program(method: Method, config: StepConfig, mesh: Any, name: str = "train_step") -> Any:
    """The jitted (state, examples, index, root key) -> (state, metrics) that `build_indexed` runs."""

    def step(state: RunState, examples: dict[str, jax.Array], index: jax.Array, root: jax.Array):
        TRACES[name] += 1
        # Each device takes its own rows of its own copy. Behind the barrier the step is compiled as it is
        # for a batch from the host.
        batch = {k: v.at[index].get(mode="promise_in_bounds") for k, v in examples.items()}
        batch = jax.lax.optimization_barrier(batch | {"index": index})
        with splits_batch(num_devices(mesh)):
            return _update(method, config, mesh, state, batch, root)

    same, split = replicated(mesh), split_batch(mesh)
    return _placed(config, mesh, step, same, split, same)


def _placed(config: StepConfig, mesh: Any, step: Callable, *rest: Any) -> Any:
    """Jits `step` of a state, which is donated, and of further arguments of these shardings."""
    same = replicated(mesh)
    if not config.shard_optimizer:
        shardings = {"in_shardings": (same, *rest), "out_shardings": (same, same)}
        return jax.jit(step, donate_argnums=0, **shardings)

    def constrained(state: RunState, *given: Any):
        new, metrics = step(state, *given)
        placed = jax.lax.with_sharding_constraint(new, placement(config, mesh, new))
        return placed, jax.lax.with_sharding_constraint(metrics, same)

    # The state comes as it is placed, which depends on its shapes.
    return jax.jit(constrained, donate_argnums=0, in_shardings=(None, *rest))


def augmented(
    config: StepConfig, root: jax.Array, stream: str, step: int | jax.Array, images: jax.Array
) -> jax.Array:
    """Augmentation of uint8 images [B,H,W,C] at a step, from a random stream of this name."""
    key = rng.stream(root, stream, step)
    return augment.augment(key, images, config.augment, pad=config.pad, flip=config.flip)


def _soft_labels(
    config: StepConfig, root: jax.Array, step: jax.Array, images: jax.Array, labels: jax.Array
) -> dict[str, jax.Array]:
    """Smoothed labels, and mixed images where asked; "label" is then the class of the larger part."""
    share, found = config.label_smoothing, {"image": images, "label": labels}
    soft = (1 - share) * jax.nn.one_hot(labels, config.num_classes) + share / config.num_classes
    if config.mixup or config.cutmix:
        found["image"], soft = mixing.mix(
            rng.stream(root, "mix", step), images, soft,
            mixup=config.mixup, cutmix=config.cutmix, probability=config.mix_probability,
        )  # fmt: skip
        found["label"] = jnp.argmax(soft, -1).astype(labels.dtype)
    return found | {"soft_label": soft}


def _update(
    method: Method,
    config: StepConfig,
    mesh: Any,
    state: RunState,
    batch: dict[str, jax.Array],
    root: jax.Array,
) -> tuple[RunState, dict[str, jax.Array]]:
    """One step on a batch of uint8 images."""
    views = {"image": augmented(config, root, "augment", state.step, batch["image"])}
    if method.views == 2:
        second = batch.get("view", batch["image"])  # on the host other crops are made of the images
        views["view"] = augmented(config, root, "augment view", state.step, second)
    if config.label_smoothing or config.mixup or config.cutmix:
        views |= _soft_labels(config, root, state.step, views["image"], batch["label"])
    epoch = state.step // config.steps_per_epoch + 1
    seen = batch | views | {"epoch": epoch}
    key = rng.stream(root, "attack", state.step)
    if config.accumulate > 1:
        new, metrics = accumulation.step(method, config.accumulate, mesh, state, seen, key)
    else:
        new, metrics = method.step(state, seen, key)
    checked.metrics(metrics, checked.OF_LOG)
    if state.ema is not None:
        new = new.replace(ema=_average(config, state.ema, new.student.variables, state.step))
    # A finite loss can have an infinite gradient: the norm shows it before the state is saved.
    trained = [new.student.params]
    trained += [t.params for t in new.teachers.values() if t.opt_state is not None]
    metrics |= {"param_norm": optax.tree.norm(trained)}
    return new.replace(step=state.step + 1), metrics
