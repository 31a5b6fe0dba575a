"""Our step as a contender: compiled once, timed, taken apart, its memory and operations read."""

import time
from typing import Any

import jax
import jax.numpy as jnp

from ard_jax import losses
from ard_jax.convolutions.cpu_conv import splits_batch
from ard_jax.data.augment import augment
from ard_jax.methods import base
from ard_jax.runtime import sharding
from benchmarks.step_cases import WORK, Built, arrays


class JaxStep:
    """A call runs one step and waits for it.

    Attributes:
      compile_seconds: tracing and compiling.
      flops: of XLA's cost analysis, the body of a loop counted once.
      planned: bytes that XLA planned: arguments, results that are no arguments, temporaries.
      temporary: the last of these.
    """

    name = "ard_jax"

    def __init__(self, built: Built):
        """Compiles."""
        self.built, self.key = built, jax.random.key(0)
        self.batch = sharding.put_batch(built.mesh, arrays(built.case))
        self.state = built.state()
        started = time.perf_counter()
        devices = sharding.num_devices(built.mesh)
        self.step = built.program(devices).lower(self.state, self.batch, self.key).compile()
        self.compile_seconds = time.perf_counter() - started
        memory = self.step.memory_analysis()
        self.temporary = memory.temp_size_in_bytes
        self.planned = (
            memory.argument_size_in_bytes + memory.output_size_in_bytes
            - memory.alias_size_in_bytes + memory.temp_size_in_bytes
        )  # fmt: skip
        self.flops = (self.step.cost_analysis() or {}).get("flops")

    def __call__(self) -> None:
        """One step."""
        self.state, metrics = self.step(self.state, self.batch, self.key)
        jax.block_until_ready((self.state, metrics))

    def parts(self) -> dict[str, Any]:
        """Name -> call of a program that does this part of the step alone, once."""
        return _parts(self.built, self.state, self.batch, self.key)


def _parts(built: Built, state: Any, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, Any]:
    work, parts, labels = WORK[built.case.method], built.parts, batch["label"]
    state = jax.tree.map(jnp.copy, state)  # the step consumes its own
    images = jax.jit(augment)(key, batch["image"])
    other = jnp.clip(images + 0.01, 0, 1)
    programs: dict[str, Any] = {"augment": (augment, (key, batch["image"]))}
    if work.attack:
        soft = None
        if parts.attack.needs_teacher:
            net = parts.teachers["robust"]
            soft = jax.jit(lambda v, x: net.apply(v, x, False)[0])(
                state.teachers["robust"].variables, images
            )

        def attack(state, images, soft, key):
            given = {"image": images, "label": labels, "epoch": jnp.ones((), jnp.int32)}
            return base.attack(parts, state, given, key, teacher_logits=soft).images

        programs["attack"] = (attack, (state, images, soft, key))
    if work.frozen or work.trained:
        programs["teachers"] = (
            lambda *a: _teachers(work, parts, labels, *a), (state, images, other),
        )  # fmt: skip
    programs["student"] = (lambda *a: _student(work, parts, labels, *a), (state, images, other))
    devices = sharding.num_devices(built.mesh)
    return {name: _call(jax.jit(_on(devices, f)), args) for name, (f, args) in programs.items()}


def _on(devices, function):
    def traced(*args):
        with splits_batch(devices):
            return function(*args)

    return traced


def _call(program, args):
    return lambda: jax.block_until_ready(program(*args))


def _teachers(work, parts, labels, state, *images):
    """Every teacher pass of the step, and the updates of teachers that are trained."""
    frozen = [
        base.teacher_logits(parts, state, role, images[i % 2]) for i, role in enumerate(work.frozen)
    ]
    trained = []
    for role in work.trained:
        net, teacher, optim = parts.teachers[role], state.teachers[role], parts.teacher_optims[role]
        logits, backward, stats = base.train_forward(
            net, teacher.params, teacher.batch_stats, images[1]
        )
        _, cotangent = base.mean_loss(lambda z: losses.cross_entropy(z, labels), logits)
        rate = jnp.asarray(optim.lr(jnp.ones((), jnp.int32)))
        update = optim.update(backward(cotangent), teacher.opt_state, teacher.params, rate)
        trained.append((update, logits, stats))
    return frozen, trained


def _student(work, parts, labels, state, *images):
    """The student's train-mode passes, their gradients and its update; the loss is a plain one."""

    def loss_of(*logits):
        return sum(jnp.mean(losses.cross_entropy(z, labels)) for z in logits), {}

    student = state.student
    return base.train_student(
        parts, student, student.batch_stats, images[: work.student], loss_of,
        jnp.ones((), jnp.int32),
    )  # fmt: skip


def matmul_rate(precision: str, size: int) -> Any:
    """(call that multiplies two square matrices, its FLOPs)."""
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(precision))
    return _call(jax.jit(jnp.matmul), (a, a)), 2 * size**3
