"""Exported PyTorch files: what is in them without PyTorch, and that its networks are ours with it."""

import ast
import contextlib
import importlib.util
import json
import pickletools
import subprocess
import sys
import zipfile

import exported_networks
import jax
import numpy as np
import pytest
from float64 import in_float64

from ard_jax import models
from ard_jax.interop import files, torch_export, torch_names

SMALL = ("small_cnn", {"widths": (3, 5)}, (9, 8, 1), 3)
# (model, options, image shape, classes): every builder, form and option of the exported model.py.
ARCHITECTURES = [
    SMALL,
    ("small_resnet", {"widths": (4, 6, 8), "blocks": 2, "stem_stride": 2}, (33, 32, 3), 7),
    ("resnet20", {}, (32, 32, 3), 10),
    ("resnet20", {"shortcut": "A"}, (32, 32, 3), 10),
    ("wrn_10_2", {}, (32, 32, 3), 10),
    ("wrn_16_1", {}, (32, 32, 3), 10),
    ("dm_wrn_10_2", {}, (32, 32, 3), 100),
]
LARGE = [
    ("resnet18", {}, (32, 32, 3), 10),
    ("mobilenet_v2", {}, (32, 32, 3), 10),
    ("resnet32", {}, (32, 32, 3), 10),
    ("resnet44", {}, (32, 32, 3), 10),
    ("resnet56", {"shortcut": "A"}, (32, 32, 3), 10),
    ("preact_resnet18", {}, (64, 64, 3), 200),
    ("preact_resnet18", {"form": "robustbench"}, (32, 32, 3), 10),
    ("preact_resnet18", {"form": "deepmind"}, (32, 32, 3), 10),
    ("preact_resnet34", {}, (32, 32, 3), 10),
    ("wrn_34_10", {}, (32, 32, 3), 10),
    ("dm_wrn_28_10", {}, (32, 32, 3), 10),
    ("resnet18", {"form": "imagenet"}, (64, 64, 3), 10),
    ("resnet34", {}, (32, 32, 3), 10),
    ("resnet50", {}, (64, 64, 3), 10),
    ("resnet50", {"form": "cifar"}, (32, 32, 3), 10),
    ("wide_resnet50_2", {}, (64, 64, 3), 10),
]
# Of packages beside PyTorch.
PUBLISHED = [
    ("mobilenet_v3_large", {}, (64, 64, 3), 10),
    ("mobilenet_v3_small", {}, (64, 64, 3), 10),
    ("efficientnet_b0", {}, (64, 64, 3), 10),
    ("shufflenet_v2", {}, (64, 64, 1), 10),
    ("convnext_tiny", {}, (64, 64, 3), 10),
    ("convnext_base", {"stem": "conv"}, (64, 64, 3), 10),
    ("vit_tiny", {"patch": 4}, (32, 32, 1), 10),
    ("vit_tiny", {"patch": 4, "stem": "conv"}, (32, 32, 2), 10),
    ("vit_base", {"stem": "conv"}, (64, 64, 3), 10),
]
GLOBALS = {"torch._utils _rebuild_tensor_v2", "torch FloatStorage", "collections OrderedDict"}


def trained(model, kwargs, shape, classes, normalization=None):
    """(bundle, variables, description) of an architecture."""
    bundle, variables = exported_networks.make(
        model, num_classes=classes, image_shape=shape, normalization=normalization, **kwargs
    )
    description = {
        "model": model, "kwargs": kwargs, "num_classes": classes, "image_shape": list(shape),
        "class_names": [f"class {i}" for i in range(classes)],
    }  # fmt: skip
    return bundle, variables, description


