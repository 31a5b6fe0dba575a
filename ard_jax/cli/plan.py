"""`--mode=plan`: what a run would cost on given devices, on paper. Nothing is trained or allocated.

FLOPs and memory are what XLA's own analyses say of the train step, traced on shapes for the batch that one
device gets. Times are FLOPs over peak numbers times assumed shares.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from ard_jax import data, methods
from ard_jax.checkpoints import networks
from ard_jax.cli.plan_hardware import Assumptions, Fleet, assumptions, parse, step_time
from ard_jax.config import build
from ard_jax.config.schema import Experiment, TeacherConfig
from ard_jax.convolutions.canonical_conv import exported_convolutions
from ard_jax.data import ArrayDataset, Splits, batching
from ard_jax.data.split import holdout_count
from ard_jax.io.files import check_writable
from ard_jax.models import described
from ard_jax.runtime import sharding
from ard_jax.training import run as run_lib
from ard_jax.training import step_runner, train_step

# (image shape, classes, training images, test images) of data sets whose sizes are fixed. Images of ImageNet
# have the size that they are made into.
_SIZES = {
    "cifar10": ((32, 32, 3), 10, 50_000, 10_000),
    "cifar100": ((32, 32, 3), 100, 50_000, 10_000),
    "tiny_imagenet": ((64, 64, 3), 200, 100_000, 10_000),
    "imagenet": ((224, 224, 3), 1000, 1_281_167, 50_000),
    "imagenet100": ((224, 224, 3), 100, 126_689, 5_000),
}


def run(
    experiment: Experiment, devices: str, assume: list[str], compiled: bool = True, out: str = ""
) -> int:
    """Prints the plan, and writes it as JSON to the file `out` if that is given.

    Args:
      experiment: what to plan.
      devices: see `plan_hardware.parse`.
      assume: "name=number" texts, see `plan_hardware.Assumptions`.
      compiled: also compile the student's step, for its memory; tens of seconds for WRN-34-10.
      out: file for the plan, or "".

    Returns:
      Exit code: 0, or 1 when the memory of a device does not suffice.

    Raises:
      ValueError: unknown devices or assumptions, or batches that do not divide by the devices.
    """
    if out:
        if Path(out).is_dir():
            raise ValueError(
                f"--plan_json={out} is a folder; give a file, such as {Path(out, 'plan.json')}"
            )
        check_writable(Path(out).parent, "--plan_json")
        if Path(out).exists() and '"phases"' not in Path(out).read_text(errors="replace"):
            raise ValueError(f"--plan_json={out} exists and is no plan; choose another file")
    plan = make(experiment, devices, assume, compiled)
    print(text(plan), flush=True)
    if out:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plan, indent=1))
        print(f"Written: {path}")
    return 1 if plan["memory"]["fits"] is False else 0


def make(
    experiment: Experiment, devices: str, assume: list[str], compiled: bool = True
) -> dict[str, Any]:
    """The plan as a dict of JSON types; `docs/plan.md` says what is in it. Arguments as of `run`."""
    e, fleet = experiment, parse(devices)
    assumed = assumptions(fleet, e.precision, assume)
    with contextlib.suppress(RuntimeError):  # this process uses devices already
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 2)
    splits = shapes_of_data(e)
    # The teachers that the run trains first, unless it finds them trained.
    roles = [(r, getattr(e.teachers, r)) for r in methods.TEACHERS[e.method.name]]
    recipes = [
        (r, build.teacher_experiment(e, r, t))
        for r, t in roles
        if isinstance(t, TeacherConfig) and not t.checkpoint
    ]
    titled = [(f"{role} teacher", recipe) for role, recipe in recipes] + [("student", e)]
    _check_batches(titled, splits, fleet)
    traced = [Traced(of, title, splits, fleet) for title, of in titled]
    return {
        "experiment": e.name,
        "precision": e.precision,
        "devices": dataclasses.asdict(fleet),
        "batch_size": e.batch_size,
        "batch_per_device": traced[-1].batch,
        "networks": _networks(traced[-1]),
        "phases": [_phase(t, assumed) for t in traced],
        "collectives": _collectives(traced[-1]),
        "memory": _memory(traced[-1], assumed, compiled),
        "assumed": dataclasses.asdict(assumed),
        "source": fleet.accelerator.source if fleet.accelerator else "",
        "notes": [
            f"no checkpoint of the {role} teacher in {t.checkpoint}: planned for config.teachers.{role}.net"
            for role, t in roles
            if isinstance(t, TeacherConfig) and t.checkpoint and not Path(t.checkpoint).exists()
        ]
        + (["counted as if all images had config.data.image_size"] if e.data.crop_sizes else []),
    }


def _check_batches(titled: list[tuple[str, Experiment]], splits: Splits, fleet: Fleet) -> None:
    for title, e in titled:
        try:
            size, last = e.batch_size, e.data.last_batch
            batching.check_sharding(len(splits.train), size, fleet.devices * e.accumulate, last)
        except ValueError as error:
            raise ValueError(f"On {fleet.explanation}: {title}: {error}") from error


class Cost(NamedTuple):
    """What one execution of a program does.

    Attributes:
      flops: of everything; a multiplication and an addition are 2. Products with padding and with the zeros
        of dilation are left out.
      loop_flops: those inside loops: of a train step the attack's.
      accessed: bytes that its operations read and write, before XLA fuses them.
    """

    flops: float
    loop_flops: float
    accessed: float


def cost(traced: Any) -> Cost:
    """XLA's cost analysis of a traced program, with loops at their full length.

    XLA counts the body of a loop once, so the bodies of `lax.scan` are analysed by themselves and counted
    for the other rounds too. A `lax.while_loop`, whose length is not in the program, counts once.

    Args:
      traced: of `jax.jit(f).trace`, called inside `exported_convolutions("stock")`: the gradients that are
        fast on CPU compute what XLA drops only later.
    """
    found = cast(dict, traced.lower().cost_analysis())
    flops, in_loops, accessed = found["flops"], 0.0, found["bytes accessed"]
    for body, length in _loops(traced.jaxpr.jaxpr):
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in body.in_avals]
        inner = jax.jit(core.jaxpr_as_fun(body)).trace(*shapes)
        once, whole = cast(dict, inner.lower().cost_analysis()), cost(inner)
        flops += length * whole.flops - once["flops"]
        in_loops += length * whole.flops
        accessed += length * whole.accessed - once["bytes accessed"]
    return Cost(flops, in_loops, accessed)


def _loops(jaxpr: core.Jaxpr) -> Iterator[tuple[core.ClosedJaxpr, int]]:
    """(body, length) of the outermost scans."""
    kinds = core.Jaxpr | core.ClosedJaxpr
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield eqn.params["jaxpr"], eqn.params["length"]
            continue
        for inner in jax.tree.leaves(
            [*eqn.params.values()], is_leaf=lambda v: isinstance(v, kinds)
        ):
            if isinstance(inner, kinds):
                yield from _loops(getattr(inner, "jaxpr", inner))


class Traced:
    """The train step of an experiment, for the batch that one device gets, on shapes.

    Attributes:
      experiment, title, splits, fleet: the arguments.
      batch: images per device.
      steps: updates of the whole training.
      bundles: role -> network.
      state: RunState of shapes.
      nets: role -> its NetState, the student's first.
      cost: the work of one device in one step.
    """

    def __init__(self, experiment: Experiment, title: str, splits: Splits, fleet: Fleet):
        """Traces; compiles and allocates nothing."""
        self.experiment, self.title, self.splits, self.fleet = experiment, title, splits, fleet
        self._config = run_lib.step_config(build.training_settings(experiment), splits)
        self.batch = experiment.batch_size // fleet.devices
        self.steps = experiment.epochs * self._config.steps_per_epoch
        self.bundles, self._method = self._build(experiment.batch_size)
        self._key = jax.eval_shape(lambda: jax.random.key(0))
        self.state = jax.eval_shape(self._initial, self._key)
        self.nets = {"student": self.state.student} | self.state.teachers
        with exported_convolutions("stock"):
            self.cost = cost(self.trace(sharding.make_mesh(1)))

    def _build(self, batch: int) -> tuple[dict[str, Any], methods.Method]:
        e = self.experiment
        # BatchNorm's groups keep their size, as far as this part of the batch has whole ones.
        groups = math.gcd(max(1, e.bn_groups * batch // e.batch_size), batch)
        nets = {"student": build.describe_network(e.student, e.precision, self.splits.train)}
        for role in methods.TEACHERS[e.method.name]:
            teacher = build.teacher_settings(e, role)
            if teacher.checkpoint and Path(teacher.checkpoint).exists():
                nets[role] = networks.describe_checkpoint(teacher.checkpoint)[0]
            else:
                nets[role] = teacher.describe(self.splits.train)
            if teacher.precision:
                nets[role] = nets[role] | {"precision": teacher.precision}
        bundles = {
            role: described.from_description(net, groups, e.run.remat) for role, net in nets.items()
        }
        teachers = {role: b for role, b in bundles.items() if role != "student"}
        spe = self._config.steps_per_epoch
        return bundles, build.make_method(e, bundles["student"], teachers, spe)

    def _initial(self, key: jax.Array) -> Any:
        variables = {role: bundle.init(key) for role, bundle in self.bundles.items()}
        state = self._method.init(variables.pop("student"), variables)
        return train_step.start_average(state, self._config)

    def trace(self, mesh: Any) -> Any:
        """The step traced for the devices of a mesh, which need not be there; each gets its batch."""
        size = self.batch * sharding.num_devices(mesh)
        batch = self.examples(size) | {"index": jax.ShapeDtypeStruct((size,), jnp.int32)}
        method = self._build(size)[1]
        step = train_step.program(method, self._config, mesh, f"plan {self.title}")
        state = train_step.placed_shapes(self._config, mesh, self.state)
        return step.trace(state, batch, self._key)

    def examples(self, count: int) -> dict[str, Any]:
        """Shapes of so many training examples: images, labels and the method's columns."""
        train = self.splits.train
        logits = jax.ShapeDtypeStruct((count, train.num_classes), jnp.float32)
        columns = {name: logits for name in self._method.columns}
        return {
            "image": jax.ShapeDtypeStruct((count, *train.image_shape), jnp.uint8),
            "label": jax.ShapeDtypeStruct((count,), jnp.int32),
        } | columns

    def compile(self) -> Any:
        """The step compiled for CPU, with the convolutions of the planned devices.

        Two simulated devices, or one for one, get each its batch: from two on their number changes nothing.
        """
        devices = min(self.fleet.devices, 2, len(jax.devices()))
        on_cpu = self.fleet.kind == "cpu"
        with contextlib.nullcontext() if on_cpu else exported_convolutions("stock"):
            return self.trace(sharding.make_mesh(devices)).lower().compile()

    def forward_flops(self, role: str) -> float:
        """Of one image's prediction."""
        bundle = self.bundles[role]
        image = jax.ShapeDtypeStruct((1, *bundle.image_shape), jnp.float32)
        variables = jax.eval_shape(bundle.init, self._key)
        with exported_convolutions("stock"):
            traced = jax.jit(lambda v, x: bundle.apply(v, x, False)[0]).trace(variables, image)
        return cost(traced).flops


