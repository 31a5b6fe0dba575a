"""Counts the work of a traced program: FLOPs, memory traffic and live bytes, loops at their full length.

XLA's own cost analysis counts the body of a loop once, and needs a compiled program; this walks the
jaxpr, which is exact for convolutions and matrix products and takes seconds. What XLA would drop or
merge is dropped and merged here too: results that nothing reads (kernel gradients inside an attack) and
values that are computed twice (a forward pass that appears in two places).
"""

import dataclasses
import math
from typing import Any

from jax.extend import core

from ard_jax.plan.flops import ELEMENTWISE, MATRIX, REDUCTIONS, VIEWS, flops_of

_LOOPS = ("scan", "while", "cond")
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class _Value:
    """An array of the program; views share the `root` that is kept in memory."""

    def __init__(self, aval: Any, root: "_Value | None" = None):
        self.root = root or self
        self.bytes = math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 8)


@dataclasses.dataclass
class _Op:
    name: str
    inputs: list[_Value]
    outputs: list[_Value]
    flops: float
    bodies: list["_Program"] = dataclasses.field(default_factory=list)
    times: int = 1


@dataclasses.dataclass
class _Program:
    ops: list[_Op]
    outputs: list[_Value]


@dataclasses.dataclass
class Count:
    """What one execution of a program does.

    Attributes:
      matrix_flops: of convolutions and matrix products; a multiplication and an addition are 2. Products
        with padding and with the zeros of dilation are left out, as in XLA's cost analysis.
      other_flops: of elementwise arithmetic and reductions.
      loop_flops: part of `matrix_flops` inside loops: the attack.
      traffic: bytes read from and written to memory, if elementwise work is fused into its consumers.
      temporary: largest number of bytes alive at once, arguments not counted, in the order of the
        program; an estimate of activations, gradients and work space.
      unknown_loops: loops whose length is not in the program; they are counted once.
      items: (FLOPs, bytes, times) of every kernel, for a roofline.
    """

    matrix_flops: float = 0.0
    other_flops: float = 0.0
    loop_flops: float = 0.0
    traffic: float = 0.0
    temporary: float = 0.0
    unknown_loops: int = 0
    items: list[tuple[float, float, int]] = dataclasses.field(default_factory=list)


def count(closed: core.ClosedJaxpr) -> Count:
    """The work of a program, e.g. of `jax.make_jaxpr(f)(*shapes)`."""
    return _measure(_flatten(closed.jaxpr, {}))


def _flatten(jaxpr: core.Jaxpr, env: dict) -> _Program:
    """The jaxpr with its calls inlined, equal values merged and unread ones dropped."""
    ops: list[_Op] = []
    known: dict[Any, list[_Value]] = {}
    for var in (*jaxpr.invars, *jaxpr.constvars):
        env.setdefault(var, _Value(var.aval))
    _emit(jaxpr, env, ops, known)
    outputs = [_read(env, v, known) for v in jaxpr.outvars]
    used, kept = {id(v) for v in outputs}, []
    for op in reversed(ops):
        if any(id(v) in used for v in op.outputs):
            kept.append(op)
            used |= {id(v) for v in op.inputs}
            used |= {id(v.root) for v in op.inputs}
    return _Program(kept[::-1], outputs)


def _read(env: dict, atom: Any, known: dict) -> _Value:
    if isinstance(atom, core.Literal):
        key = ("literal", str(atom.val), str(atom.aval))
        return known.setdefault(key, [_Value(atom.aval)])[0]
    return env[atom]


def _emit(jaxpr: core.Jaxpr, env: dict, ops: list[_Op], known: dict) -> None:
    for eqn in jaxpr.eqns:
        name, inputs = eqn.primitive.name, [_read(env, a, known) for a in eqn.invars]
        called = next((eqn.params[k] for k in _CALLED if k in eqn.params), None)
        if name not in _LOOPS and isinstance(called, core.Jaxpr | core.ClosedJaxpr):
            outputs = _inline(called, inputs, ops, known)
        elif name == "optimization_barrier":
            outputs = inputs
        else:
            outputs = _apply(eqn, name, inputs, ops, known)
        env.update(zip(eqn.outvars, outputs, strict=True))


def _inline(called: Any, inputs: list[_Value], ops: list[_Op], known: dict) -> list[_Value]:
    inner = getattr(called, "jaxpr", called)
    env = dict(zip(inner.invars, inputs[-len(inner.invars) :] if inner.invars else (), strict=True))
    env.update({v: _Value(v.aval) for v in inner.constvars})
    _emit(inner, env, ops, known)
    return [_read(env, v, known) for v in inner.outvars]


