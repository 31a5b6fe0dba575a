"""What a paper's file registers: a method's name, options, teachers and attack."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ard_jax.io.options import Options
from ard_jax.methods import checked


@dataclasses.dataclass(frozen=True)
class Registration:
    """A method under its name; every file of a paper ends in one, which `ard_jax.methods` finds.

    Attributes:
      name: under which it is created, and configured by configs/<dataset>.py:NAME.
      options: its option record.
      make: (options, `base.Parts`) -> `base.Method`.
      teachers: the roles that it takes, in order.
      attack: its inner attack unless `config.attack` names another; "" for methods that make no
        adversarial examples.
      trained_teachers: the teachers that it goes on training.
      counts_iterates: whether it counts at how many iterates of its attack the student is right.
      refuses: (option record, attack) -> why the method cannot train with it; "" if it can.
      length_matters: option record -> what in a step depends on the length of the run (`Parts.epochs`), so
        that a finished run cannot be trained longer; "" if nothing does.
      updates: option record -> updates of the student in one step.
      accumulates: whether a step may be several parts with one update (`config.accumulate`).
      robust_teacher: whether it fails with a teacher that is not robust.
      soft_labels: whether it makes soft labels itself, which an attack takes in place of a teacher's logits.
      cross_entropy: option record -> whether its loss has a cross-entropy with the labels, which it takes
        from `base.targets`, so that they may be soft.
      needs_labels: option record -> what else than that cross-entropy and the attack needs the label as one
        class, for people; "" if nothing does.
      igdm: of `igdm.Igdm` with this method: variant -> the student's train-mode passes, beside "paper";
        None: the method does not take the add-on.
    """

    name: str
    options: type[Options]
    make: Callable[[Any, Any], Any]
    teachers: tuple[str, ...] = ()
    attack: str = "sat_train"
    trained_teachers: tuple[str, ...] = ()
    counts_iterates: bool = False
    refuses: Callable[[Any, Any], str] = lambda *_: ""
    length_matters: Callable[[Any], str] = lambda _: ""
    updates: Callable[[Any], int] = lambda _: 1
    accumulates: bool = True
    robust_teacher: bool = False
    soft_labels: bool = False
    cross_entropy: Callable[[Any], bool] = lambda _: False
    needs_labels: Callable[[Any], str] = lambda _: ""
    igdm: dict[str, tuple[str, ...]] | None = None

    def __post_init__(self):
        """Raises ValueError for a field that is not what its paper's file must give."""
        checked.registration(self)