def shapes_of_data(e: Experiment) -> Splits:
    """Splits of the right sizes: zeros that take no memory for known data sets, else the data itself.

    Of the data's images only the shape is wanted, so none is decoded where they need not be.

    Raises:
      DataError: data that has to be read and cannot be.
    """
    d = e.data
    holdout = d.holdout if d.holdout < 1 else int(d.holdout)
    known = d.classes if d.name == "imagenet" and d.classes else d.name
    if known not in _SIZES:
        reading = dataclasses.replace(build.reading(d), loader="grain")
        if data.reading_problems(d.name, reading):  # arrays already
            reading = build.reading(d)
        return data.load(d.name, d.dir or None, holdout=holdout, seed=d.split_seed, reading=reading)
    shape, classes, train, test = _SIZES[known]
    shape = data.known_shape(d.name, d.image_size) or shape
    names = tuple(str(k) for k in range(classes))

    def split(count: int, name: str) -> ArrayDataset:
        images = np.broadcast_to(np.zeros((), np.uint8), (count, *shape))
        return ArrayDataset(images, np.zeros(count, np.int32), names, d.name, name)

    train -= holdout_count(holdout, train, d.name)
    return Splits(split(train, "train"), None, split(test, "test"))


def _bytes(tree: Any) -> int:
    return sum(math.prod(v.shape) * v.dtype.itemsize for v in jax.tree.leaves(tree))


