"""Evaluation while training: what chooses the best checkpoint."""

from collections.abc import Callable, Mapping
from typing import Any

from ard_jax.data.base import ArrayDataset
from ard_jax.evaluation.accuracies import ExampleResults
from ard_jax.evaluation.evaluator import Evaluator
from ard_jax.state import RunState

Scores = dict[str, dict[str, float]]


def score(attack: str) -> Callable[[Scores], float]:
    """(clean + robust)/2 of the student under the selecting attack, as the authors' code selects."""

    def of(scores: Scores) -> float:
        return (scores["student"]["clean"] + scores["student"][attack]) / 2

    return of


def monitor(
    attack: Any, dataset: ArrayDataset, student: Evaluator, teachers: Mapping[str, Evaluator]
) -> Callable[[RunState], Scores]:
    """The accuracies of the student, and of each trained teacher on the same images.

    A teacher's accuracy "on the student's examples" is what the authors' code logs; it is transfer,
    not the teacher's own robustness.

    Args:
      attack: the selecting attack.
      dataset: the images that select.
      student: the student's evaluator.
      teachers: role -> evaluator of each trained teacher.
    """

    def scores_of(results: ExampleResults, name: str) -> dict[str, float]:
        return {"clean": results.accuracy("clean"), name: results.accuracy(attack.name)}

    def evaluate(state: RunState) -> Scores:
        watch = {role: (e, state.teachers[role].variables) for role, e in teachers.items()}
        attacks = {attack.name: attack}
        results = student.run(state.student.variables, dataset, attacks, watch=watch)
        scores = {"student": scores_of(results, attack.name)}
        for role, seen in results.others.items():
            scores[role] = scores_of(seen, f"{attack.name}_on_student")
        return scores

    return evaluate
