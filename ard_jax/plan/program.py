"""The train step of a configuration as a program on shapes: traced as for the planned devices."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import data, feed, methods, networks, phases, sharding, steps
from ard_jax.data import ArrayDataset, Splits
from ard_jax.data.split import holdout_count
from ard_jax.experiment import Experiment
from ard_jax.models.canonical_conv import exported_convolutions
from ard_jax.plan import count as counting
from ard_jax.plan.hardware import Fleet

# (image shape, classes, training images, test images) of data sets whose sizes are fixed.
_SIZES = {
    "cifar10": ((32, 32, 3), 10, 50_000, 10_000),
    "cifar100": ((32, 32, 3), 100, 50_000, 10_000),
    "tiny_imagenet": ((64, 64, 3), 200, 100_000, 10_000),
}


@dataclasses.dataclass(frozen=True)
class Traced:
    """The train step of one phase.

    Attributes:
      title: "student" or "robust teacher".
      experiment: the phase's own.
      bundles: "student" and teacher roles -> networks.
      state: RunState of shapes.
      forward: role -> matrix FLOPs of one image's forward pass.
      batch: images per device.
      examples: bytes of the training split and of what the method needs beside it (soft labels), if they are
        all on every device (config.data.on_device); 0 if they are not.
      at: (mesh, global batch size) -> the traced program.
      count: the work of one device in one step.
      steps: updates of the whole phase.
    """

    title: str
    experiment: Experiment
    bundles: dict[str, Any]
    state: Any
    forward: dict[str, float]
    batch: int
    examples: int
    at: Callable[[Any, int], Any]
    count: counting.Count
    steps: int


def simulate(devices: int) -> None:
    """Asks for simulated CPU devices; without effect in a process that uses devices already."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)


@contextlib.contextmanager
def _as_on(fleet: Fleet):
    """Our code that asks for the backend is told the planned one: it chooses convolutions by it.

    A program traced so can be counted, and compiled for CPU, on any machine.
    """
    name = "cpu" if fleet.kind == "cpu" else "gpu" if fleet.kind[:1] in "ah" else "tpu"
    with mock.patch.object(jax, "default_backend", lambda: name):
        yield


def shapes_of_data(e: Experiment) -> Splits:
    """Splits of the right sizes: zeros that take no memory for known data sets, else the data itself.

    Of the data's images only the shape is wanted, so none is decoded where they need not be.

    Raises:
      DataError: data that has to be read and cannot be.
    """
    d = e.data
    holdout = d.holdout if d.holdout < 1 else int(d.holdout)
    if d.name not in _SIZES:
        reading = data.Reading("grain", d.image_size)
        if data.reading_problems(d.name, reading):  # arrays already
            reading = data.Reading(image_size=d.image_size)
        return data.load(d.name, d.dir or None, holdout=holdout, seed=d.split_seed, reading=reading)
    shape, classes, train, test = _SIZES[d.name]
    names = tuple(str(k) for k in range(classes))

    def split(count: int, name: str) -> ArrayDataset:
        images = np.broadcast_to(np.zeros((), np.uint8), (count, *shape))
        return ArrayDataset(images, np.zeros(count, np.int32), names, d.name, name)

    train -= holdout_count(holdout, train, d.name)
    return Splits(split(train, "train"), None, split(test, "test"))


def recipes(e: Experiment) -> list[tuple[str, Experiment]]:
    """(role, experiment) of the teachers that the run trains first, unless it finds them trained."""
    chosen = [(r, getattr(e.teachers, r)) for r in methods.TEACHERS[e.method.name]]
    return [(r, phases.teacher_experiment(e, r, t)) for r, t in chosen if not t.checkpoint]


def _bundles(e: Experiment, splits: Splits, groups: int) -> dict[str, Any]:
    student = networks.describe(e.student, e.precision, splits.train)
    found = {"student": networks.create(student, groups)}
    for role in methods.TEACHERS[e.method.name]:
        teacher = getattr(e.teachers, role)
        if teacher.checkpoint:
            description = networks.describe_checkpoint(teacher.checkpoint)[0]
        else:
            description = networks.describe(teacher.net, e.precision, splits.train)
        found[role] = networks.create(description, groups)
    return found


def trace(e: Experiment, title: str, splits: Splits, fleet: Fleet) -> Traced:
    """Traces the step of an experiment for the batch that one device gets."""
    config = phases.step_config(e, splits)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def method_for(batch_size):
        # BatchNorm's groups keep their size, as far as this part of the batch has whole ones.
        groups = math.gcd(max(1, e.bn_groups * batch_size // e.batch_size), batch_size)
        bundles = _bundles(e, splits, groups)
        teachers = {role: b for role, b in bundles.items() if role != "student"}
        spe = config.steps_per_epoch
        return bundles, phases.make_method(e, bundles["student"], teachers, spe)

    def initial(key):
        variables = {role: bundle.init(key) for role, bundle in bundles.items()}
        state = method.init(variables.pop("student"), variables)
        return steps.start_average(state, config)

    def at(mesh, batch_size):
        part = method_for(batch_size)[1]
        batch = _examples(splits, part, batch_size)
        batch |= {"index": jax.ShapeDtypeStruct((batch_size,), jnp.int32)}
        with _as_on(fleet):
            return steps.program(part, config, mesh, f"plan {title}").trace(state, batch, key)

    bundles, method = method_for(e.batch_size)
    with _as_on(fleet):
        state = jax.eval_shape(initial, key)
        forward = {role: _forward(bundle, key) for role, bundle in bundles.items()}
    each = e.batch_size // fleet.devices
    with exported_convolutions(
        "stock"
    ):  # those for CPU have loops, which would count as the attack
        count = counting.count(at(sharding.make_mesh(1), each).jaxpr)
    total = e.epochs * config.steps_per_epoch
    examples = 0
    if _on_device(e, splits, fleet):
        every = _examples(splits, method, len(splits.train))
        examples = sum(math.prod(v.shape) * v.dtype.itemsize for v in every.values())
    return Traced(title, e, bundles, state, forward, each, examples, at, count, total)


def _examples(splits: Splits, method: Any, count: int) -> dict[str, Any]:
    """Shapes of so many training examples: images, labels and the method's columns."""
    train = splits.train
    logits = jax.ShapeDtypeStruct((count, train.num_classes), jnp.float32)
    return {
        "image": jax.ShapeDtypeStruct((count, *train.image_shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((count,), jnp.int32),
    } | dict.fromkeys(method.columns, logits)


def _on_device(e: Experiment, splits: Splits, fleet: Fleet) -> bool:
    """Whether the run will keep the training split on every device: `feed.on_device` on the fleet."""
    if e.data.on_device != "auto":
        return e.data.on_device == "on"
    size = len(splits.train) * math.prod(splits.train.image_shape)
    return e.data.loader == "memory" and fleet.hosts == 1 and size <= feed.MAX_BYTES


def _forward(bundle: Any, key: Any) -> float:
    image = jax.ShapeDtypeStruct((1, *bundle.image_shape), jnp.float32)
    variables = jax.eval_shape(bundle.init, key)
    program = jax.make_jaxpr(lambda v, x: bundle.apply(v, x, False)[0])(variables, image)
    return counting.count(program).matrix_flops


def compile_step(traced: Traced, devices: int) -> Any:
    """The step compiled for simulated devices, each with the batch that it has in the run."""
    return traced.at(sharding.make_mesh(devices), traced.batch * devices).lower().compile()
