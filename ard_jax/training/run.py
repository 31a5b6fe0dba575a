"""One training: what the loop runs, made from settings, data and networks."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ard_jax import rng
from ard_jax.config.build import TrainingSettings
from ard_jax.data import ArrayDataset, Splits, base, batching
from ard_jax.data.augment import PADDED
from ard_jax.data.extra import ExtraImages, open_extra, tell_of_held_out
from ard_jax.evaluation.evaluator import Evaluator
from ard_jax.evaluation.monitor import monitor, score
from ard_jax.io.mirrors import Tracking
from ard_jax.methods.base import Method
from ard_jax.models import ModelBundle
from ard_jax.runtime import sharding
from ard_jax.state import RunState
from ard_jax.training import soft_labels, train_step
from ard_jax.training.loop import TrainingRun
from ard_jax.training.train_step import StepConfig


class Network(NamedTuple):
    """A network that is to be trained: functions, description, evaluation and beginning.

    `variables` are those that it begins with, None for random ones; `origin` is what these are.
    """

    bundle: ModelBundle
    description: dict[str, Any]
    evaluator: Evaluator
    variables: Any = None
    origin: str = ""


def select_split(settings: TrainingSettings, splits: Splits) -> ArrayDataset:
    """The images that pick the best checkpoint."""
    split = splits.test if settings.select_on == "test" else splits.validation
    limit = settings.eval.max_selection_examples
    assert split is not None  # `config.validate` asks for it
    return base.first(split, limit)


@dataclasses.dataclass(frozen=True)
class EvaluationEpochs:
    """Epochs (from 1) that are evaluated: the first, every `every`-th, all from `dense_from`, the last."""

    epochs: int
    every: int
    dense_from: int = 0

    def __contains__(self, epoch: int) -> bool:
        """Whether this epoch is one of them."""
        dense = 0 < self.dense_from <= epoch
        return epoch in (1, self.epochs) or epoch % self.every == 0 or dense


def make(
    title: str,
    settings: TrainingSettings,
    workdir: Path,
    splits: Splits,
    mesh: Any,
    network: Network,
    teachers: dict[str, Any],
) -> TrainingRun:
    """Makes the training of a network, student or teacher, under its method.

    Args:
      title: shown in the progress bar.
      settings: what the training is.
      workdir: folder of its checkpoints and metrics.
      splits: data.
      mesh: devices.
      network: what is trained.
      teachers: role -> `teachers.Teacher`.
    """
    s, (bundle, net, evaluator, begun, origin) = settings, network
    step = step_config(s, splits)
    networks = {role: t.bundle for role, t in teachers.items()}
    method = s.make_method(bundle, networks, step.steps_per_epoch)
    watched = {role: teachers[role].evaluator for role in method.trained_teachers}

    def initial() -> RunState:
        # One program: outside of jit each operation on each shape is compiled by itself.
        def start(key: jax.Array, given: Any, begun: Any):
            own = bundle.init(rng.stream(key, "init")) if begun is None else begun
            return method.init(own, given)

        given = {role: t.variables for role, t in teachers.items()}
        key = sharding.put_replicated(mesh, jax.random.key(s.seed))
        first = None if begun is None else sharding.put_replicated(mesh, begun)
        placed = train_step.placement(step, mesh, jax.eval_shape(start, key, given, first))
        return jax.jit(start, out_shardings=placed)(key, given, first)

    columns, extra = {}, extra_images(s, splits)
    _check_columns(method, s)
    known = {} if extra is None else {"extra_images": extra.identity}
    known |= {"start": origin} if origin else {}
    if method.columns:
        columns = soft_labels.offline(s, splits.train, teachers["robust"], mesh, workdir)
    return TrainingRun(
        title=title,
        workdir=workdir,
        method=method,
        bundle=bundle,
        initial=initial,
        train=splits.train,
        epochs=s.epochs,
        batch_size=s.batch_size,
        last_batch=s.data.last_batch,
        step=step,
        evaluate=monitor(s.select_attack, select_split(s, splits), evaluator, watched),
        score=score(s.select_attack.name),
        split=s.select_on,
        eval_epochs=EvaluationEpochs(s.epochs, s.eval.every, s.eval.dense_from),
        save_every=s.run.save_every,
        config=s.comparable(
            net, splits, teachers={r: t.identity for r, t in teachers.items()}, **known
        ),
        experiment=s.recorded,
        extension_problem=s.extension_problem,
        mesh=mesh,
        log_every=s.run.log_every,
        tensorboard=s.run.tensorboard,
        tracking=_tracking(s, title),
        on_device=s.data.on_device,
        columns=columns,
        extra=extra,
        method_at=lambda side: s.make_method(
            _at(bundle, side), {r: _at(b, side) for r, b in networks.items()}, step.steps_per_epoch
        ),
    )


def _at(bundle: ModelBundle, side: int) -> ModelBundle:
    """Returns the network for images of this side, in pixels.

    Raises:
      ValueError: it has none for them.
    """
    if bundle.at is None:
        raise ValueError(f"config.data.crop_sizes: {bundle.name} takes images of one size alone")
    return bundle.at(side)


def _tracking(settings: TrainingSettings, title: str) -> Tracking:
    s, metrics = settings, ("clean", settings.select_attack.name)
    return Tracking(
        name=f"{s.recorded['name']}-seed{s.seed}, {title}",
        config=s.recorded,
        metrics=tuple(f"eval/student/{s.select_on}/{name}" for name in metrics),
        wandb=s.run.wandb,
        mlflow=s.run.mlflow,
    )


def extra_images(settings: TrainingSettings, splits: Splits) -> ExtraImages | None:
    """The further training images of config.data.extra.

    Raises:
      DataError: see `open_extra`.
    """
    d = settings.data
    if not d.extra:
        return None
    extra = open_extra(d.extra, splits.train, d.extra_fraction, settings.batch_size)
    tell_of_held_out(extra, splits)
    return extra


def _check_columns(method: Method, settings: TrainingSettings) -> None:
    """Raises ValueError where further images would lack what the method makes before the run."""
    if method.columns and settings.data.extra:
        raise ValueError(
            f"config.data.extra={settings.data.extra}: method {method.name!r} makes soft labels before the "
            "run, of the own images alone; use --config.method.labels=online_shared, or no data.extra"
        )


def state_shapes(
    settings: TrainingSettings,
    splits: Splits,
    student: ModelBundle,
    teachers: dict[str, ModelBundle],
) -> RunState:
    """Returns the state that a checkpoint of the training holds, as shapes alone.

    Raises:
      ValueError: a size of config.data.crop_sizes that changes it.
    """
    step = step_config(settings, splits)

    def shapes(student: ModelBundle, teachers: dict[str, ModelBundle]) -> RunState:
        method = settings.make_method(student, teachers, step.steps_per_epoch)
        _check_columns(method, settings)

        def start(key: jax.Array) -> RunState:
            given = {role: bundle.init(key) for role, bundle in teachers.items()}
            return train_step.start_average(method.init(student.init(key), given), step)

        return jax.eval_shape(start, jax.random.key(0))

    found = shapes(student, teachers)
    for side in settings.data.crop_sizes:
        resized = {role: _at(bundle, side) for role, bundle in teachers.items()}
        if shapes(_at(student, side), resized) != found:
            raise ValueError(
                f"config.data.crop_sizes: {side} pixels change the arrays of method {settings.method!r} or "
                "of its networks, such as a transformer's positions; leave it out, or choose another student"
            )
    return found


def step_config(settings: TrainingSettings, splits: Splits) -> StepConfig:
    """Returns what the step needs beside its method.

    Raises:
      ValueError: a batch of the epoch does not divide by config.bn_groups.
    """
    s = settings
    keep = s.data.last_batch == "keep" and not s.data.extra
    last = len(splits.train) % s.batch_size if keep else 0
    if last % s.accumulate:
        raise ValueError(
            f"the last batch of an epoch has {len(splits.train)} mod {s.batch_size} = {last} examples, which "
            f"do not divide by config.accumulate={s.accumulate}; use --config.data.last_batch=drop"
        )
    if last // s.accumulate % s.bn_groups:
        raise ValueError(
            f"the last batch of an epoch has {len(splits.train)} mod {s.batch_size} = {last} examples, which "
            f"do not divide by config.bn_groups={s.bn_groups}; use --config.data.last_batch=drop"
        )
    if s.data.augment in PADDED and s.data.pad >= (side := min(splits.train.image_shape[:2])):
        raise ValueError(
            f"config.data.pad={s.data.pad}: must be less than the images' {side} pixels"
        )
    spe = batching.steps_per_epoch(len(splits.train), s.batch_size, s.data.last_batch)
    return StepConfig(
        s.seed, spe, s.data.augment, s.data.pad, s.data.mirrors, s.ema_decay, s.swa_start, s.average_bn,
        s.label_smoothing, splits.train.num_classes, s.data.mixup, s.data.cutmix, s.data.mix_probability,
        s.accumulate, s.run.shard_optimizer, s.data.crop_area,
        s.data.crop_sizes, s.data.crop_boundaries,
    )  # fmt: skip
