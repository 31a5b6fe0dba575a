"""Planning on paper: counts against XLA and against arithmetic, and what it says of bad plans."""

import itertools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from experiments import tiny
from PIL import Image

from ard_jax import config, models, plan
from ard_jax.models.canonical_conv import exported_convolutions
from ard_jax.plan import count as counting
from ard_jax.plan import hardware, hlo, program, report, time
from ard_jax.plan.hardware import parse


def counted(function, *arguments):
    return counting.count(jax.make_jaxpr(function)(*arguments))


def conv(x, w, stride=1, pad=1):
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


X, W = jnp.zeros((4, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))
# 3 taps on 8 pixels, padded by 1: 22 of the 24 products along an axis meet a pixel.
FORWARD = 2 * 4 * 5 * 3 * 22 * 22


def test_convolution_by_hand():
    assert counted(conv, X, W).matrix_flops == FORWARD
    assert counted(lambda x, w: conv(x, w, 1, 0), X, W).matrix_flops == 2 * 4 * 5 * 3 * 18 * 18


@pytest.mark.parametrize("stride", [1, 2])
def test_both_gradients_of_a_convolution_cost_a_forward_pass_each(stride):
    def loss(x, w):
        return jnp.sum(conv(x, w, stride) ** 2)

    forward = counted(lambda x, w: conv(x, w, stride), X, W).matrix_flops
    assert counted(jax.grad(loss, (0, 1)), X, W).matrix_flops == 3 * forward
    # The kernel's gradient is not asked for, so it is not counted.
    assert counted(jax.grad(loss), X, W).matrix_flops == 2 * forward


def test_loops_count_at_their_length_and_conditionals_as_the_dearest_branch():
    square = jnp.zeros((16, 16))

    def loop(m):
        return jax.lax.scan(lambda c, _: (c @ m, None), m, None, length=7)[0]

    once = 2 * 16**3
    found = counted(loop, square)
    assert (found.matrix_flops, found.loop_flops) == (7 * once, 7 * once)
    either = counted(lambda p, m: jax.lax.cond(p, lambda: m @ m @ m, lambda: m @ m), True, square)
    assert either.matrix_flops == 2 * once
    # XLA's own analysis counts the body of a loop once: why this one exists.
    compiled = jax.jit(loop).lower(square).compile().cost_analysis()["flops"]
    assert compiled < 2 * once


def test_what_xla_merges_or_drops_is_not_counted():
    square = jnp.zeros((16, 16))
    found = counted(lambda m: (m @ m + jax.jit(jnp.matmul)(m, m), (m.T @ m)[:0])[0], square)
    assert found.matrix_flops == 2 * 16**3


@pytest.fixture(scope="module")
def network():
    net = models.create("small_resnet", 10, (16, 16, 3), widths=(8, 16), blocks=1)
    variables = jax.eval_shape(net.init, jax.random.key(0))
    return net, variables, jax.ShapeDtypeStruct((32, 16, 16, 3), jnp.float32)


def test_a_training_step_agrees_with_xla(network, optimised_programs):
    net, variables, images = network

    def loss(params, stats, x):
        z, stats = net.apply({"params": params, "batch_stats": stats}, x, True)
        return jnp.mean(z**2), stats

    arguments = (variables["params"], variables["batch_stats"], images)
    step = jax.grad(loss, has_aux=True)
    with exported_convolutions(
        "stock"
    ):  # XLA counts a loop's body once, and ours on CPU have loops
        found, program = counted(step, *arguments), jax.jit(step).lower(*arguments).compile()
    cost, memory = program.cost_analysis(), program.memory_analysis()
    total = found.matrix_flops + found.other_flops
    # XLA:CPU computes some elementwise work twice, in two fusions: more, but by less than 5 %.
    assert 0.95 < total / cost["flops"] <= 1.0
    # An estimate, as the report says: other orders and fusions.
    assert 0.5 < found.temporary / memory.temp_size_in_bytes < 1.5
    assert 0.5 < found.traffic / cost["bytes accessed"] < 1.5


