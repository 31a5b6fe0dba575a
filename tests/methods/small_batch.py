"""One small batch, small networks, and single steps of a method on them, compiled once each."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from small_networks import batch, networks

from ard_jax import attacks, methods, optim
from ard_jax.methods import base

TRAIN = (("attack_bn", "train"),)


def parts(name, *, weight_decay=2e-4, **fields):
    nets = networks()
    teachers = dict(zip(("robust", "clean"), nets[1:], strict=True))
    attack = methods.ATTACKS[name]
    return methods.Parts(
        student=nets[0],
        student_optim=optim.make(optim.OptimConfig(lr=0.05, weight_decay=weight_decay), 10),
        attack=attacks.make(attack, eps=0.1, steps=3) if attack else None,
        teachers={role: teachers[role] for role in methods.TEACHERS[name]},
        **fields,
    )


@functools.cache
def teacher_variables(role):
    """A teacher after sixty steps of natural training on the batch."""
    p = dataclasses.replace(parts("natural"), student=parts("iad2").teachers[role])
    method = methods.create("natural", p)
    state, step = method.init(p.student.init(jax.random.key(5)), {}), jax.jit(method.step)
    for _ in range(60):
        state, _ = step(state, batch(), jax.random.key(0))
    return state.student.variables


@functools.cache
def student_variables():
    return parts("natural").student.init(jax.random.key(0))


def fresh(name, fields=(), options=()):
    """(parts, state, step): a method built anew, with its step compiled at the first call."""
    p = parts(name, **dict(fields))
    method = methods.create(name, p, **dict(options))
    variables = {role: teacher_variables(role) for role in p.teachers}
    return p, method.init(student_variables(), variables), jax.jit(method.step)


compiled = functools.cache(fresh)


@functools.cache
def one_step(name, epoch=1, fields=(), **options):
    """(state before, state after, metrics) of one step from a fixed start."""
    _, state, step = compiled(name, fields, tuple(options.items()))
    new, metrics = step(state, batch(epoch), jax.random.key(1))
    return state, new, jax.device_get(metrics)


@functools.cache
def adversarial_images(name, fields=()):
    """x' of that step."""
    p, state, _ = compiled(name, fields)
    return jax.jit(lambda: base.attack(p, state, batch(), jax.random.key(1)).images)()


def distance(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in pairs)


def train_logits(state, images):
    return compiled("natural")[0].student.apply(state.student.variables, images, True)[0]


def passes(state, inputs):
    """The student's running statistics after train-mode passes of these inputs."""
    stats = state.student.batch_stats
    for images in inputs:
        variables = {"params": state.student.params, "batch_stats": stats}
        stats = compiled("natural")[0].student.apply(variables, images, True)[1]
    return stats
