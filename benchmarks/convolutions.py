"""The convolutions of the students one by one, in JAX and in PyTorch: forward, input and kernel gradient.

    python -m benchmarks.convolutions             # 64 images, all cores
    python -m benchmarks.convolutions --rounds 3  # quicker

JAX has the whole batch on one device ("one"), or one part of it on each core ("cores"), as the product
does. "direct" is "cores" without Winograd's algorithm, and "Winograd" how many times as fast "cores" is.
"stock" is `lax.conv_general_dilated` with its automatic gradients, on one device.
PyTorch (`pip install -e '.[reference]'`; without it its columns stay away) has channels-last tensors and all
cores. Programs take turns, the smallest time of each counts; milliseconds, and GFLOP/s of "cores".
"""

import argparse
import importlib.util
import os
import time

import numpy as np

# Title: side, input channels, output channels, kernel, stride, groups; of ResNet-18, WRN-28-10,
# small_resnet and MobileNetV2 at 32x32.
SHAPES = {
    "3x3 3-64 @32": (32, 3, 64, 3, 1, 1),
    "3x3 64-64 @32": (32, 64, 64, 3, 1, 1),
    "3x3 64-128 @32 /2": (32, 64, 128, 3, 2, 1),
    "3x3 128-128 @16": (16, 128, 128, 3, 1, 1),
    "3x3 256-256 @8": (8, 256, 256, 3, 1, 1),
    "3x3 512-512 @4": (4, 512, 512, 3, 1, 1),
    "3x3 160-160 @32": (32, 160, 160, 3, 1, 1),
    "3x3 320-320 @16": (16, 320, 320, 3, 1, 1),
    "3x3 640-640 @8": (8, 640, 640, 3, 1, 1),
    "3x3 16-16 @32": (32, 16, 16, 3, 1, 1),
    "3x3 32-32 @16": (16, 32, 32, 3, 1, 1),
    "3x3 64-64 @8": (8, 64, 64, 3, 1, 1),
    "1x1 64-128 @32 /2": (32, 64, 128, 1, 2, 1),
    "1x1 24-144 @32": (32, 24, 144, 1, 1, 1),
    "1x1 144-24 @32": (32, 144, 24, 1, 1, 1),
    "depthwise 144 @32": (32, 144, 144, 3, 1, 144),
    "depthwise 576 @8": (8, 576, 576, 3, 1, 576),
}
PASSES = ("forward", "input gradient", "kernel gradient")


def operands(shape, batch):
    side, inputs, outputs, kernel, stride, groups = shape
    rng = np.random.default_rng(0)
    out = -(-side // stride)
    shapes = (
        (batch, side, side, inputs),
        (kernel, kernel, inputs // groups, outputs),
        (batch, out, out, outputs),
    )
    return [rng.standard_normal(s, np.float32) for s in shapes]


def jax_passes(shape, arrays, devices, stock=False, form="auto"):
    """{pass: a call that runs it}."""
    import jax
    from jax import lax

    from ard_jax import models
    from ard_jax.convolutions import winograd
    from ard_jax.convolutions.cpu_conv import splits_batch
    from ard_jax.runtime import sharding

    *_, kernel, stride, groups = shape
    conv = lax.conv_general_dilated if stock else models.canonical_conv
    mesh = sharding.make_mesh(devices)
    same, split = sharding.replicated(mesh), sharding.split_batch(mesh)
    placed = [jax.device_put(a, s) for a, s in zip(arrays, (split, same, split), strict=True)]

    def forward(x, w):
        return conv(
            x, w, (stride, stride), ((kernel // 2, kernel // 2),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    def input_gradient(x, w, g):
        return jax.vjp(lambda z: forward(z, w), x)[1](g)[0]

    def kernel_gradient(x, w, g):
        return jax.vjp(lambda v: forward(x, v), w)[1](g)[0]

    def compiled(run, out, used):
        def traced(*arguments):
            with splits_batch(devices), winograd.use(form):
                return run(*arguments)

        places = (split, same, split)[:used]
        program = jax.jit(traced, in_shardings=places, out_shardings=out)
        return lambda: jax.block_until_ready(program(*placed[:used]))

    programs = ((forward, split, 2), (input_gradient, split, 3), (kernel_gradient, same, 3))
    return {name: compiled(*p) for name, p in zip(PASSES, programs, strict=True)}


def torch_passes(shape, arrays):
    import torch

    torch.set_num_threads(os.cpu_count())
    *_, kernel, stride, groups = shape
    order = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    x, w, g = (
        torch.tensor(a.transpose(o)).contiguous(memory_format=torch.channels_last)
        for a, o in zip(arrays, order, strict=True)
    )

    def forward():
        with torch.no_grad():
            return torch.nn.functional.conv2d(
                x, w, stride=stride, padding=kernel // 2, groups=groups
            )

    def backward(*wanted):
        return lambda: torch.ops.aten.convolution_backward(
            g,
            x,
            w,
            None,
            [stride] * 2,
            [kernel // 2] * 2,
            [1, 1],
            False,
            [0, 0],
            groups,
            [*wanted, False],
        )

    return dict(zip(PASSES, (forward, backward(True, False), backward(False, True)), strict=True))


def measure(calls, rounds):
    """Smallest milliseconds of each call, in turn."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - begin))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", default="", help="part of a title, e.g. 'depthwise'")
    args = parser.parse_args()
    from ard_jax.runtime import sharding

    sharding.use_cores()
    import jax

    cores = jax.device_count()
    with_torch = importlib.util.find_spec("torch") is not None
    columns = ["stock", "one", "direct", "cores", *(["PyTorch"] if with_torch else [])]
    print(f"{args.batch} images, {cores} cores, float32; ms\n")
    print(
        f"| convolution | pass | {' | '.join(columns)} | Winograd | GFLOP/s |"
        f"{' PyTorch/cores |' * with_torch}"
    )
    print("|" + "---|" * (len(columns) + 4 + with_torch))
    for title, shape in SHAPES.items():
        if args.only not in title:
            continue
        arrays = operands(shape, args.batch)
        kinds = {
            "stock": jax_passes(shape, arrays, 1, stock=True),
            "one": jax_passes(shape, arrays, 1),
            "direct": jax_passes(shape, arrays, cores, form="off"),
            "cores": jax_passes(shape, arrays, cores),
        }
        if with_torch:
            kinds["PyTorch"] = torch_passes(shape, arrays)
        calls = {(kind, name): call for kind, of in kinds.items() for name, call in of.items()}
        times = measure(calls, args.rounds)
        products = 2 * arrays[2].size * arrays[1][..., 0].size
        for name in PASSES:
            row = " | ".join(f"{times[kind, name]:.2f}" for kind in columns)
            rate = products / times["cores", name] / 1e6
            gain = times["direct", name] / times["cores", name]
            ratio = f" {times['PyTorch', name] / times['cores', name]:.2f} |" if with_torch else ""
            print(
                f"| {title} | {name} | {row} | {gain:.2f} | {rate:.0f} |{ratio}",
                flush=True,
            )


if __name__ == "__main__":
    main()
