"""Training phases out of an experiment: the student's, and one for each teacher's recipe."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from ard_jax import optim, rng
from ard_jax.config import build
from ard_jax.config.parse import to_dict
from ard_jax.config.schema import AwpConfig, Experiment, MethodConfig, TeacherConfig
from ard_jax.data import ArrayDataset, Splits, base, batching
from ard_jax.evaluation.evaluator import Evaluator, Flags
from ard_jax.runtime import sharding
from ard_jax.state import RunState
from ard_jax.training import soft_labels
from ard_jax.training.loop import Phase, Scores
from ard_jax.training.train_step import StepConfig


def select_split(experiment: Experiment, splits: Splits) -> ArrayDataset:
    """The images that pick the best checkpoint."""
    split = splits.test if experiment.select_on == "test" else splits.validation
    limit = experiment.eval.max_selection_examples
    return base.first(split, limit)


def score(experiment: Experiment) -> Callable[[Scores], float]:
    """(clean + robust)/2 of the student under the selecting attack, as the authors' code selects."""
    attack = experiment.eval.select_attack

    def of(scores: Scores) -> float:
        return (scores["student"]["clean"] + scores["student"][attack]) / 2

    return of


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


def monitor(
    experiment: Experiment,
    dataset: ArrayDataset,
    student: Evaluator,
    teachers: dict[str, Evaluator] | None = None,
) -> Callable[[RunState], Scores]:
    """Evaluation while training: the student, and each trained teacher on the same images.

    A teacher's accuracy "on the student's examples" is what the authors' code logs; it is transfer,
    not the teacher's own robustness.
    """
    name = experiment.eval.select_attack
    spec = build.evaluation_attack(name, experiment)

    def scores_of(flags: Flags, attack: str) -> dict[str, float]:
        return {"clean": flags.accuracy("clean"), attack: flags.accuracy(name)}

    def evaluate(state: RunState) -> Scores:
        watch = {r: (e, state.teachers[r].variables) for r, e in (teachers or {}).items()}
        flags = student.run(state.student.variables, dataset, {name: spec}, watch=watch)
        scores = {"student": scores_of(flags, name)}
        for role, seen in flags.others.items():
            scores[role] = scores_of(seen, f"{name}_on_student")
        return scores

    return evaluate


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
        evaluate=monitor(e, validation, evaluator, watched),
        score=score(e),
        split=e.select_on,
        eval_epochs=EvaluationEpochs(e.epochs, e.eval.every, e.eval.dense_from),
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
    return experiment.replace(
        name=f"{role}_teacher",
        seed=recipe.seed,
        workdir="",
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        ema_decay=0.0,
        swa_start=0,
        awp=AwpConfig(),
        student=teacher.net,
        student_optim=recipe.optim,
        robust_teacher_optim=optim.OptimConfig(
            start=150
        ),  # unused; fixed, so that the identity is too
        attack=recipe.attack,
        method=MethodConfig(name=recipe.method, options=options),
        eval=experiment.eval.replace(every=recipe.eval_every, dense_from=0),
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