def load_module(path):
    spec = importlib.util.spec_from_file_location("exported_model", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["exported_model"] = module  # pickling and NamedTuple look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    bundle, variables, description = trained(*SMALL)
    folder = tmp_path_factory.mktemp("torch") / "made"
    return folder, torch_export.export(bundle, variables, folder, description)


def test_the_two_files_of_which_model_py_needs_only_torch(exported):
    folder, paths = exported
    assert paths == [folder / "student.pt", folder / "model.py"]
    assert sorted(p.name for p in folder.iterdir()) == ["model.py", "student.pt"]
    tree = ast.parse(paths[1].read_text())
    standard = set(sys.stdlib_module_names)
    assert imported(tree.body) - standard == {"torch"}
    # Functions of networks that other packages have.
    assert imported(ast.walk(tree)) - standard == {"torch", "torchvision", "timm"}


def imported(nodes):
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


def test_exporting_does_not_import_torch():
    without = "import sys; sys.modules['torch'] = None; from ard_jax.interop import torch_export"
    subprocess.run([sys.executable, "-c", without], check=True)


def test_the_pickle_asks_only_for_what_weights_only_admits(exported):
    with zipfile.ZipFile(exported[1][0]) as archive:
        program = archive.read("student/data.pkl")
    asked = {arg for opcode, arg, _ in pickletools.genops(program) if opcode.name == "GLOBAL"}
    assert asked == GLOBALS
    names = {opcode.name for opcode, _, _ in pickletools.genops(program)}
    assert not names & {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "BUILD"}


def test_arrays_are_stored_plain_and_aligned(exported):
    path = exported[1][0]
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if "/data/" in m.filename]
        assert len(members) == 14  # 12 tensors of the network, mean and std
        for member in members:
            # The local header: 30 bytes, then name and extra field, whose lengths are at 26 and 28.
            name, extra = np.frombuffer(data, "<u2", 2, member.header_offset + 26)
            start = member.header_offset + 30 + int(name) + int(extra)
            assert start % 64 == 0
            assert data[start : start + member.file_size] == archive.read(member)


def test_our_own_reader_reads_it_back(exported):
    bundle, variables, _ = trained(*SMALL)
    contents = files.read(exported[1][0], use_torch=False)
    expected = torch_names.to_torch(bundle, variables)
    found = {n: v for n, v in contents.tensors.items() if not n.startswith("normalization.")}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    assert contents.format == "torch zip" and contents.nested == "state_dict"
    assert json.loads(contents.metadata["description"])["kwargs"] == {"widths": [3, 5]}


def test_the_same_network_gives_the_same_bytes(exported, tmp_path):
    bundle, variables, description = trained(*SMALL)
    again = torch_export.export(bundle, variables, tmp_path, description)
    assert again[0].read_bytes() == exported[1][0].read_bytes()


def test_description_of_another_network(tmp_path):
    bundle, variables, description = trained(*SMALL)
    with pytest.raises(ValueError, match=r"description is of \('resnet18', 3"):
        torch_export.export(bundle, variables, tmp_path / "x", description | {"model": "resnet18"})
    with pytest.raises(ValueError, match="small_cnn is not plain data: .*widths"):
        torch_export.export(
            bundle, variables, tmp_path / "x", description | {"kwargs": {"widths": object()}}
        )
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="reading exported files as their users do")


def test_torch_loads_it_and_nothing_but_data(torch, exported):
    bundle, variables, description = trained(*SMALL)
    for mmap in (False, True):
        file = torch.load(exported[1][0], weights_only=True, mmap=mmap)
        assert set(file) == {"state_dict", "architecture", "class_names", "description"}
        assert file["architecture"] == {
            "model": "small_cnn", "num_classes": 3, "image_shape": [9, 8, 1], "kwargs": {"widths": [3, 5]},
        }  # fmt: skip
        assert file["class_names"] == description["class_names"]
        assert json.loads(file["description"])["model"] == "small_cnn"
        for name, value in torch_names.to_torch(bundle, variables).items():
            np.testing.assert_array_equal(file["state_dict"][name].numpy(), value)
        assert file["state_dict"]["normalization.std"].tolist() == [1.0]


