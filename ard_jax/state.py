"""The arrays of a run: everything that changes while training, and nothing else."""

from typing import Any

import jax
from flax import struct


class NetState(struct.PyTreeNode):
    """One network: the student or a teacher.

    Attributes:
      params: trainable parameters, float32 pytree.
      batch_stats: BatchNorm running statistics, float32 pytree ({} without BatchNorm).
      opt_state: optax state; None for a network that is never trained.
    """

    params: Any
    batch_stats: Any
    opt_state: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What `ModelBundle.apply` takes: {"params", "batch_stats"}."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @classmethod
    def create(cls, variables: dict[str, Any], opt_state: Any = None) -> "NetState":
        """From what `ModelBundle.init` returns."""
        return cls(variables["params"], variables["batch_stats"], opt_state)


class RunState(struct.PyTreeNode):
    """A whole run. Student and teachers alternate inside one step, so they are saved together.

    Attributes:
      step: number of updates done, int32 scalar.
      student: the student.
      teachers: role ("robust", "clean", ...) -> NetState.
      ema: average of the student's variables (exponential, or SWA), or None.
      method: the method's own arrays (temperatures, loss weights, ...).
    """

    step: jax.Array
    student: NetState
    teachers: dict[str, NetState]
    ema: Any
    method: dict[str, Any]
