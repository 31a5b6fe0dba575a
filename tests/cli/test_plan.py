"""Planning on paper: FLOPs against arithmetic and the compiled program, and what it says of bad plans."""

import itertools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from experiments import tiny
from PIL import Image

from ard_jax import models
from ard_jax.cli import plan, plan_hardware
from ard_jax.config import parse
from ard_jax.convolutions.canonical_conv import canonical_conv, exported_convolutions


def counted(function, *arguments):
    with exported_convolutions("stock"):
        return plan.cost(jax.jit(function).trace(*arguments))


def conv_flops(size, stride, inputs, outputs, taps=3):
    """Of one image: a multiplication and an addition for each pixel that a tap meets."""
    # Of 3 taps, padded by 1, one misses at both edges; with stride 2 only at one.
    along = {1: 3 * size - 2, 2: 3 * size // 2 - 1}[stride] if taps == 3 else size // stride
    return 2 * inputs * outputs * along**2


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_each_of_its_gradients_cost_the_same(stride):
    def conv(x, w):
        layout = ("NHWC", "HWIO", "NHWC")
        pads = ((1, 1), (1, 1))
        return canonical_conv(x, w, (stride, stride), pads, dimension_numbers=layout)

    x, w = jnp.zeros((4, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))
    y, forward = conv(x, w), 4 * conv_flops(8, stride, 3, 5)
    assert counted(conv, x, w).flops == forward
    of_images = counted(lambda w, g: jax.vjp(lambda x: conv(x, w), x)[1](g), w, y)
    of_kernel = counted(lambda x, g: jax.vjp(lambda w: conv(x, w), w)[1](g), x, y)
    assert of_images.flops == of_kernel.flops == forward


def residual_flops(widths, blocks, first):
    """Convolutions of a network of stages of two 3x3 convolutions a block, the first after a stem."""
    total, inputs, size = conv_flops(32, 1, 3, first), first, 32
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            total += conv_flops(size, stride, inputs, width)
            if inputs != width:
                total += conv_flops(size, stride, inputs, width, taps=1)
            size //= stride
            total += conv_flops(size, 1, width, width)
            inputs = width
    return total


@pytest.mark.parametrize(
    ("name", "stages", "billions"),
    [
        ("resnet18", ((64, 128, 256, 512), 2, 64), 0.96),
        ("wrn_34_10", ((160, 320, 640), 5, 16), 12.1),
    ],
)
def test_forward_and_backward_passes_of_networks(name, stages, billions):
    net = models.create(name, 10, (32, 32, 3))
    variables = jax.eval_shape(net.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def logits(variables, image):
        return net.apply(variables, image, False)[0].sum()

    forward = residual_flops(*stages)
    assert forward / 1e9 == pytest.approx(billions, rel=0.01)
    # The rest is BatchNorm, ReLU and sums: 0.4 % of ResNet-18, 0.2 % of WRN-34-10.
    assert 1.0 < counted(logits, variables, image).flops / forward < 1.005
    assert 2.0 < counted(jax.grad(logits, 1), variables, image).flops / forward < 2.01


def test_loops_count_at_their_length_and_conditionals_as_the_dearest_branch():
    square, once = jnp.zeros((16, 16)), 2 * 16**3

    def loop(m, inside=lambda c, m: c @ m):
        return jax.lax.scan(lambda c, _: (inside(c, m), None), m, None, length=7)[0]

    found = counted(loop, square)
    assert found.flops == pytest.approx(7 * once, rel=1e-3)  # and the loop's own counter
    assert found.loop_flops == 7 * once
    nested = counted(lambda m: loop(m, lambda c, _: jax.jit(loop)(c)) @ m, square)
    assert nested.flops == pytest.approx(50 * once, rel=1e-3)
    assert nested.loop_flops == pytest.approx(49 * once, rel=1e-3)
    assert 7 < found.accessed / counted(jnp.matmul, square, square).accessed < 8
    either = counted(lambda p, m: jax.lax.cond(p, lambda: m @ m @ m, lambda: m @ m), True, square)
    assert either.flops == pytest.approx(2 * once, rel=1e-3)


def test_a_training_step_agrees_with_the_compiled_one(optimised_programs):
    net = models.create("small_resnet", 10, (16, 16, 3), widths=(8, 16), blocks=1)
    variables = jax.eval_shape(net.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((32, 16, 16, 3), jnp.float32)

    def loss(params, stats, x):
        z, stats = net.apply({"params": params, "batch_stats": stats}, x, True)
        return jnp.mean(z**2), stats

    arguments = (variables["params"], variables["batch_stats"], images)
    step = jax.grad(loss, has_aux=True)
    found = counted(step, *arguments)
    with exported_convolutions("stock"):
        compiled = jax.jit(step).lower(*arguments).compile().cost_analysis()
    # XLA:CPU computes some elementwise work twice, in two fusions: more, but by less than 5 %.
    assert 0.95 < found.flops / compiled["flops"] <= 1.0
    assert 1.5 < found.accessed / compiled["bytes accessed"] < 2.5  # `Assumptions.fusion`


def test_device_names():
    asked = {
        "v4-32": (16, 4), "v5p-8": (4, 1), "v5e-16": (16, 4), "v5litepod-8": (8, 1), "v6e-256": (256, 64),
        "h100-8": (8, 1), "a100-16": (16, 2), "8": (8, 1), "cpu-2": (2, 1),
    }  # fmt: skip
    assert {
        n: (plan_hardware.parse(n).devices, plan_hardware.parse(n).hosts) for n in asked
    } == asked
    assert "32 TensorCores = 16 chips" in plan_hardware.parse("v4-32").explanation
    for wrong, told in {
        "v4-33": "v4-34", "v4": "a kind and a number", "b7-8": "kinds are", "9" * 12: "at most 100000",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=told):
            plan_hardware.parse(wrong)
    for kind, known in plan_hardware.ACCELERATORS.items():
        assert known.source.startswith("https://"), kind


def test_assumptions():
    a = plan_hardware.assumptions(plan_hardware.parse("h100-16"), "bfloat16", ["utilisation=0.5"])
    assert (a.flops, a.utilisation) == (989e12, 0.5)
    assert a.link == 50e9  # two hosts: the network, not NVLink
    assert plan_hardware.assumptions(plan_hardware.parse("8"), "float32", []).flops is None
    for wrong in ("speed=3", "flops", "flops=0", "flops=fast"):
        with pytest.raises(ValueError, match="NAME=NUMBER"):
            plan_hardware.assumptions(plan_hardware.parse("8"), "float32", [wrong])
    for given, told in {
        ("utilisation=50",): "utilisation=50: a share of the peak, so at most 1",
        ("flops=2e14", "flops=1e14"): "flops=1e14: flops is given twice",
    }.items():
        with pytest.raises(ValueError, match=told):
            plan_hardware.assumptions(plan_hardware.parse("8"), "float32", list(given))


def test_a_folder_is_no_file_for_the_plan(tmp_path):
    with pytest.raises(ValueError, match=r"--plan_json=.* is a folder; give a file, such as"):
        plan.run(parse.to_experiment(tiny(tmp_path)), "2", [], out=str(tmp_path))


def test_step_time_by_hand():
    a = plan_hardware.Assumptions(1e12, 1e9, 1e9, None, 0.5, 0.5, 0.5, fusion=2.0, latency=1e-3)
    found = plan_hardware.step_time(1e10, 4e6, 10**6, 3, plan_hardware.parse("4"), a)
    assert found["compute"] == pytest.approx(2e-2)  # FLOPs; memory takes less
    assert found["communication"] == pytest.approx(2 * 3 / 4 * 1e6 / 5e8 + 3 * 1e-3)
    assert found["total"] == found["compute"] + found["communication"]
    slow = plan_hardware.step_time(1e10, 4e8, 0, 0, plan_hardware.parse("1"), a)
    assert slow == {"compute": 0.8, "communication": 0.0, "total": 0.8}
    assert (
        plan_hardware.step_time(
            1e10, 0.0, 0, 0, plan_hardware.parse("4"), plan_hardware.Assumptions()
        )
        is None
    )


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return parse.to_experiment(tiny(tmp_path_factory.mktemp("plan")))


@pytest.fixture(scope="module")
def paper(experiment):
    """The plan for four chips, nothing compiled."""
    return plan.make(experiment, "v5e-4", [], compiled=False)


def test_the_work_does_not_depend_on_the_backend(experiment, paper):
    # On CPU kernel gradients are loops of their own, and small networks are attacked by tiles.
    on_cpu = plan.make(experiment, "cpu-4", [], compiled=False)["phases"]
    for one, other in zip(paper["phases"], on_cpu, strict=True):
        assert one["flops_per_step"] == pytest.approx(other["flops_per_step"])
        assert one["loop_share"] == pytest.approx(other["loop_share"])
    assert 0.1 < on_cpu[-1]["loop_share"] < 0.9


def test_paper_plan_is_arithmetic(experiment, paper):
    by_role = {n["role"]: n for n in paper["networks"]}
    student, robust = by_role["student"], by_role["robust"]
    trained = student["parameters"] + robust["parameters"]
    assert paper["collectives"]["gradients"] == 4 * trained
    assert paper["memory"]["parts"]["robust: optimiser"] == 4 * robust["parameters"]
    # Without the compiled step its memory is not known: only what does not fit for sure is told.
    assert paper["memory"]["fits"] is None and paper["memory"]["step"] is None
    assert [p["title"] for p in paper["phases"]] == ["robust teacher", "clean teacher", "student"]
    forward = {role: n["forward_flops"] for role, n in by_role.items()}
    # CIARD: S(x), S(x') forward and backward; three attack steps of forward and input gradient; R(x')
    # forward and backward; N twice. Networks of 4 channels are a fifth elementwise work and updates.
    expected = (6 + 2 * 3) * forward["student"] + 3 * forward["robust"] + 2 * forward["clean"]
    found = paper["phases"][-1]["flops_per_step"] / experiment.batch_size
    assert 0.9 < found / expected < 1.2
    shown = plan.text(paper)
    for told in ("ASSUMED", "counted", "robust: optimiser", "4 chips", "unknown without --compile"):
        assert told in shown


def test_number_of_devices_divides_the_work_and_nothing_is_allocated(experiment, paper):
    before = len(jax.live_arrays())
    one, four = plan.make(experiment, "1", [], compiled=False)["phases"][-1], paper["phases"][-1]
    assert len(jax.live_arrays()) <= before + 2
    # Updates of parameters and statistics are done by every device.
    assert four["flops_per_step"] == pytest.approx(one["flops_per_step"], rel=0.01)
    assert four["traffic_per_device"] < 0.5 * one["traffic_per_device"]
    assert one["step_time"] is None and four["step_time"]["communication"] > 0


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
    splits = plan.shapes_of_data(parse.to_experiment(raw))
    assert splits.train.image_shape == (32, 32, 3) and len(splits.train) == 2
    assert (
        len(plan.shapes_of_data(parse.to_experiment(tiny(tmp_path))).test) > 0
    )  # digits: in memory


@pytest.mark.parametrize("groups", [2, 8])
def test_groups_of_batchnorm_keep_their_size(tmp_path, groups):
    grouped = parse.to_experiment(tiny(tmp_path, bn_groups=groups))
    made = plan.make(grouped, "v4-8", [], compiled=False)  # 4 chips
    assert made["phases"][-1]["flops_per_step"] > 0


def test_batch_that_does_not_divide(experiment):
    with pytest.raises(ValueError, match=r"12 chips.*batch_size=256.*use 252"):
        plan.make(experiment, "v4-24", [], compiled=False)


def test_state_alone_that_does_not_fit(experiment, capsys):
    assert plan.run(experiment, "v5e-1", ["memory=1e4"], compiled=False) == 1
    assert "alone do not fit" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_of_the_compiled_step(experiment, optimised_programs, capsys):
    made = plan.make(experiment, "v4-8", [])
    memory = made["memory"]
    assert memory["fits"] and memory["total"] == memory["state"] + memory["step"]
    # The program's arguments are the state, one batch, the step's number and the key.
    data = memory["parts"]["training set and soft labels"]
    assert memory["compiled"]["arguments"] == memory["state"] - data + 4 + 8
    assert memory["step"] > made["collectives"]["gradients"]
    code = plan.run(experiment, "v4-8", [f"memory={memory['total'] - 1}"])
    shown = capsys.readouterr().out
    assert code == 1 and "DOES NOT FIT" in shown and "devices or more" in shown


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


def test_a_split_optimiser_and_parts_of_a_batch(tmp_path):
    """A quarter of the optimiser on each of four devices; the parts are the work of the batch."""
    less = {"run__shard_optimizer": True, "accumulate": 2}
    one, other = (
        plan.make(parse.to_experiment(tiny(tmp_path, "sat", **c)), "v5e-4", [], compiled=False)
        for c in ({}, less)
    )
    name = "student: optimiser"
    assert one["memory"]["parts"][name] // 4 == other["memory"]["parts"][name]
    work = [p["phases"][-1]["flops_per_step"] for p in (one, other)]
    assert work[1] == pytest.approx(work[0], rel=0.1)
    odd = tiny(tmp_path, "sat", batch_size=250, **less)
    with pytest.raises(ValueError, match="does not divide by 8 shards"):
        plan.make(parse.to_experiment(odd), "v5e-4", [])
