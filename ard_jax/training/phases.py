"""Training phases out of an experiment: the student's, and one for each teacher's recipe."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from ard_jax import optim, rng
from ard_jax.config import build
from ard_jax.config.parse import to_dict
from ard_jax.config.schema import AwpConfig, Experiment, TeacherConfig
from ard_jax.data import ArrayDataset, Splits, base, batching
from ard_jax.evaluation import monitor
from ard_jax.evaluation.evaluator import Evaluator
from ard_jax.runtime import sharding
from ard_jax.state import RunState
from ard_jax.training import soft_labels
from ard_jax.training.loop import Phase
from ard_jax.training.train_step import StepConfig


def select_split(experiment: Experiment, splits: Splits) -> ArrayDataset:
    """The images that pick the best checkpoint."""
    split = splits.test if experiment.select_on == "test" else splits.validation
    limit = experiment.eval.max_selection_examples
    return base.first(split, limit)


def evaluation_epochs(epochs: int, every: int, dense_from: int = 0) -> frozenset[int]:
    """Epochs (from 1) that are evaluated: the first, every `every`-th, all from `dense_from`, the last."""
    dense = range(dense_from, epochs + 1) if dense_from else ()
    return frozenset({1, epochs, *range(every, epochs + 1, every), *dense})


def student_phase(
    experiment: Experiment,
    workdir: Path,
    splits: Splits,
    mesh: Any,
    student: tuple[Any, dict[str, Any], Evaluator],
    teachers: dict[str, Any],
) -> Phase:
    """The main phase: the student under its method. `teachers`: role -> `teachers.Teacher`."""
    e, (bundle, net, evaluator) = experiment, student
    step = step_config(e, splits)
    method = build.make_method(
        e, bundle, {role: t.bundle for role, t in teachers.items()}, step.steps_per_epoch
    )
    validation = select_split(e, splits)
    watched = {role: teachers[role].evaluator for role in method.trained_teachers}

    def initial() -> RunState:
        # One program: outside of jit each operation on each shape is compiled by itself.
        def make(key, given):
            return method.init(bundle.init(rng.stream(key, "init")), given)

        given = {role: t.variables for role, t in teachers.items()}
        key = sharding.put_replicated(mesh, jax.random.key(e.seed))
        return jax.jit(make, out_shardings=sharding.replicated(mesh))(key, given)

    return Phase(
        title="student",
        workdir=workdir,
        method=method,
        initial=initial,
        train=splits.train,
        epochs=e.epochs,
        batch_size=e.batch_size,
        last_batch=e.data.last_batch,
        step=step,
        evaluate=monitor.monitor(
            build.evaluation_attack(e.eval.select_attack, e), validation, evaluator, watched
        ),
        score=monitor.score(e.eval.select_attack),
        split=e.select_on,
        eval_epochs=evaluation_epochs(e.epochs, e.eval.every, e.eval.dense_from),
        save_every=e.run.save_every,
        config=build.comparable(
            e, net, splits, teachers={r: t.identity for r, t in teachers.items()}
        ),
        experiment=to_dict(e),
        mesh=mesh,
        log_every=e.run.log_every,
        tensorboard=e.run.tensorboard,
        on_device=e.data.on_device,
        columns=_columns(e, method, splits, teachers, mesh, workdir),
    )


def _columns(e: Experiment, method: Any, splits: Splits, teachers: Any, mesh: Any, workdir: Path):
    """Soft labels that are made before the run."""
    if not method.columns:
        return {}
    attack = build.training_attack(e.attack, e)
    return soft_labels.offline(e, splits.train, teachers["robust"], attack, mesh, workdir)


def teacher_experiment(experiment: Experiment, role: str, teacher: TeacherConfig) -> Experiment:
    """A teacher's recipe as an experiment of its own, whose "student" is the teacher."""
    recipe = teacher.recipe
    options = {"beta": recipe.beta} if recipe.method == "trades" else {}
    return dataclasses.replace(
        experiment,
        name=f"{role}_teacher",
        seed=recipe.seed,
        workdir="",
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        ema_decay=0.0,
        swa_start=0,
        awp=AwpConfig(gamma=0.0, start=1),
        student=teacher.net,
        student_optim=recipe.optim,
        robust_teacher_optim=optim.OptimConfig(),  # unused; a fixed value keeps the identity stable
        attack=recipe.attack,
        method=dataclasses.replace(experiment.method, name=recipe.method, options=options),
        eval=dataclasses.replace(experiment.eval, every=recipe.eval_every, dense_from=0),
    )


def step_config(e: Experiment, splits: Splits) -> StepConfig:
    """What the step needs of the experiment beside its method.

    Raises:
      ValueError: a batch of the epoch does not divide by config.bn_groups.
    """
    last = len(splits.train) % e.batch_size if e.data.last_batch == "keep" else 0
    if last % e.bn_groups:
        raise ValueError(
            f"the last batch of an epoch has {len(splits.train)} mod {e.batch_size} = {last} examples, which "
            f"do not divide by config.bn_groups={e.bn_groups}; use --config.data.last_batch=drop"
        )
    spe = batching.steps_per_epoch(len(splits.train), e.batch_size, e.data.last_batch)
    return StepConfig(e.seed, spe, e.data.augment, e.data.pad, e.ema_decay, e.swa_start)
