"""Files as published code saves them: networks held twice, and unused objects beside the weights."""

import numpy as np
import pytest
import torch_file_writer as tw
from hypothesis import given, settings
from hypothesis import strategies as st

from ard_jax.interop import files, nesting
from ard_jax.interop.restricted_pickle import FileError

NAMES = ("conv1.weight", "layer1.0.conv1.weight", "fc.weight")
WORDS = st.sampled_from(["module", "model", "attacker", "net", "ema", "0", "_orig_mod", "encoder"])
PREFIX = st.lists(WORDS, max_size=3).map(lambda words: "".join(f"{w}." for w in words))


def network(seed=0):
    rng = np.random.default_rng(seed)
    state = {name: rng.normal(size=(2, 3)).astype(np.float32) for name in NAMES}
    return state | {"bn1.running_mean": rng.normal(size=3).astype(np.float32)}


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def save(path, state):
    from safetensors.numpy import save_file

    save_file({name: value.copy() for name, value in state.items()}, path)
    return path


@settings(deadline=None)
@given(PREFIX, PREFIX)
def test_copies_under_any_prefixes_are_one_network(first, second):
    state = prefixed(first, network()) | prefixed(second, network())
    kept, told = nesting.one_of_equals(state, "x.pt")
    nested = first.startswith(second) or second.startswith(first)
    if nested:  # one prefix inside of the other looks like a part of the network
        return
    assert len(kept) == len(NAMES) + 1 and len(told) == 1
    prefix = first if next(iter(kept)).startswith(first) else second
    assert kept.keys() == prefixed(prefix, network()).keys()


@settings(deadline=None)
@given(PREFIX)
def test_a_single_network_is_left_as_it_is(prefix):
    state = prefixed(prefix, network()) | {"normalize.mean": np.ones(3, np.float32)}
    kept, told = nesting.one_of_equals(state, "x.pt")
    assert kept == state and told == ()


def test_two_different_networks_are_chosen_from_by_key(tmp_path):
    both = prefixed("student.", network(0)) | prefixed("teacher.", network(1))
    path = save(tmp_path / "two.safetensors", both)
    with pytest.raises(FileError, match="several networks .*--key: student or teacher"):
        files.read(path)
    chosen = files.read(path, key="teacher").tensors
    np.testing.assert_array_equal(chosen["fc.weight"], network(1)["fc.weight"])


def test_a_prefix_of_a_torch_file_is_a_key_too(tmp_path):
    tw.simple("torch zip", tmp_path / "x.pt", lambda sd: tw.mapping({"model.net": sd}))
    assert files.read(tmp_path / "x.pt").nested == "model.net"


BUILD = {"lr": 0.1, "betas": (0.9, 0.999)}
UNUSED = {
    "argparse.Namespace": tw.name("argparse.Namespace") + b")\x81" + tw.value(BUILD) + b"b",
    "pathlib.PosixPath": tw.call("pathlib.PosixPath", tw.value("runs"), tw.value("a")),
    "datetime.datetime": tw.call("datetime.datetime", tw.value(b"\x07\xe8\x01\x01" + bytes(6))),
    "torch.optim.lr_scheduler.StepLR":
        tw.name("torch.optim.lr_scheduler.StepLR") + b")\x81" + tw.value(BUILD) + b"b",
    "omegaconf.dictconfig.DictConfig":
        tw.name("omegaconf.dictconfig.DictConfig") + b")\x81" + tw.value(BUILD) + b"b",
    "mine.List": tw.name("mine.List") + b")\x81" + b"(" + tw.value(1) + tw.value(2) + b"e",
    "mine.Map": tw.name("mine.Map") + b")\x81" + b"(" + tw.value("a") + tw.value(2) + b"u",
    "enum": tw.call("mine.Colour", tw.value(1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", tw.KINDS)
@pytest.mark.parametrize("name", UNUSED)
def test_unused_objects_are_passed_over_and_told(tmp_path, kind, name):
    expected = tw.simple(
        kind, tmp_path / "x.pt", lambda sd: tw.mapping({"state_dict": sd, "args": UNUSED[name]})
    )
    found = files.read(tmp_path / "x.pt", use_torch=False)
    assert set(found.tensors) == set(expected)
    assert found.skipped == ({"enum": "mine.Colour"}.get(name, name),)


@pytest.mark.parametrize("kind", tw.KINDS)
def test_an_object_in_place_of_a_tensor_is_refused(tmp_path, kind):
    odd = tw.call("mine.Quantised", tw.value(1))

    def body(sd):
        return sd + tw.value("fc.scale") + odd + b"s"  # one more entry of the state dict

    tw.simple(kind, tmp_path / "x.pt", lambda sd: tw.mapping({"state_dict": body(sd)}))
    with pytest.raises(FileError, match=r"among its tensors.*fc.scale \(mine.Quantised\)"):
        files.read(tmp_path / "x.pt", use_torch=False)
