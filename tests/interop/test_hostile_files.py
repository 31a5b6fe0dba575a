"""Files that would run code, exhaust memory or crash if they were read trustingly."""

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from torch_file_writer import (
    LEGACY_HEADER,
    call,
    mapping,
    name,
    simple,
    storage,
    tensor,
    value,
    write,
    write_legacy,
    write_zip,
)

from ard_jax.interop import files

KINDS = ["torch zip", "torch legacy"]


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, function, marker):
        code = {os.system: f"touch {marker}", eval: f"open({str(marker)!r}, 'w').close()"}
        self.call = (function, (code[function],))

    def __reduce__(self):
        return self.call


GLOBALS = {os.system: f"{os.name}.system", eval: "builtins.eval"}


def test_the_payload_works(tmp_path):
    """Otherwise the tests below could not fail."""
    for function in GLOBALS:
        marker = tmp_path / function.__name__
        pickle.loads(pickle.dumps(Payload(function, marker), 2))
        assert marker.exists()


def hostile_file(kind, payload, path, protocol=2):
    if kind in KINDS:
        body = pickle.dumps(payload, protocol)
        body = body[2:-1] if protocol == 2 else body[11:-1]  # without the header and the frame
        simple(kind, path, lambda tensors: mapping({"state_dict": tensors, "info": body}))
        return
    array = np.empty(2, object)
    array[:] = [{"linear": {"w": np.ones((2, 3))}}, {"linear": {"b": payload}}]
    if kind == "haiku npy":
        with path.open("wb") as stream:
            np.save(stream, array, allow_pickle=True)
    else:
        with path.open("wb") as stream:
            np.savez(stream, w=np.ones((2, 3)), state=array)


@pytest.mark.parametrize("function", GLOBALS, ids=str)
@pytest.mark.parametrize("kind", [*KINDS, "haiku npy", "npz"])
def test_payload_is_refused_by_name(tmp_path, kind, function, use_torch):
    marker = tmp_path / "marker"
    hostile_file(kind, Payload(function, marker), tmp_path / "x")
    with pytest.raises(
        files.FileError, match=rf"{GLOBALS[function]}, which is refused.*state_dict"
    ):
        files.read(tmp_path / "x", use_torch=use_torch)
    assert not marker.exists()