def test_device_names():
    asked = {
        "v4-32": (16, 4), "v5p-8": (4, 1), "v5e-16": (16, 4), "v5litepod-8": (8, 1), "v6e-256": (256, 64),
        "h100-8": (8, 1), "a100-16": (16, 2), "8": (8, 1), "cpu-2": (2, 1),
    }  # fmt: skip
    assert {n: (parse(n).devices, parse(n).hosts) for n in asked} == asked
    assert "32 TensorCores = 16 chips" in parse("v4-32").explanation
    for wrong, told in {"v4-33": "v4-34", "v4": "a kind and a number", "b7-8": "kinds are"}.items():
        with pytest.raises(ValueError, match=told):
            parse(wrong)
    for kind, known in hardware.ACCELERATORS.items():
        assert known.source.startswith("https://"), kind


def test_assumptions():
    a = time.assumptions(parse("h100-16"), "bfloat16", ["utilisation=0.5"])
    assert (a.flops, a.utilisation) == (989e12, 0.5)
    assert a.link == 50e9  # two hosts: the network, not NVLink
    assert time.assumptions(parse("8"), "float32", []).flops is None
    for wrong in ("speed=3", "flops", "flops=0", "flops=fast"):
        with pytest.raises(ValueError, match="NAME=NUMBER"):
            time.assumptions(parse("8"), "float32", [wrong])


def test_step_time_by_hand():
    count = counting.Count(items=[(1e9, 1e3, 10), (0.0, 2e6, 5), (1.0, 1.0, 100)])
    a = time.Assumptions(1e12, 1e9, 1e9, None, 0.5, 0.5, 0.5, kernel=1e-6, latency=1e-3)
    found = time.step_time(count, 10**6, 3, parse("4"), a)
    assert found["compute"] == pytest.approx(10 * 2e-3 + 5 * 4e-3 + 100 * 1e-6)
    assert found["communication"] == pytest.approx(2 * 3 / 4 * 1e6 / 5e8 + 3 * 1e-3)
    assert time.step_time(count, 0, 0, parse("4"), time.Assumptions()) is None


HLO = """
%body.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %r = f32[4]{0} all-reduce(%x), to_apply=%add
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %g = (f32[8,8]{1,0}, bf16[3]{0}) all-reduce-start(%a, %b), to_apply=%add
  %d = (f32[8,8]{1,0}, bf16[3]{0}) all-reduce-done(%g)
  %w = (s32[], f32[4]) while(%t), condition=%c, body=%body.1, backend_config={"known_trip_count":{"n":"10"}}
}
"""


def test_collectives_of_a_program_text():
    found = hlo.collectives(HLO)
    assert found == {"all-reduce": {"count": 11, "small": 10, "bytes": 8 * 8 * 4 + 3 * 2 + 10 * 16}}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return config.build(tiny(tmp_path_factory.mktemp("plan")))


def test_the_attacks_share_does_not_depend_on_the_backend(experiment):
    # On CPU kernel gradients are loops of their own, which are not the attack.
    shares = [
        [phase["loop_share"] for phase in plan.make(experiment, d, [], compiled=False)["phases"]]
        for d in ("v5e-1", "cpu-1")
    ]
    assert shares[0] == pytest.approx(shares[1]) and 0.1 < shares[0][-1] < 0.9


def test_paper_plan_is_arithmetic_and_allocates_nothing(experiment):
    before = len(jax.live_arrays())
    made = plan.make(experiment, "v5e-4", [], compiled=False)
    assert len(jax.live_arrays()) <= before + 2
    student, robust = (
        next(n for n in made["networks"] if n["role"] == role) for role in ("student", "robust")
    )
    trained = student["parameters"] + robust["parameters"]
    assert made["collectives"]["gradients"] == 4 * trained
    parts = made["memory"]["parts"]
    assert parts["robust: optimiser"] == 4 * robust["parameters"]
    assert made["memory"]["fits"] and made["memory"]["compiled"] is None
    forward = {n["role"]: n["forward_flops"] for n in made["networks"]}
    # CIARD: S(x), S(x') forward and backward; three attack steps of forward and input gradient; R(x')
    # forward and backward; N twice. Images have no gradient: the first layer's is left out.
    expected = (6 + 2 * 3) * forward["student"] + 3 * forward["robust"] + 2 * forward["clean"]
    found = made["phases"][-1]["flops_per_step"] / experiment.batch_size
    assert 0.9 < found / expected <= 1.0
    assert [p["title"] for p in made["phases"]] == ["robust teacher", "clean teacher", "student"]
    shown = report.text(made)
    for told in ("ASSUMED", "counted", "robust: optimiser", "4 chips"):
        assert told in shown


