"""Saves and restores a state of 100 MB by all processes; process 0 prints what it measured, as JSON."""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax.checkpoints.manager import Checkpoints
from ard_jax.runtime import distributed, sharding
from ard_jax.state import NetState, RunState

STEPS = (1, 2)


def main(path):
    distributed.start()
    mesh, found = sharding.make_mesh(), {"returned": [], "written": [], "in_background": []}
    noise = np.random.default_rng(0).normal(size=25_000_000).astype(np.float32)

    def state_of(step):
        student = NetState({"kernel": noise * step}, {}, {"momentum": np.zeros(3, np.float32)})
        state = RunState(np.int32(step), student, {}, None, {"temperature": np.float32(step)})
        return sharding.put_replicated(mesh, state)

    train = jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)
    with Checkpoints(path, keep=2) as folder:
        for step in STEPS:
            state = jax.block_until_ready(state_of(step))
            began = time.monotonic()
            folder.save(step, state, {"step": step})
            found["returned"].append(time.monotonic() - began)
            found["in_background"].append(not (Path(path) / str(step)).exists())
            jax.block_until_ready(train(state))  # its memory is used again
            folder.wait()
            found["written"].append(time.monotonic() - began)
        for step in STEPS:
            restored, meta = folder.restore(step, state_of(0))
            kernel = np.asarray(restored.student.params["kernel"])
            np.testing.assert_array_equal(kernel, noise * np.float32(step))
            assert meta["step"] == int(restored.step) == step
    distributed.tell("RESULT " + json.dumps(found))


main(sys.argv[1])
