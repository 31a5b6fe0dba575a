"""`--mode=plan`: what a run would cost on given devices, on paper. Nothing is trained or allocated.

Parameters and FLOPs are counted in the train step, traced on shapes. Memory and collectives are those of
this step compiled for CPU with at most two simulated devices and the batch that one device gets: from two
devices on they do not depend on the number. Times are counts over peak numbers times assumed shares.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax

from ard_jax.data import Splits, pipeline
from ard_jax.experiment import Experiment
from ard_jax.plan import hlo, report
from ard_jax.plan.hardware import Fleet, parse
from ard_jax.plan.program import Traced, compile_step, recipes, shapes_of_data, simulate, trace
from ard_jax.plan.time import Assumptions, assumptions, step_time


def run(
    experiment: Experiment, devices: str, assume: list[str], compiled: bool = True, out: str = ""
) -> int:
    """Prints the plan, and writes it as JSON to the file `out` if that is given.

    Args:
      experiment: what to plan.
      devices: see `hardware.parse`.
      assume: "name=number" texts, see `time.Assumptions`.
      compiled: also compile the step, for memory and collectives; tens of seconds for WRN-34-10.
      out: file for the plan, or "".

    Returns:
      Exit code: 0, or 1 when the memory of a device does not suffice.

    Raises:
      ValueError: unknown devices or assumptions, or batches that do not divide by the devices.
    """
    plan = make(experiment, devices, assume, compiled)
    print(report.text(plan), flush=True)
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
    splits, training = shapes_of_data(e), recipes(e)
    _check_batches([("", e), *training], splits, fleet)
    simulate(2)
    student = trace(e, "student", splits, fleet)
    teachers = [trace(t, f"{role} teacher", splits, fleet) for role, t in training]
    program = compile_step(student, min(fleet.devices, 2, len(jax.devices()))) if compiled else None
    collectives = _collectives(student, fleet, program)
    phases = [_phase(t, fleet, assumed, _collectives(t, fleet, None)) for t in teachers]
    phases.append(_phase(student, fleet, assumed, collectives))
    return {
        "experiment": e.name,
        "precision": e.precision,
        "devices": dataclasses.asdict(fleet),
        "batch_size": e.batch_size,
        "batch_per_device": student.batch,
        "networks": _networks(student),
        "phases": phases,
        "collectives": collectives,
        "memory": _memory(student, fleet, assumed, program),
        "assumed": dataclasses.asdict(assumed),
        "source": fleet.accelerator.source if fleet.accelerator else "",
    }


def _check_batches(experiments: list[tuple[str, Experiment]], splits: Splits, fleet: Fleet) -> None:
    for role, e in experiments:
        try:
            size, last = e.batch_size, e.data.last_batch
            pipeline.check_sharding(len(splits.train), size, fleet.devices, last)
        except ValueError as error:
            what = f"{role} teacher: " if role else ""
            raise ValueError(f"On {fleet.explanation}: {what}{error}") from error


def _bytes(tree: Any) -> int:
    return sum(math.prod(v.shape) * v.dtype.itemsize for v in jax.tree.leaves(tree))


def _size(tree: Any) -> int:
    return sum(math.prod(v.shape) for v in jax.tree.leaves(tree))


def _nets(state: Any) -> dict[str, Any]:
    return {"student": state.student} | state.teachers


def _networks(t: Traced) -> list[dict[str, Any]]:
    return [
        {
            "role": role,
            "model": t.bundles[role.removesuffix("_initial")].name,
            "parameters": _size(net.params),
            "statistics": _size(net.batch_stats),
            "trained": net.opt_state is not None,
            "forward_flops": t.forward[role.removesuffix("_initial")],
        }
        for role, net in _nets(t.state).items()
    ]


def _phase(t: Traced, fleet: Fleet, a: Assumptions, collectives: dict[str, Any]) -> dict[str, Any]:
    c, sequential = t.count, collectives["sequential"]
    time = step_time(c, collectives["bytes"], sequential, fleet, a)
    return {
        "title": t.title,
        "method": t.experiment.method.name,
        "steps": t.steps,
        "flops_per_step": c.matrix_flops * fleet.devices,
        "loop_share": c.loop_flops / max(c.matrix_flops, 1.0),
        "other_flops_per_step": c.other_flops * fleet.devices,
        "traffic_per_device": c.traffic,
        "kernels": sum(n for _, _, n in c.items),
        "unknown_loops": c.unknown_loops,
        "step_time": time,
        "hours": time and time["total"] * t.steps / 3600,
    }


def _collectives(t: Traced, fleet: Fleet, program: Any) -> dict[str, Any]:
    """Bytes that a device gives to reductions in one step; arithmetic where nothing is compiled."""
    trained = [net for net in _nets(t.state).values() if net.opt_state is not None]
    gradients = _bytes([net.params for net in trained])
    statistics = _bytes([net.batch_stats for net in trained])
    # A mean and a variance per layer; gradients travel as one.
    least = 1 + sum(len(jax.tree.leaves(net.batch_stats)) for net in trained)
    found = {"gradients": gradients, "statistics": statistics, "compiled": None}
    if fleet.devices == 1:
        return found | {"bytes": 0, "sequential": 0}
    if program is None:
        return found | {"bytes": gradients + statistics, "sequential": least}
    kinds = hlo.collectives(program.as_text())
    return found | {
        "bytes": sum(c["bytes"] for c in kinds.values()),
        "sequential": 1 + sum(c["small"] for c in kinds.values()),
        "compiled": kinds,
    }


def _memory(t: Traced, fleet: Fleet, a: Assumptions, program: Any) -> dict[str, Any]:
    """Bytes on one device: what is there between steps, by its parts, and what a step needs beside it."""
    s, parts = t.state, {}
    for role, net in _nets(s).items():
        parts[f"{role}: parameters and statistics"] = _bytes([net.params, net.batch_stats])
        if size := _bytes(net.opt_state):
            parts[f"{role}: optimiser"] = size
    if s.ema is not None:
        parts["student: average"] = _bytes(s.ema)
    if size := _bytes(s.method):
        parts["method's own arrays"] = size
    image = math.prod(next(iter(t.bundles.values())).image_shape) + 4  # with its label
    if t.examples:
        parts["training set and soft labels"] = t.examples
        parts["batch"] = t.batch * image
    else:
        parts["batch (this one and two to come)"] = 3 * t.batch * image
    counted = t.count.temporary
    compiled = None
    if program is not None:
        stats = program.memory_analysis()
        compiled = {
            "arguments": stats.argument_size_in_bytes,
            "temporary": stats.temp_size_in_bytes,
            "outputs_not_in_place": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        }
    step = compiled["temporary"] + compiled["outputs_not_in_place"] if compiled else counted
    state, total = sum(parts.values()), sum(parts.values()) + step
    fits = None if a.memory is None else total <= a.memory
    advice = _advice(t, fleet, a, state, step) if fits is False else ""
    return {
        "parts": parts, "state": state, "step": step, "step_counted": counted, "compiled": compiled,
        "total": total, "fits": fits, "advice": advice,
    }  # fmt: skip


def _advice(t: Traced, fleet: Fleet, a: Assumptions, state: float, step: float) -> str:
    """What to change; the memory of a step is taken to be proportional to the batch."""
    if state >= a.memory:
        return (
            "The networks and optimisers alone do not fit, however many devices there are: state is "
            "replicated. Take devices with more memory or a smaller teacher."
        )
    images = int(t.batch * (a.memory - state) / step)
    if not images:
        return "Not even one image per device fits. Take devices with more memory."
    needed = -(-t.experiment.batch_size // images)
    devices = next(
        n for n in range(needed, t.experiment.batch_size + 1) if t.experiment.batch_size % n == 0
    )
    advice = f"About {images} images per device fit: use {devices} devices or more"
    advice += f", or config.batch_size={images * fleet.devices} (which changes the result)"
    return advice + (
        ", or config.precision=bfloat16." if t.experiment.precision == "float32" else "."
    )
