"""Files that would run code, exhaust memory or crash if they were read trustingly."""

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from torch_file_writer import (
    KINDS,
    LEGACY_HEADER,
    call,
    mapping,
    name,
    simple,
    storage,
    tensor,
    value,
    view_of,
    write,
    write_legacy,
    write_zip,
)  # fmt: skip

from ard_jax.interop import files


def refuse(path, message, **kwargs):
    """Reading the file ends with this message."""
    with pytest.raises(files.FileError, match=message):
        files.read(path, **kwargs)


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
    with path.open("wb") as stream:
        if kind == "haiku npy":
            np.save(stream, array, allow_pickle=True)
        else:
            np.savez(stream, w=np.ones((2, 3)), state=array)


# Protocol 4 takes the name from the stack, so that it is not written beside the opcode.
@pytest.mark.parametrize("function", GLOBALS, ids=str)
@pytest.mark.parametrize(
    ("kind", "protocol"), [*((k, p) for k in KINDS for p in (2, 4)), ("haiku npy", 2), ("npz", 2)]
)
def test_payload_is_refused_by_name(tmp_path, kind, protocol, function, use_torch):
    marker = tmp_path / "marker"
    hostile_file(kind, Payload(function, marker), tmp_path / "x", protocol)
    advice = ", which is refused.*state_dict" if protocol == 2 else ""
    refuse(tmp_path / "x", GLOBALS[function] + advice, use_torch=use_torch)
    assert not marker.exists()


@pytest.mark.parametrize("where", ["magic", "keys", "storage class", "storage key"])
def test_payload_in_other_places(tmp_path, where, use_torch):
    marker = tmp_path / "marker"
    payload = call("posix.system", value(f"touch {marker}"))
    hostile = b"\x80\x02" + payload + b"."
    empty = b"\x80\x02" + mapping({}) + b"."
    if where == "magic":
        content = LEGACY_HEADER[:14] + LEGACY_HEADER[14:15] + hostile * 3
    elif where == "keys":
        content = LEGACY_HEADER + empty + hostile
    else:
        parts = [value("storage"), name("torch.FloatStorage"), *map(value, ["0", "cpu", 6]), b"N"]
        parts[1 if where == "storage class" else 2] = payload
        body = b"(" + b"".join(parts) + b"tQ"
        content = LEGACY_HEADER + b"\x80\x02" + mapping({"w": tensor(body, (2, 3))}) + b"."
    (tmp_path / "x").write_bytes(content)
    refuse(tmp_path / "x", "posix.system", use_torch=use_torch)
    assert not marker.exists()


SIX = np.arange(6, dtype=np.float32)
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
    where = storage("0", 6, view=view_of(kind))
    body = mapping({"w": tensor(where, shape, stride, offset)})
    write(tmp_path / "x", kind, body, {"0": SIX})
    refuse(tmp_path / "x", "truncated or damaged", use_torch=use_torch)