def _size(tree: Any) -> int:
    return sum(math.prod(v.shape) for v in jax.tree.leaves(tree))


def _networks(t: Traced) -> list[dict[str, Any]]:
    return [
        {
            "role": role,
            "model": t.bundles[role.removesuffix("_initial")].name,
            "parameters": _size(net.params),
            "statistics": _size(net.batch_stats),
            "trained": net.opt_state is not None,
            "forward_flops": t.forward_flops(role.removesuffix("_initial")),
        }
        for role, net in t.nets.items()
    ]


def _phase(t: Traced, a: Assumptions) -> dict[str, Any]:
    flops, loop_flops, accessed = t.cost
    sent = _collectives(t)
    time = step_time(flops, accessed / a.fusion, sent["bytes"], sent["sequential"], t.fleet, a)
    return {
        "title": t.title,
        "method": t.experiment.method.name,
        "steps": t.steps,
        "flops_per_step": flops * t.fleet.devices,
        "loop_share": loop_flops / flops,
        "traffic_per_device": accessed / a.fusion,
        "step_time": time,
        "hours": time and time["total"] * t.steps / 3600,
    }


def _collectives(t: Traced) -> dict[str, int]:
    """Bytes that a device gives to reductions in one step, and how many wait for one another."""
    trained = [net for net in t.nets.values() if net.opt_state is not None]
    gradients = _bytes([net.params for net in trained])
    statistics = _bytes([net.batch_stats for net in trained])
    found = {"gradients": gradients, "statistics": statistics}
    if t.fleet.devices == 1:
        return found | {"bytes": 0, "sequential": 0}
    # A mean and a variance per layer; gradients travel as one.
    layers = sum(len(jax.tree.leaves(net.batch_stats)) for net in trained)
    return found | {"bytes": gradients + statistics, "sequential": 1 + layers}


