"""The PyTorch twin as a contender, eager or compiled."""

import os
import shutil
import time
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ard_jax.interop import torch_names
from ard_jax.models.bundle import normalization_constants
from benchmarks.step_cases import EPS, STUDENT_SGD, TEACHER_SGD, WORK, Built, arrays, network
from benchmarks.torch_methods import METHODS
from benchmarks.torch_steps import Settings, Step
from benchmarks.torch_steps import network as torch_network

NAMES = {"eager": "PyTorch, eager", "nchw": "PyTorch, eager, NCHW", "compile": "PyTorch, compiled"}


def prepare(device: str) -> None:
    """Threads and backends as one sets them for speed.

    Raises:
      RuntimeError: PyTorch cannot use the device.
    """
    if device == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        return
    if not torch.cuda.is_available():
        raise RuntimeError("this PyTorch sees no GPU (torch.cuda.is_available() is false)")
    torch.backends.cudnn.benchmark = True
    # JAX's default precision uses TF32 for float32 on such devices too.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True


def make_step(built: Built, kind: str = "eager", device: str = "cpu") -> Step:
    """The twin of a case, from the same weights."""
    case, attack = built.case, built.parts.attack
    settings = Settings(
        EPS, attack.step_size if attack else 0.0, case.steps, case.classes,
        STUDENT_SGD.lr, STUDENT_SGD.momentum, STUDENT_SGD.weight_decay,
        TEACHER_SGD.lr, TEACHER_SGD.momentum,
        device=device, bf16=case.precision == "bfloat16", channels_last=kind != "nchw",
    )  # fmt: skip
    nets = {}
    for role, bundle in built.nets.items():
        tensors = torch_names.to_torch(bundle, built.variables[role])
        constants = normalization_constants(bundle.normalization, bundle.image_shape[-1])
        if constants is not None:
            tensors |= {"normalization.mean": constants[0], "normalization.std": constants[1]}
        state = {k: torch.tensor(np.asarray(v)) for k, v in tensors.items()}
        model, options = network(getattr(case, role))
        nets[role] = torch_network(model, case.classes, case.size, options, state, settings)
    return METHODS[case.method](nets, settings, _wrap() if kind == "compile" else None)


def _wrap() -> Any:
    if not (shutil.which("g++") or shutil.which("clang++")):
        raise RuntimeError("torch.compile needs a C++ compiler, and there is no g++ or clang++")
    # One code object serves several networks in several modes; at the limit it would go on eagerly.
    torch._dynamo.config.recompile_limit = 64
    return lambda function: torch.compile(function, dynamic=False)


class TorchStep:
    """A call runs one step and waits for it.

    Attributes:
      compile_seconds: the first step less the second, of the compiled twin.
    """

    def __init__(self, built: Built, kind: str, device: str):
        """Kind: "eager", "nchw" or "compile", which compiles; device: "cpu" or "cuda"."""
        self.name, self.device, self.built = NAMES[kind], device, built
        self.step = make_step(built, kind, device)
        data = arrays(built.case)
        self.images = torch.from_numpy(data["image"]).to(device)
        self.labels = torch.from_numpy(data["label"]).long().to(device)
        seconds = [self._timed() for _ in range(3 if kind == "compile" else 1)]
        self.compile_seconds = sum(seconds[:-1]) if kind == "compile" else 0.0

    def _timed(self) -> float:
        started = time.perf_counter()
        self()
        return time.perf_counter() - started

    def __call__(self) -> None:
        """One step."""
        self.step(self.images, self.labels)
        self._wait()

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def parts(self) -> dict[str, Any]:
        """Name -> call that does this part of the step alone, once."""
        step, work = self.step, WORK[self.built.case.method]
        x = step.augment(self.images)
        other = (x + 0.01).clamp_(0, 1)
        calls = {"augment": lambda: step._augment(self.images)}
        if work.attack:
            start, target = step.start(x), step.before(x)
            step.student.train()
            calls["attack"] = lambda: step.attack(x, self.labels, start, target)
        if work.frozen or work.trained:
            calls["teachers"] = lambda: self._teachers(work, (x, other))
        calls["student"] = lambda: self._student(work, (x, other))
        return {name: self._waiting(call) for name, call in calls.items()}

    def _waiting(self, call):
        return lambda: (call(), self._wait())

    def _teachers(self, work, images) -> None:
        for i, role in enumerate(work.frozen):
            self.step.frozen(role, images[i % 2])
        for role in work.trained:
            z = self.step.pass_of(self.step._logits[role], images[1])
            loss = functional.cross_entropy(z, self.labels)
            self.step.descend(self.step.teacher_optimizer, loss)

    def _student(self, work, images) -> None:
        step, passes = self.step, images[: work.student]
        z = [step.pass_of(step._logits["student"], x) for x in passes]
        step.descend(step.optimizer, sum(functional.cross_entropy(v, self.labels) for v in z))

    def peak(self) -> int:
        """Most bytes of GPU memory that PyTorch held during two steps."""
        torch.cuda.reset_peak_memory_stats()
        self(), self()
        return torch.cuda.max_memory_allocated()


def matmul_rate(precision: str, size: int, device: str) -> Any:
    """(call that multiplies two square matrices, its FLOPs)."""
    a = torch.randn(size, size, device=device, dtype=getattr(torch, precision))

    def call():
        torch.mm(a, a)
        if device != "cpu":
            torch.cuda.synchronize()

    return call, 2 * size**3