def test_number_of_devices_divides_the_work(experiment):
    one, four = (plan.make(experiment, n, [], compiled=False)["phases"][-1] for n in ("1", "4"))
    # Updates of parameters and statistics are done by every device.
    assert four["flops_per_step"] == pytest.approx(one["flops_per_step"], rel=0.01)
    assert four["traffic_per_device"] < 0.5 * one["traffic_per_device"]
    assert one["step_time"] is None


def test_images_of_a_folder_are_not_decoded_for_their_shape(tmp_path, monkeypatch):
    monkeypatch.setenv("ARD_CACHE_DIR", str(tmp_path / "cache"))
    for split, name in itertools.product(("train", "test"), "ab"):
        path = tmp_path / "set" / split / name / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (9, 7)).save(path)
        path.write_bytes(path.read_bytes()[:50])  # a header and nothing to decode
    raw = tiny(tmp_path, data__name="folder", data__dir=str(tmp_path / "set"))
    raw.update(select_on="test")
    raw.data.update(holdout=0.0, image_size=32)
    splits = program.shapes_of_data(config.build(raw))
    assert splits.train.image_shape == (32, 32, 3) and len(splits.train) == 2
    assert len(program.shapes_of_data(config.build(tiny(tmp_path))).test) > 0  # digits: in memory


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_groups_of_batchnorm_keep_their_size(tmp_path, groups):
    grouped = config.build(tiny(tmp_path, bn_groups=groups))
    made = plan.make(grouped, "v4-8", [], compiled=False)  # 4 chips
    assert made["phases"][-1]["flops_per_step"] > 0


def test_batch_that_does_not_divide(experiment):
    with pytest.raises(ValueError, match=r"12 chips.*batch_size=256.*use 252"):
        plan.make(experiment, "v4-24", [], compiled=False)


@pytest.mark.slow
def test_memory_that_does_not_suffice(experiment, capsys):
    code = plan.run(experiment, "v5e-1", ["memory=4e6"], compiled=False)
    shown = capsys.readouterr().out
    assert code == 1 and "DOES NOT FIT" in shown and "devices or more" in shown
    assert plan.run(experiment, "v5e-1", ["memory=1e4"], compiled=False) == 1
    assert "alone do not fit" in capsys.readouterr().out


@pytest.mark.slow
def test_compiled_plan_reduces_the_gradients_of_what_is_trained(experiment, optimised_programs):
    made = plan.make(experiment, "v4-8", [])
    found = made["collectives"]
    assert set(found["compiled"]) == {"all-reduce"}  # nothing gathers images or activations
    # The student's two passes may be reduced one by one; sums of BatchNorm backward passes are small.
    student = 4 * made["networks"][0]["parameters"]
    least = found["gradients"] + found["statistics"]
    assert least <= found["bytes"] <= 1.1 * (least + student)
    memory = made["memory"]
    # The program's arguments are the state, one batch, the step's number and the key.
    data = memory["parts"]["training set and soft labels"]
    assert memory["compiled"]["arguments"] == memory["state"] - data + 4 + 8
    assert 0.4 < memory["step_counted"] / memory["step"] < 2.0


@pytest.mark.slow
def test_command_line(tmp_path):
    command = [
        sys.executable, "-m", "ard_jax.main", "--mode=plan", "--config=configs/ciard_cifar10.py:cpu",
        "--nocompile", f"--plan_json={tmp_path / 'plan.json'}",
    ]  # fmt: skip
    done = subprocess.run([*command, "--devices=v4-16"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "16 TensorCores = 8 chips" in done.stdout
    assert json.loads((tmp_path / "plan.json").read_text())["devices"]["hosts"] == 2
    done = subprocess.run([*command, "--devices=v9-16"], capture_output=True, text=True)
    assert done.returncode == 2 and "ERROR: --devices=v9-16" in done.stderr