def test_a_file_of_torch_save_loads_too(torch, exported, tmp_path):
    """What users make of it with torch.save is still a file that model.py loads."""
    module = load_module(exported[1][1])
    file = torch.load(exported[1][0], weights_only=True)
    torch.save(file, tmp_path / "again.pt")
    x = torch.rand(2, 1, 9, 8)
    assert torch.equal(module.load(tmp_path / "again.pt")(x), module.load(exported[1][0])(x))


def largest_difference(torch, tmp_path, architecture, normalization, double=False):
    """Of logits, relative to the largest; computed in float64 where it is `double`."""
    bundle, variables, description = trained(*architecture, normalization=normalization)
    student, code = torch_export.export(bundle, variables, tmp_path, description)
    network = load_module(code).load(student)
    assert not network.training
    loaded = {
        name: tuple(value.shape)
        for name, value in network.state_dict().items()
        if not name.startswith("normalization.") and not name.endswith("num_batches_tracked")
    }
    assert loaded == torch_names.torch_layout(bundle)
    images = np.random.default_rng(1).uniform(size=(4, *architecture[2])).astype(np.float32)
    if double:
        images, network = images.astype(np.float64), network.double()
        variables = jax.tree.map(np.float64, variables)
    with (
        jax.default_matmul_precision("highest"),
        in_float64() if double else contextlib.nullcontext(),
    ):
        ours = np.asarray(jax.jit(lambda x: bundle.apply(variables, x, False)[0])(images))
    assert ours.dtype == images.dtype
    with torch.no_grad():
        theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    return float(np.max(np.abs(theirs - ours)) / np.max(np.abs(ours)))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a[0])
def test_logits_of_the_exported_module(torch, tmp_path, architecture, optimised_programs):
    channels = architecture[2][-1]
    statistics = {"mean": (0.2, 0.4, 0.6)[:channels], "std": (0.5, 0.25, 0.3)[:channels]}
    # Both sides round in float32: depth times 6e-8, and sums in another order.
    assert largest_difference(torch, tmp_path, architecture, statistics) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("architecture", LARGE, ids=lambda a: "-".join([a[0], *a[1].values()]))
def test_logits_of_large_exported_modules(torch, tmp_path, architecture, optimised_programs):
    assert largest_difference(torch, tmp_path, architecture, None) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture", PUBLISHED, ids=lambda a: "-".join([a[0], *map(str, a[1].values())])
)
def test_logits_of_modules_of_other_packages(torch, tmp_path, architecture, optimised_programs):
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    assert (
        largest_difference(torch, tmp_path, architecture, "none", double=True) < 1e-6
    )  # attention has float32 weights


@pytest.mark.slow
def test_every_network_has_an_exported_form(torch):
    """The exported code knows every name of ours, with our tensors."""
    from ard_jax.interop import torch_modules

    # Of the wide ones, which the rule for their names covers, two: tracing the deepest takes a minute.
    for name in [n for n in models.names() if "wrn" not in n] + ["wrn_16_4", "dm_wrn_22_6"]:
        bundle = models.create(name)
        with torch.device("meta"):
            network = torch_modules.create(name, 10, [32, 32, 3])
        tensors = {n: tuple(t.shape) for n, t in network.state_dict().items()}
        layout = torch_names.torch_layout(bundle)
        assert layout.items() <= tensors.items(), name
        left = {n for n in tensors.keys() - layout.keys() if "num_batches_tracked" not in n}
        assert left == {"normalization.mean", "normalization.std"}, name


def test_a_wrong_file_does_not_load_quietly(torch, exported, tmp_path):
    module = load_module(exported[1][1])
    file = torch.load(exported[1][0], weights_only=True)
    del file["state_dict"]["conv2.weight"]
    torch.save(file, tmp_path / "less.pt")
    with pytest.raises(RuntimeError, match="conv2.weight"):
        module.load(tmp_path / "less.pt")
    with pytest.raises(ValueError, match="unknown model 'resnet999'"):
        module.create("resnet999", 10, [32, 32, 3])
