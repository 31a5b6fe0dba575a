"""Writes PyTorch's file formats opcode by opcode: needs no PyTorch, and writes what it never would too."""

import io
import pickle
import struct
import zipfile

import numpy as np

KINDS = ["torch zip", "torch legacy"]
LEGACY_HEADER = (
    pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    + pickle.dumps(1001, 2)
    + pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}, 2)
)


def value(thing):
    """The opcodes that leave a plain value on the stack."""
    return pickle.dumps(thing, 2)[2:-1]


def name(full_name):
    module, _, last = full_name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def call(full_name, *arguments):
    return name(full_name) + b"(" + b"".join(arguments) + b"tR"


def mapping(entries):
    return b"}(" + b"".join(value(key) + opcodes for key, opcodes in entries.items()) + b"u"


def state_dict(entries):
    """An OrderedDict with PyTorch's attribute `_metadata`."""
    body = b"(" + b"".join(value(key) + opcodes for key, opcodes in entries.items()) + b"u"
    return call("collections.OrderedDict") + body + mapping({"_metadata": mapping({})}) + b"b"


def storage(key, size, kind="torch.FloatStorage", location="cpu", view=()):
    parts = [value("storage"), name(kind), value(key), value(location), value(size)]
    return b"(" + b"".join(parts) + b"".join(map(value, view)) + b"tQ"


def view_of(kind):
    """What a legacy file, and it alone, says of a storage that is no part of another one."""
    return (None,) if kind == "torch legacy" else ()


def tensor(where, shape, stride=None, offset=0):
    if stride is None:
        stride = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    sizes = value(offset) + value(shape) + value(stride)
    hooks = value(False) + call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", where, sizes, hooks)


def write_zip(path, body, blocks, root="archive", extra=(), compression=zipfile.ZIP_STORED):
    """body: opcodes of the objects; blocks: key -> array; extra: further (name, bytes)."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", b"\x80\x02" + body + b".")
        for key, block in blocks.items():
            archive.writestr(f"{root}/data/{key}", block.tobytes())
        archive.writestr(f"{root}/version", "3\n")
        for entry, content in extra:
            archive.writestr(entry, content)
    return path


def write_legacy(path, body, blocks, sizes=None):
    """blocks: key -> array; sizes: declared numbers of values where they shall be wrong."""
    out = io.BytesIO()
    out.write(LEGACY_HEADER + b"\x80\x02" + body + b"." + pickle.dumps(list(blocks), 2))
    for key, block in blocks.items():
        out.write(struct.pack("<q", (sizes or {}).get(key, np.size(block))) + block.tobytes())
    path.write_bytes(out.getvalue())
    return path


def write(path, kind, body, blocks):
    return (write_zip if kind == "torch zip" else write_legacy)(path, body, blocks)


def simple(kind, path, around=None):
    """A file with one small layer; around(opcodes of the state dict) -> opcodes of the whole."""
    view = view_of(kind)
    weight, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)
    tensors = [tensor(storage("0", 6, view=view), (2, 3)), tensor(storage("1", 2, view=view), (2,))]
    body = state_dict(dict(zip(("fc.weight", "fc.bias"), tensors, strict=True)))
    write(path, kind, around(body) if around else body, {"0": weight, "1": bias})
    return {"fc.weight": weight, "fc.bias": bias}