def _parts(t: Traced) -> dict[str, int]:
    """Bytes on one device between steps, by what they are."""
    parts, shards = {}, t.fleet.devices if t.experiment.run.shard_optimizer else 1
    for role, net in t.nets.items():
        parts[f"{role}: parameters and statistics"] = _bytes([net.params, net.batch_stats])
        parts[f"{role}: optimiser"] = _bytes(net.opt_state) // shards
    parts["student: average"] = _bytes(t.state.ema)
    parts["method's own arrays"] = _bytes(t.state.method)
    d, train = t.experiment.data, t.splits.train
    pixels = math.prod(train.image_shape)
    # As `step_runner.on_device` decides on the fleet.
    small = len(train) * pixels <= step_runner.MAX_BYTES
    auto = d.loader == "memory" and not d.extra and t.fleet.hosts == 1 and small
    if d.on_device == "on" or (d.on_device == "auto" and auto):
        parts["training set and soft labels"] = _bytes(t.examples(len(train)))
        parts["batch"] = t.batch * (pixels + 4)  # with its labels
    else:
        parts["batch (this one and two to come)"] = 3 * t.batch * (pixels + 4)
    return {name: size for name, size in parts.items() if size}


def _memory(t: Traced, a: Assumptions, compiled: bool) -> dict[str, Any]:
    """Bytes on one device: what is there between steps, and what a step needs beside it (None: unknown)."""
    parts, found, step = _parts(t), None, None
    if compiled:
        stats = t.compile().memory_analysis()
        found = {
            "arguments": stats.argument_size_in_bytes,
            "temporary": stats.temp_size_in_bytes,
            "outputs_not_in_place": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        }
        step = found["temporary"] + found["outputs_not_in_place"]
    state = sum(parts.values())
    total = state + (step or 0)
    fits, advice = None, ""
    if a.memory is not None and (compiled or total > a.memory):
        fits = total <= a.memory
        advice = "" if fits else _advice(t, a.memory - state, step)
    return {
        "parts": parts, "state": state, "step": step, "compiled": found, "total": total,
        "fits": fits, "advice": advice,
    }  # fmt: skip


