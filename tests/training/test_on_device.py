"""Training data kept on device, and a host that runs ahead."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_steps import collectives
from experiments import tiny

from ard_jax.attacks import make as make_attack
from ard_jax.cli import train
from ard_jax.config import build, parse
from ard_jax.data.base import ArrayDataset
from ard_jax.evaluation import evaluator as evaluator_lib
from ard_jax.io.metric_writer import read_metrics
from ard_jax.methods import Method
from ard_jax.models import described
from ard_jax.runtime import compilation, preemption, sharding
from ard_jax.state import NetState, RunState
from ard_jax.training import loop, step_runner, train_log, train_step

SIZE, BATCH = 23, 4  # 5 full batches and one of 3 images


def dataset(size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, 4, 4, 1), np.uint8)
    labels = np.arange(size, dtype=np.int32) % 3
    return ArrayDataset(images, labels, ("a", "b", "c"), "random", "train")


def averaging_method(nan_at=-1, columns=()):
    """Parameters that hold what the method saw: order, rows, labels, columns, random numbers."""

    def step(state, batch, key):
        seen = jnp.mean(batch["image"]) + jnp.sum(batch["index"] * batch["label"])
        seen += sum(jnp.mean(batch[name]) for name in columns) + jax.random.uniform(key)
        w = 0.7 * state.student.params["w"] + seen
        w = jnp.where(state.step == nan_at, jnp.nan, w)
        student = NetState({"w": w}, {}, None)
        return state.replace(student=student), {"loss": w, "seen": seen}

    return Method(lambda v, t: None, step, columns)


def initial():
    return RunState(
        jnp.zeros((), jnp.int32), NetState({"w": jnp.zeros(())}, {}, None), {}, None, {}
    )


def phase(folder, method=None, last_batch="keep", **options):
    spe = -(-SIZE // BATCH) if last_batch == "keep" else SIZE // BATCH
    values = {
        "title": "student", "workdir": folder, "method": method or averaging_method(),
        "initial": initial, "train": dataset(), "epochs": 3, "batch_size": BATCH,
        "last_batch": last_batch, "step": train_step.StepConfig(seed=0, steps_per_epoch=spe, augment="none"),
        "evaluate": lambda state: {"student": {"clean": float(state.step)}},
        "score": lambda scores: scores["student"]["clean"], "split": "test",
        "eval_epochs": frozenset({3}), "save_every": 5, "config": {}, "experiment": {},
        "mesh": sharding.make_mesh(1), "log_every": 4, "tensorboard": False,
    }  # fmt: skip
    return loop.TrainingRun(**values | options)


def trained(folder, **options):
    """(final parameter, train records without times) of a whole run."""
    result = loop.fit(phase(folder, **options))
    records = [r for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "train"]
    for record in records:
        del record["time"], record["images_per_second"]
    return float(result.last.student.params["w"]), records


@pytest.mark.parametrize("last_batch", ["keep", "drop"])
def test_same_run_whatever_is_on_device(tmp_path, last_batch):
    def run(name, **options):
        return trained(tmp_path / name, last_batch=last_batch, **options)

    expected = run("off", on_device="off")
    compilation.TRACES.clear()
    assert run("on") == expected
    assert compilation.TRACES["student train_step"] == 1 + (last_batch == "keep")


def test_the_loop_of_accelerators_trains_the_same(tmp_path, monkeypatch):
    expected = trained(tmp_path / "alone")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert trained(tmp_path / "loop") == expected


def test_columns_go_with_their_images(tmp_path):
    method = averaging_method(columns=("soft",))
    columns = {"soft": np.random.default_rng(1).normal(size=(SIZE, 3)).astype(np.float32)}
    runs = [
        trained(tmp_path / setting, method=method, columns=columns, on_device=setting)
        for setting in ("on", "off")
    ]
    assert runs[0] == runs[1] != trained(tmp_path / "without")


def test_a_run_stopped_within_an_epoch_continues_from_the_other_place(tmp_path, monkeypatch):
    expected, _ = trained(tmp_path / "undisturbed")
    asked = []
    monkeypatch.setattr(preemption, "requested", lambda: asked.append(0) or len(asked) > 7)
    with pytest.raises(preemption.PreemptedError):
        trained(tmp_path / "stopped", on_device="off")
    monkeypatch.undo()
    (saved,) = (int(p.name) for p in (tmp_path / "stopped" / "last").iterdir())
    assert saved % 6
    assert trained(tmp_path / "stopped", on_device="on")[0] == expected


def test_nan_is_found_and_names_its_own_step(tmp_path):
    method = averaging_method(nan_at=8)
    with pytest.raises(loop.TrainingDivergedError, match="loss.*not finite at step 9 of 18"):
        trained(tmp_path, method=method)
    assert not list((tmp_path / "last").glob("[0-9]*"))


class Unfinished:
    """A metric that the device is still working on."""

    shape, reads = (), 0

    def is_ready(self):
        return False

    def __array__(self, dtype=None, copy=None):
        Unfinished.reads += 1
        return np.zeros((), np.float32)


@pytest.mark.parametrize("ahead", [1, 8])
def test_the_host_runs_ahead_so_far_and_no_further(tmp_path, ahead):
    class Silent:
        def write(self, record): ...

        def update(self, n, fields): ...

    log = train_log.TrainLog(phase(tmp_path), Silent(), Silent(), None, single=True)
    log.ahead, Unfinished.reads = ahead, 0
    for i in range(20):
        log.add(i, {"loss": Unfinished()}, BATCH)
        assert i + 1 - Unfinished.reads == min(ahead, i + 1)
    log.read_all()
    assert Unfinished.reads == 20


def compiled_text(devices, size=1000):
    examples = {
        "image": jax.ShapeDtypeStruct((size, 4, 4, 1), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    index = jax.ShapeDtypeStruct((8,), jnp.int32)
    program = train_step.indexed_program(
        averaging_method(), train_step.StepConfig(0, 5, "crop", pad=1), sharding.make_mesh(devices)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    return program.lower(jax.eval_shape(initial), examples, index, key).compile().as_text()


def test_each_device_takes_its_rows_of_its_own_copy():
    text = compiled_text(2)
    assert {c.kind for c in collectives(text)} == {"all-reduce"}
    # Nothing but the means of the method is summed over the devices: no images, no rows.
    assert all(shape == () for c in collectives(text) for shape in c.shapes)
    # An argument, of which a device has all; not a constant of the program.
    assert "u8[1000,4,4,1]" in text.split("entry_computation_layout", 1)[1].split("\n")[0]
    assert not any("[1000" in line and " constant(" in line for line in text.splitlines())


def test_auto_keeps_small_data_in_memory_of_one_process(monkeypatch):
    small = dataset()
    assert step_runner.on_device("auto", small) and step_runner.on_device("on", small)
    assert not step_runner.on_device("off", small)
    monkeypatch.setattr(step_runner, "MAX_BYTES", small.images.nbytes - 1)
    assert not step_runner.on_device("auto", small) and step_runner.on_device("on", small)
    monkeypatch.undo()
    monkeypatch.setattr(step_runner, "process", lambda: (0, 2))
    assert not step_runner.on_device("auto", small)


def test_a_setting_that_cannot_be_is_told(tmp_path):
    raw = tiny(tmp_path, "natural", data__on_device="yes")
    with pytest.raises(
        parse.ConfigError, match="config.data.on_device='yes': choose one of 'auto'"
    ):
        parse.to_experiment(raw)


def test_compile_time_is_logged(tmp_path, capsys):
    loop.fit(phase(tmp_path))
    records = read_metrics(tmp_path / "metrics.jsonl")
    events = [r for r in records if r["kind"] == "event" and r["event"] == "compiled"]
    assert [e["program"] for e in events] == [
        "student train_step", "student train_step on the last 3 images of an epoch"
    ]  # fmt: skip
    assert all(0 < e["trace_seconds"] < e["compile_seconds"] for e in events)
    # Tests share a cache of compiled programs, which may hold this one.
    how = r"student train_step: (compiled|read from the compilation cache) in"
    assert re.search(how, capsys.readouterr().err)
    found = train_log.of_training(records, 10.0, 69, SIZE)
    assert found["compile_seconds"] == pytest.approx(sum(e["compile_seconds"] for e in events))
    sums = {name: sum(e[f"cache_{name}"] for e in events) for name in ("hits", "misses")}
    assert found["compilation_cache"] == sums
    assert found["images_per_second"] == 6.9


def test_what_was_read_from_the_cache_is_said_so():
    found = compilation.Compilation("p", trace_seconds=1.0, backend_seconds=0.5, requests=1, hits=1)
    assert found.describe() == "p: read from the compilation cache in 1.5 s"
    assert found.record()["cache_hits"] == 1 and found.record()["cache_misses"] == 0


def test_evaluation_gives_the_same_however_far_it_runs_ahead(monkeypatch):
    def apply(variables, x):
        return x.reshape(len(x), -1) @ variables

    data, flags = dataset(30), []
    variables = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    evaluator = evaluator_lib.Evaluator("net", apply, mesh=sharding.make_mesh(1), batch_size=8)
    specs = {name: make_attack(name, eps=0.2) for name in ("fgsm", "pgd_sat")}
    for count in (0, 2, 100):
        monkeypatch.setattr(evaluator_lib, "_IN_FLIGHT", count)
        flags.append(evaluator.run(variables, data, specs, watch={"o": (evaluator, -variables)}))
    for other in flags[1:]:
        jax.tree.map(np.testing.assert_array_equal, flags[0].predicted, other.predicted)
        own, seen = flags[0].others["o"].predicted, other.others["o"].predicted
        jax.tree.map(np.testing.assert_array_equal, own, seen)
    clean = np.argmax(data.images.reshape(30, -1).astype(np.float32) @ variables, -1)
    np.testing.assert_array_equal(flags[1].predicted["clean"], clean)


def test_both_spellings_of_bfloat16_are_one_run_and_evaluated_in_float32(tmp_path):
    built = [
        parse.to_experiment(tiny(tmp_path, "natural", precision=p)) for p in ("bf16", "bfloat16")
    ]
    assert built[0] == built[1] and built[0].precision == "bfloat16"
    assert parse.to_experiment(tiny(tmp_path, "natural", precision="f32")).precision == "float32"
    json.dumps(parse.to_dict(built[0]))
    splits = build.load_data(built[0].data)
    bundle, net, evaluator, *_ = train._student(built[0], splits, sharding.make_mesh(1))
    variables = jax.eval_shape(bundle.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    assert "bf16" not in str(jax.make_jaxpr(evaluator.apply)(variables, images))
    trains = jax.make_jaxpr(lambda v, x: bundle.apply(v, x, True)[0])(variables, images)
    assert "bf16" in str(trains)
    identity = [build.comparable(e, net, splits) for e in built]
    assert identity[0] == identity[1]
    assert described.in_float32(net).image_shape == (8, 8, 1)