@pytest.mark.parametrize("function", GLOBALS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_payload_by_stack_global(tmp_path, kind, function, use_torch):
    """Protocol 4 takes the name from the stack, so that it is not written beside the opcode."""
    marker = tmp_path / "marker"
    hostile_file(kind, Payload(function, marker), tmp_path / "x", protocol=4)
    with pytest.raises(files.FileError, match=GLOBALS[function]):
        files.read(tmp_path / "x", use_torch=use_torch)
    assert not marker.exists()


def call_posix(*arguments):
    return call("posix.system", *arguments)


@pytest.mark.parametrize("where", ["magic", "keys", "storage class", "storage key"])
def test_payload_in_other_places(tmp_path, where, use_torch):
    marker = tmp_path / "marker"
    payload = call_posix(value(f"touch {marker}"))
    hostile = b"\x80\x02" + payload + b"."
    empty = b"\x80\x02" + mapping({}) + b"."
    if where == "magic":
        content = LEGACY_HEADER[:14] + LEGACY_HEADER[14:15] + hostile * 3
    elif where == "keys":
        content = LEGACY_HEADER + empty + hostile
    else:
        parts = [
            value("storage"),
            name("torch.FloatStorage"),
            value("0"),
            value("cpu"),
            value(6),
            b"N",
        ]
        parts[1 if where == "storage class" else 2] = payload
        body = b"(" + b"".join(parts) + b"tQ"
        content = LEGACY_HEADER + b"\x80\x02" + mapping({"w": tensor(body, (2, 3))}) + b"."
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(files.FileError, match="posix.system"):
        files.read(tmp_path / "x", use_torch=use_torch)
    assert not marker.exists()


REACHES_OUT = {
    "shape": ((3, 3), (3, 1), 0),
    "stride": ((2, 3), (100, 1), 0),
    "offset": ((2, 3), (3, 1), 1),
    "huge offset": ((1,), (1,), 2**62),
    "huge shape": ((2**40, 2**40), (0, 1), 0),
    "negative stride": ((2, 3), (-3, 1), 3),
    "negative offset": ((2, 3), (3, 1), -1),
    "negative shape": ((-2, 3), (3, 1), 0),
    "not a number": ((2, 3), (3, "1"), 0),
    "float": ((2, 3.0), (3, 1), 0),
    "lengths": ((2, 3), (1,), 0),
    "dimensions": ((1,) * 65, (1,) * 65, 0),
}


@pytest.mark.parametrize("case", REACHES_OUT)
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_outside_of_their_storage(tmp_path, kind, case, use_torch):
    shape, stride, offset = REACHES_OUT[case]
    where = storage("0", 6, view=(None,) if kind == "torch legacy" else ())
    body = mapping({"w": tensor(where, shape, stride, offset)})
    write(tmp_path / "x", kind, body, {"0": np.arange(6, dtype=np.float32)})
    with pytest.raises(files.FileError, match="truncated or damaged"):
        files.read(tmp_path / "x", use_torch=use_torch)


def test_dtype_wider_than_the_storage(tmp_path, use_torch):
    raw = storage("0", 8, "torch.storage.UntypedStorage")
    rest = value(0) + value((2,)) + value((1,)) + value(False) + call("collections.OrderedDict")
    body = mapping(
        {"w": call("torch._utils._rebuild_tensor_v3", raw + rest + name("torch.float64"))}
    )
    write_zip(tmp_path / "x", body, {"0": np.arange(8, dtype=np.uint8)})
    with pytest.raises(files.FileError, match="reaches value 1 of storage 0, which has 1"):
        files.read(tmp_path / "x", use_torch=use_torch)


def test_legacy_view_outside_of_its_storage(tmp_path, use_torch):
    body = mapping({"w": tensor(storage("0", 6, view=(("v", 4, 4),)), (2, 2))})
    write_legacy(tmp_path / "x", body, {"0": np.arange(6, dtype=np.float32)})
    with pytest.raises(files.FileError, match="view reaches outside"):
        files.read(tmp_path / "x", use_torch=use_torch)


@pytest.mark.parametrize("size", [2**40, 7, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_declared_size_of_a_storage(tmp_path, kind, size, use_torch):
    """PyTorch allocates a legacy storage at its declared size."""
    where = storage("0", size, view=(None,) if kind == "torch legacy" else ())
    write(
        tmp_path / "x", kind, mapping({"w": tensor(where, (2, 2))}), {"0": np.arange(6, dtype="f")}
    )
    declared = f"{4 * size:,} bytes"
    with pytest.raises(files.FileError, match=f"storage 0 must have.*{declared}"):
        files.read(tmp_path / "x", use_torch=use_torch)


def test_declared_size_agrees_with_itself_but_not_with_the_file(tmp_path, use_torch):
    body = mapping({"w": tensor(storage("0", 2**40, view=(None,)), (2, 2))})
    write_legacy(tmp_path / "x", body, {"0": np.arange(6, dtype="f")}, sizes={"0": 2**40})
    with pytest.raises(files.FileError, match=r"4,398,046,511,104 bytes\), but 24 bytes follow"):
        files.read(tmp_path / "x", use_torch=use_torch)


def test_expanded_tensors_count_in_full(tmp_path, use_torch):
    body = mapping({"w": tensor(storage("0", 1), (2**20, 2**20), (0, 0))})
    write_zip(tmp_path / "x", body, {"0": np.ones(1, np.float32)})
    with pytest.raises(files.FileError, match="more content than the limit"):
        files.read(tmp_path / "x", use_torch=use_torch)


def test_one_storage_declared_twice(tmp_path, use_torch):
    entries = {"a": tensor(storage("0", 6), (2, 3)), "b": tensor(storage("0", 600), (2, 3))}
    write_zip(tmp_path / "x", mapping(entries), {"0": np.ones(6, np.float32)})
    with pytest.raises(files.FileError, match="declared in two ways"):
        files.read(tmp_path / "x", use_torch=use_torch)


DAMAGE = {
    "a tensor without storage": call(
        "torch._utils._rebuild_tensor_v2", *map(value, [1, 0, (1,), (1,)])
    ),
    "state for a stand-in": name("torch._utils._rebuild_tensor_v2") + value({"x": 1}) + b"b",
    "state for a dtype": name("torch.FloatStorage") + value({"dtype": 1}) + b"b",
    "slots of a dtype": name("torch.FloatStorage") + value((None, {"dtype": 1})) + b"b",
    "state for NumPy's dtype": name("ml_dtypes.bfloat16")
    + value((3, "<", None, None, None, 1, 1, 0))
    + b"b",
    "entry of a stand-in": name("torch.FloatStorage") + value("x") + value(1) + b"s",
    "class from a stand-in": name("torch.FloatStorage") + b")\x81",
    "reference to a module": b"("
    + value("module")
    + name("torch.Size")
    + value("a")
    + value("b")
    + b"tQ",
    "reference of another type": value("posix") + b"Q",
    "textual reference": b"Pposix\n",
    "structured dtype": call("numpy.dtype", *map(value, ["V8", 0, 1])),
    "huge bytes": b"\x8e" + struct.pack("<Q", 2**62),
    "huge text": b"\x8d" + struct.pack("<Q", 2**62),
    "huge frame": b"\x95" + struct.pack("<Q", 2**62),
    "huge number": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "deep tuple as a key": b"}" + b")" + b"\x85" * 1_000_000 + b"Ns",
    "popped from nothing": b"0" * 10,
    "missing from the memo": b"j\x00\x00\x00\x7f",
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("kind", KINDS)
def test_opcodes_that_would_do_harm(tmp_path, kind, case, use_torch):
    simple(kind, tmp_path / "x", lambda body: mapping({"net": body, "info": DAMAGE[case]}))
    with pytest.raises(files.FileError, match="truncated or damaged"):
        files.read(tmp_path / "x", use_torch=use_torch)


def test_memo_bomb(tmp_path, use_torch):
    """The unpickler allocates its memo up to the largest index, here 16 GB."""
    bomb = b"Nr" + struct.pack("<I", 2**30)
    simple("torch zip", tmp_path / "x", lambda body: mapping({"net": body, "info": bomb}))
    with pytest.raises(files.FileError, match="memo index 1073741824"):
        files.read(tmp_path / "x", use_torch=use_torch)


@pytest.mark.parametrize("opcodes", [b"\x82\x01", b"\x84\x01\x00\x00\x00"])
def test_extension_codes(tmp_path, opcodes):
    simple("torch zip", tmp_path / "x", lambda body: mapping({"net": body, "info": opcodes}))
    with pytest.raises(files.FileError, match="asks for the copyreg extension number 1"):
        files.read(tmp_path / "x", use_torch=False)


def test_more_operations_than_a_network_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("ard_jax.interop.restricted_pickle._MAX_OPERATIONS", 1000)
    simple(
        "torch zip", tmp_path / "x", lambda body: mapping({"net": body, "info": b"]" + b"N0" * 500})
    )
    with pytest.raises(files.FileError, match="more than 1,000 operations"):
        files.read(tmp_path / "x")


def test_dicts_shared_in_very_many_places(tmp_path, monkeypatch):
    """Thirty dicts that each hold the next one a hundred times over have 100^30 paths."""
    monkeypatch.setattr("ard_jax.interop.nesting._MAX_NODES", 10_000)
    level = {}
    for _ in range(30):
        level = {str(number): level for number in range(100)}
    simple("torch zip", tmp_path / "x", lambda body: mapping({"net": body, "info": value(level)}))
    with pytest.raises(files.FileError, match="more than 10,000 objects"):
        files.read(tmp_path / "x", use_torch=False)


def test_dict_inside_of_itself(tmp_path):
    inside = {}
    inside["again"] = inside
    expected = simple(
        "torch zip", tmp_path / "x", lambda body: mapping({"net": body, "info": value(inside)})
    )
    assert set(files.read(tmp_path / "x", use_torch=False).tensors) == set(expected)


@pytest.mark.parametrize(
    "entry", ["../../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:/evil"]
)
@pytest.mark.parametrize("kind", ["torch zip", "npz"])
def test_names_that_lead_outside(tmp_path, kind, entry, use_torch):
    path = tmp_path / "x"
    if kind == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{entry}.npy", b"")
    else:
        write_zip(path, mapping({}), {}, extra=[(entry, b"")])
    with pytest.raises(files.FileError, match="leads outside of the archive"):
        files.read(path, use_torch=use_torch)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_occurs_twice(tmp_path):
    write_zip(tmp_path / "x", mapping({}), {}, extra=[("archive/data.pkl", b"\x80\x02N.")])
    with pytest.raises(files.FileError, match="two entries 'archive/data.pkl'"):
        files.read(tmp_path / "x")


def test_zip_bomb(tmp_path):
    with (tmp_path / "x").open("wb") as stream:
        np.savez_compressed(stream, w=np.zeros((1000, 10000), np.float32))
    with pytest.raises(
        files.FileError, match="declares 40,000,128 bytes of content, more than 100 times"
    ):
        files.read(tmp_path / "x")


def test_zip_beyond_the_limit(tmp_path):
    with (tmp_path / "x").open("wb") as stream:
        np.savez_compressed(stream, w=np.tile(np.random.default_rng(0).bytes(200), 20))
    with pytest.raises(files.FileError, match="the limit of 2,000"):
        files.read(tmp_path / "x", max_bytes=2000)


def test_torch_zip_with_compression(tmp_path, use_torch):
    body = mapping({"w": tensor(storage("0", 6), (2, 3))})
    write_zip(tmp_path / "x", body, {"0": np.ones(6, "f")}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(files.FileError, match="packed again with compression"):
        files.read(tmp_path / "x", use_torch=use_torch)


@pytest.mark.parametrize("shape", [(2**40, 2**20), (7,), (5,), (-6,), ("6",), (True,)])
def test_npy_headers_that_lie(tmp_path, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(24)
    for path, content in {tmp_path / "x.npy": member, tmp_path / "x.npz": None}.items():
        if content:
            path.write_bytes(content)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("w.npy", member)
        with pytest.raises(files.FileError, match="damaged"):
            files.read(path)


def test_npy_with_a_header_that_is_code(tmp_path):
    header = b"{'descr': '<f4', 'shape': __import__('os').system('true'), 'fortran_order': False}\n"
    (tmp_path / "x").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(files.FileError, match="damaged NumPy header"):
        files.read(tmp_path / "x")


def whole_model(kind, path):
    classes = {"models.resnet.ResNet": b"", "torch.nn.modules.conv.Conv2d": b""}
    body = b"".join(name(full_name) + b")\x81" for full_name in classes)
    write(path, kind, b"](" + body + b"e", {})


@pytest.mark.parametrize("kind", KINDS)
def test_whole_pickled_model(tmp_path, kind, use_torch):
    whole_model(kind, tmp_path / "x")
    with pytest.raises(
        files.FileError, match="whole pickled model.*models.resnet.ResNet.*state_dict()"
    ):
        files.read(tmp_path / "x", use_torch=use_torch)


@pytest.mark.parametrize("legacy", [False, True])
def test_whole_model_that_pytorch_wrote(tmp_path, legacy):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    model = torch.nn.Sequential(torch.nn.Linear(2, 3))
    torch.save(model, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(files.FileError, match="whole pickled model.*container.Sequential"):
        files.read(tmp_path / "x")