def _advice(t: Traced, free: float, step: int | None) -> str:
    """What to change; the memory of a step is taken to be proportional to the batch."""
    if free <= 0:
        return (
            "The networks and optimisers alone do not fit, however many devices there are: networks are "
            "replicated. Take devices with more memory, a smaller teacher or config.run.shard_optimizer."
        )
    assert step is not None  # or the parts alone were too much
    images, size = int(t.batch * free / step), t.experiment.batch_size
    if not images:
        return "Not even one image per device fits. Take devices with more memory, or config.run.remat."
    devices = next(n for n in range(-(-size // images), size + 1) if size % n == 0)
    half = ", or config.precision=bfloat16" if t.experiment.precision == "float32" else ""
    return (
        f"About {images} images per device fit: use {devices} devices or more, or config.batch_size="
        f"{images * t.fleet.devices} (which changes the result){half}, config.run.remat or config.accumulate."
    )


def _table(title: str, rows: list[list[Any]]) -> str:
    """Columns of equal width, the first to the left, the others to the right; numbers to three digits."""
    cells = [[c if isinstance(c, str) else _number(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            c.rjust(w) if i else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n  ".join([title, *map(str.rstrip, lines)])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def text(plan: dict[str, Any]) -> str:
    """The plan for a terminal, each number with where it is from."""
    fleet, sent = plan["devices"], plan["collectives"]
    head = (
        f"Plan of {plan['experiment']} on {fleet['name']}: {fleet['explanation']}\n"
        f"Global batch {plan['batch_size']} = {fleet['devices']} x {plan['batch_per_device']} images; "
        f"networks compute in {plan['precision']}; state replicated, batch split (data parallel)."
    )
    nets = [["network", "model", "parameters", "BN statistics", "forward, GFLOP/image", "trained"]]
    for n in plan["networks"]:
        sizes = (n["parameters"], n["statistics"], n["forward_flops"] / 1e9)
        nets.append([n["role"], n["model"], *sizes, "yes" if n["trained"] else "no"])
    exchange = "\n  none: one device"
    if fleet["devices"] > 1:
        of = (("gradients", "gradients"), ("BatchNorm statistics", "statistics"))
        exchange = _table("", [[name, sent[key] / 1e6] for name, key in of])
    return "\n\n".join([
        head,
        "\n  ".join([_table("NETWORKS (counted)", nets), *plan["notes"]]),
        _training(plan),
        _memory_text(plan),
        f"EXCHANGE PER STEP AND DEVICE, student phase, of what is trained, MB{exchange}",
        _assumed(plan),
    ])  # fmt: skip


def _training(plan: dict[str, Any]) -> str:
    titles = "phase|method|steps|GFLOP/step|in attack|compute, ms|exchange, ms|step, ms|all, hours"
    rows: list[list[Any]] = [titles.split("|")]
    for p in plan["phases"]:
        t, share = p["step_time"], f"{p['loop_share']:.0%}"
        times: list[Any] = ["?"] * 4
        if t:
            times = [*(1e3 * t[k] for k in ("compute", "communication", "total")), p["hours"]]
        rows.append([p["title"], p["method"], p["steps"], p["flops_per_step"] / 1e9, share, *times])
    found = _table("TRAINING (FLOPs of all devices counted in the step; times ASSUMED)", rows)
    if len(plan["phases"]) > 1:
        found += "\n  A teacher that is already trained, or a checkpoint, costs nothing."
    if plan["phases"][-1]["step_time"] is None:
        found += (
            "\n  No times: peak numbers are not known. Name the kind of the devices (--devices=h100-8), or "
            "give --assume=flops=...,bandwidth=...,link=..."
        )
    return found + "\n  Evaluation, AutoAttack and compilation are not in it."


def _memory_text(plan: dict[str, Any]) -> str:
    m, available = plan["memory"], plan["assumed"]["memory"]
    rows: list[list[Any]] = [[name, size / 1e6] for name, size in m["parts"].items()]
    step = "unknown without --compile" if m["step"] is None else m["step"] / 1e6
    rows += [
        ["activations, gradients, work space (compiled for CPU)", step],
        ["sum", m["total"] / 1e6],
    ]
    if available is not None:
        rows.append(["available to a program", available / 1e6])
    found = _table("MEMORY PER DEVICE, student phase, MB (state counted)", rows)
    return found + (f"\n  DOES NOT FIT. {m['advice']}" if m["fits"] is False else "")


def _assumed(plan: dict[str, Any]) -> str:
    a = plan["assumed"]
    used = [f"{name}={value:g}" for name, value in a.items() if value is not None]
    source = f"\n  peak numbers are from {plan['source']}" if plan["source"] else ""
    return (
        "ASSUMED, not measured (change with --assume=name=number,...; no overlap of compute and exchange)\n"
        f"  {', '.join(used)} (FLOP/s, bytes/s, bytes, shares, seconds){source}"
    )
