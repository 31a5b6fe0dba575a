"""CIARD steps on some of the simulated devices, and what their compiled programs send around."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp

from ard_jax import attacks, data, methods, models, optim
from ard_jax.data import batching
from ard_jax.runtime import sharding
from ard_jax.state import NetState
from ard_jax.training import train_step

SHAPE, CLASSES = (8, 8, 1), 10


def ciard(attack_steps=2, step_size=0.05, attack_bn="eval", norm="linf", lr=0.1, **options):
    """(method, parts) on networks of different widths, so that their arrays differ in size."""
    nets = [
        models.create("small_resnet", CLASSES, SHAPE, widths=w, blocks=1, **options)
        for w in ((4, 6), (5, 7), (3, 8))
    ]
    parts = methods.Parts(
        student=nets[0],
        student_optim=optim.make(optim.OptimConfig(lr=lr), 10),
        attack=attacks.make(
            "ciard_train", eps=0.2, norm=norm, steps=attack_steps, step_size=step_size
        ),
        teachers={"robust": nets[1], "clean": nets[2]},
        teacher_optims={"robust": optim.make(optim.OptimConfig(lr=0.01, momentum=0.1), 10)},
        epochs=10,
        steps_per_epoch=5,
        attack_bn=attack_bn,
    )
    return methods.create("ciard", parts, itt_start=2), parts


def initial(method, parts):
    """RunState of seed 0."""
    keys = jax.random.split(jax.random.key(0), 3)
    student = parts.student.init(keys[0])
    teachers = {r: b.init(k) for (r, b), k in zip(parts.teachers.items(), keys[1:], strict=False)}
    return method.init(student, teachers)


def digits_batch(mesh, step, size):
    """The images and labels of a step on the digits."""
    train = data.load("digits").train
    local = batching.get_batch(train, batching.batch_indices(len(train), size, seed=0, step=step))
    return sharding.put_batch(mesh, {name: local[name] for name in ("image", "label")})


CONFIG = train_step.StepConfig(seed=0, steps_per_epoch=5, augment="crop", pad=1)


def compiled(devices, batch=32, attack_steps=2, **options):
    """(text of the compiled step, shapes of the state, of the metrics)."""
    method, parts = ciard(attack_steps, **options)
    state = jax.eval_shape(lambda: initial(method, parts))
    arrays = {
        "image": jax.ShapeDtypeStruct((batch, *SHAPE), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
    program = train_step.program(method, CONFIG, sharding.make_mesh(devices))
    key = jax.eval_shape(lambda: jax.random.key(0))
    lowered = program.lower(state, arrays, key)
    return lowered.compile().as_text(), state, lowered.out_info[1]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation between devices: its kind, the shapes it carries, the computation it is in."""

    kind: str
    shapes: list[tuple[int, ...]]
    computation: str
    line: str


def collectives(text):
    """All collectives in the text of a compiled program, those of loops and conditionals too."""
    kinds = (
        "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
    )
    found, computation = [], ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            computation = header[1]
        elif op := re.search(rf"= (.*?) ({kinds})(?:-start)?\(", line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", op[1])
            shapes = [tuple(int(n) for n in s.split(",") if n) for s in shapes]
            found.append(Collective(op[2], shapes, computation, line))
    return found


def numbers(found):
    """How many numbers collectives carry, scalars left out."""
    return sum(math.prod(shape) for c in found for shape in c.shapes if shape)


def elements(net: NetState, what="params"):
    """Numbers in the parameters or the running statistics."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(getattr(net, what)))