def _apply(eqn: Any, name: str, inputs: list[_Value], ops: list[_Op], known: dict) -> list[_Value]:
    bodies, times, key = [], 1, None
    if name in _LOOPS:
        bodies, times = _bodies(eqn, name)
    else:
        shapes = [str(v.aval) for v in eqn.outvars]
        key = (name, *map(id, inputs), *shapes, str(sorted(eqn.params.items(), key=lambda p: p[0])))
        if key in known:
            return known[key]
    root = inputs[0].root if name in VIEWS else None
    outputs = [_Value(v.aval, root) for v in eqn.outvars]
    ops.append(_Op(name, inputs, outputs, flops_of(eqn), bodies, times))
    if key:
        known[key] = outputs
    return outputs


def _bodies(eqn: Any, name: str) -> tuple[list[_Program], int]:
    """(alternatives, times): a loop has one alternative, a conditional its branches."""
    if name == "scan":
        return [_flatten(eqn.params["jaxpr"].jaxpr, {})], eqn.params["length"]
    if name == "while":
        return [_flatten(eqn.params["body_jaxpr"].jaxpr, {})], 1
    return [_flatten(branch.jaxpr, {}) for branch in eqn.params["branches"]], 1


class _Memory:
    """Which values are stored, and when: everything but elementwise results that can be fused."""

    def __init__(self):
        self.sources: dict[int, dict[int, _Value]] = {}  # of values that are not stored
        self.steps: list[tuple[dict[int, _Value], list[_Value], float]] = []

    def stored(self, value: _Value) -> dict[int, _Value]:
        """What must be read to have `value`."""
        root = value.root
        return self.sources.get(id(root), {id(root): root})

    def store(self, value: _Value) -> float:
        """Stores a fused value now; returns the bytes that this moves."""
        sources = self.sources.pop(id(value.root), None)
        if sources is None:
            return 0.0
        self.steps.append((sources, [value.root], 0.0))
        return sum(v.bytes for v in sources.values()) + value.root.bytes

    def peak(self, outputs: list[_Value]) -> float:
        """Largest sum of stored bytes, program inputs not counted."""
        last: dict[int, int] = {}
        for i, (reads, writes, _) in enumerate(self.steps):
            last |= {k: i for k in reads} | {id(v): i for v in writes}
        for v in outputs:
            last |= {k: len(self.steps) for k in self.stored(v)}
        born: dict[int, _Value] = {}
        live = best = 0.0
        for i, (reads, writes, inner) in enumerate(self.steps):
            for v in writes:
                if id(v) not in born:
                    born[id(v)] = v
                    live += v.bytes
            best = max(best, live + inner)
            for k in {*reads, *(id(v) for v in writes)}:
                if k in born and last[k] == i:
                    live -= born.pop(k).bytes
        return best


def _measure(program: _Program) -> Count:
    total, memory = Count(), _Memory()
    for op in program.ops:
        if op.name in VIEWS:
            continue
        reads: dict[int, _Value] = {}
        for v in op.inputs:
            reads |= memory.stored(v)
        if op.name in ELEMENTWISE and len([v for v in reads.values() if v.bytes > 4096]) <= 2:
            total.other_flops += op.flops
            for v in op.outputs:
                memory.sources[id(v)] = reads
            continue
        if op.name not in ELEMENTWISE and op.name not in REDUCTIONS:
            moved = sum(memory.store(v) for v in op.inputs)
            total.traffic += moved
            total.items += [(0.0, moved, 1)] if moved else []
            reads = {id(v.root): v.root for v in op.inputs}
        inner = _add_bodies(total, op) if op.bodies else _add_kernel(total, op, reads)
        memory.steps.append((reads, [v.root for v in op.outputs], inner))
    total.temporary = memory.peak(program.outputs)
    return total


def _add_kernel(total: Count, op: _Op, reads: dict[int, _Value]) -> float:
    """Adds one kernel; returns the temporary bytes it needs inside."""
    moved = sum(v.bytes for v in reads.values()) + sum(v.bytes for v in op.outputs)
    total.traffic += moved
    matrix = op.name in MATRIX
    if matrix:
        total.matrix_flops += op.flops
    else:
        total.other_flops += op.flops
    total.items.append((op.flops if matrix else 0.0, moved, 1))
    return 0.0


def _add_bodies(total: Count, op: _Op) -> float:
    """Adds a loop, or the dearest branch of a conditional; returns the temporary bytes of its body."""
    inner = max((_measure(body) for body in op.bodies), key=lambda c: (c.matrix_flops, c.traffic))
    total.matrix_flops += op.times * inner.matrix_flops
    total.other_flops += op.times * inner.other_flops
    total.loop_flops += op.times * (inner.matrix_flops if op.name != "cond" else inner.loop_flops)
    total.traffic += op.times * inner.traffic
    total.unknown_loops += inner.unknown_loops + (op.name == "while")
    total.items += [(f, b, n * op.times) for f, b, n in inner.items]
    return inner.temporary
