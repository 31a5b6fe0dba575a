"""Compiles a config's train step for TPUs that are not here, and prints its memory and work.

    pip install libtpu
    python -m benchmarks.compile_tpu configs/imagenet.py:rslad:vit_small --devices=v5e-64 --topology=v5e:2x2

TPU's compiler runs without a TPU. The program is that of a few devices (`--topology`), each with the batch
that it has among `--devices`; with more of them only the reductions grow.
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What libtpu would ask the machine for.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")

import time  # noqa: E402

import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from ard_jax.cli import config_file, plan, plan_hardware  # noqa: E402
from ard_jax.config import parse  # noqa: E402
from ard_jax.convolutions.canonical_conv import exported_convolutions  # noqa: E402
from ard_jax.runtime import sharding  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="FILE.py:CHOICE")
    parser.add_argument("--devices", default="v5e-64", help="whose batch each device gets")
    parser.add_argument("--topology", default="v5e:2x2", help="that is compiled for")
    args = parser.parse_args()
    experiment = parse.to_experiment(config_file.load(args.config))
    splits = plan.shapes_of_data(experiment)
    traced = plan.Traced(experiment, "student", splits, plan_hardware.parse(args.devices))
    topology = topologies.get_topology_desc(platform="tpu", topology_name=args.topology)
    mesh = jax.sharding.Mesh(topology.devices, sharding.make_mesh(1).axis_names)
    started = time.perf_counter()
    with exported_convolutions("stock"):
        compiled = traced.trace(mesh).lower().compile()
    seconds, memory = time.perf_counter() - started, compiled.memory_analysis()
    mib = 2**20
    print(
        f"{args.config}, {traced.batch} images on each of {len(topology.devices)} "
        f"{topology.devices[0].device_kind}, compiled in {seconds:.0f} s\n"
        f"arguments {memory.argument_size_in_bytes / mib:,.0f} MiB, temporary "
        f"{memory.temp_size_in_bytes / mib:,.0f} MiB, program "
        f"{memory.generated_code_size_in_bytes / mib:,.0f} MiB; "
        f"{traced.cost.flops / 1e9:,.0f} GFLOP a step and device (counted)"
    )


if __name__ == "__main__":
    main()