@pytest.mark.parametrize("size", [2**40, 7, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_declared_size_of_a_storage(tmp_path, kind, size, use_torch):
    """PyTorch allocates a legacy storage at its declared size."""
    where = storage("0", size, view=view_of(kind))
    write(tmp_path / "x", kind, mapping({"w": tensor(where, (2, 2))}), {"0": SIX})
    refuse(tmp_path / "x", f"storage 0 must have.*{4 * size:,} bytes", use_torch=use_torch)


def zip_with(tensors, block, **options):
    return lambda path: write_zip(path, mapping(tensors), {"0": block}, **options)


def legacy_with(where, **options):
    body = mapping({"w": tensor(where, (2, 2))})
    return lambda path: write_legacy(path, body, {"0": SIX}, **options)


def beside(opcodes):
    """A good network and an object of these opcodes."""
    return lambda path: simple(
        "torch zip", path, lambda body: mapping({"net": body, "info": opcodes})
    )


WIDE = call(
    "torch._utils._rebuild_tensor_v3", storage("0", 8, "torch.storage.UntypedStorage"),
    *map(value, [0, (2,), (1,), False]), call("collections.OrderedDict"), name("torch.float64"),
)  # fmt: skip
# What writes it -> the message.
HOSTILE = {
    "dtype wider than the storage": (
        zip_with({"w": WIDE}, np.arange(8, dtype=np.uint8)), "reaches value 1 of storage 0, which has 1"),
    "legacy view outside of its storage": (
        legacy_with(storage("0", 6, view=(("v", 4, 4),))), "view reaches outside"),
    "declared size agrees with itself but not with the file": (
        legacy_with(storage("0", 2**40, view=(None,)), sizes={"0": 2**40}),
        r"4,398,046,511,104 bytes\), but 24 bytes follow"),
    "expanded tensors count in full": (
        zip_with({"w": tensor(storage("0", 1), (2**20, 2**20), (0, 0))}, SIX[:1]),
        "more content than the limit"),
    "one storage declared twice": (
        zip_with({k: tensor(storage("0", size), (2, 3)) for k, size in (("a", 6), ("b", 600))}, SIX),
        "declared in two ways"),
    "compression": (
        zip_with({"w": tensor(storage("0", 6), (2, 3))}, SIX, compression=zipfile.ZIP_DEFLATED),
        "packed again with compression"),
    # The unpickler allocates its memo up to the largest index, here 16 GB.
    "memo bomb": (beside(b"Nr" + struct.pack("<I", 2**30)), "memo index 1073741824"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_declarations_that_lie(tmp_path, case, use_torch):
    write_it, message = HOSTILE[case]
    write_it(tmp_path / "x")
    refuse(tmp_path / "x", message, use_torch=use_torch)


REBUILD = "torch._utils._rebuild_tensor_v2"
DAMAGE = {
    "a tensor without storage": call(REBUILD, *map(value, [1, 0, (1,), (1,)])),
    "state for a stand-in": name(REBUILD) + value({"x": 1}) + b"b",
    "state for a dtype": name("torch.FloatStorage") + value({"dtype": 1}) + b"b",
    "slots of a dtype": name("torch.FloatStorage") + value((None, {"dtype": 1})) + b"b",
    "state for NumPy's dtype":
        name("ml_dtypes.bfloat16") + value((3, "<", None, None, None, 1, 1, 0)) + b"b",
    "entry of a stand-in": name("torch.FloatStorage") + value("x") + value(1) + b"s",
    "class from a stand-in": name("torch.FloatStorage") + b")\x81",
    "reference to a module":
        b"(" + value("module") + name("torch.Size") + value("a") + value("b") + b"tQ",
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
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("kind", KINDS)
def test_opcodes_that_would_do_harm(tmp_path, kind, case, use_torch):
    simple(kind, tmp_path / "x", lambda body: mapping({"net": body, "info": DAMAGE[case]}))
    refuse(tmp_path / "x", "truncated or damaged", use_torch=use_torch)


def hundredfold():
    """Thirty dicts that each hold the next one a hundred times over have 100^30 paths."""
    level = {}
    for _ in range(30):
        level = {str(number): level for number in range(100)}
    return value(level)


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (b"\x82\x01", "asks for the copyreg extension number 1"),
        (b"\x84\x01\x00\x00\x00", "asks for the copyreg extension number 1"),
        (b"]" + b"N0" * 500, "more than 1,000 operations"),
        (hundredfold(), "more than 10,000 objects"),
    ],
    ids=["extension 1", "extension 4", "operations", "paths"],
)
def test_more_than_a_network_needs(tmp_path, monkeypatch, opcodes, message):
    if "operations" in message:
        monkeypatch.setattr("ard_jax.interop.restricted_pickle._MAX_OPERATIONS", 1000)
    monkeypatch.setattr("ard_jax.interop.nesting._MAX_NODES", 10_000)
    beside(opcodes)(tmp_path / "x")
    refuse(tmp_path / "x", message, use_torch=False)


def test_dict_inside_of_itself(tmp_path):
    inside = {}
    inside["again"] = inside
    expected = beside(value(inside))(tmp_path / "x")
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
    refuse(path, "leads outside of the archive", use_torch=use_torch)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_occurs_twice(tmp_path):
    write_zip(tmp_path / "x", mapping({}), {}, extra=[("archive/data.pkl", b"\x80\x02N.")])
    refuse(tmp_path / "x", "two entries 'archive/data.pkl'")


@pytest.mark.parametrize(
    ("array", "limits", "message"),
    [
        (
            np.zeros((1000, 10000), np.float32),
            {},
            "declares 40,000,128 bytes.* more than 100 times",
        ),
        (np.tile(np.random.default_rng(0).bytes(200), 20), {"max_bytes": 2000}, "limit of 2,000"),
    ],
    ids=["bomb", "beyond the limit"],
)
def test_compressed_zip(tmp_path, array, limits, message):
    with (tmp_path / "x").open("wb") as stream:
        np.savez_compressed(stream, w=array)
    refuse(tmp_path / "x", message, **limits)


def npy(shape, content=bytes(24)):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize("shape", [(2**40, 2**20), (7,), (5,), (-6,), ("6",), (True,)])
def test_npy_headers_that_lie(tmp_path, shape):
    (tmp_path / "x.npy").write_bytes(npy(shape))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("w.npy", npy(shape))
    for path in (tmp_path / "x.npy", tmp_path / "x.npz"):
        refuse(path, "damaged")


def test_npy_with_a_header_that_is_code(tmp_path):
    (tmp_path / "x").write_bytes(npy("__import__('os').system('true')", b""))
    refuse(tmp_path / "x", "damaged NumPy header")


@pytest.mark.parametrize("kind", KINDS)
def test_whole_pickled_model(tmp_path, kind, use_torch):
    classes = ("models.resnet.ResNet", "torch.nn.modules.conv.Conv2d")
    body = b"".join(name(full_name) + b")\x81" for full_name in classes)
    write(tmp_path / "x", kind, b"](" + body + b"e", {})
    message = "whole pickled model.*models.resnet.ResNet.*state_dict()"
    refuse(tmp_path / "x", message, use_torch=use_torch)


@pytest.mark.parametrize("legacy", [False, True])
def test_whole_model_that_pytorch_wrote(tmp_path, legacy):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    model = torch.nn.Sequential(torch.nn.Linear(2, 3))
    torch.save(model, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
    refuse(tmp_path / "x", "whole pickled model.*container.Sequential")
