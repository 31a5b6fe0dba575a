"""How to call each exported file, for the model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ONNX = """### ONNX: `{name}`

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{name}")
images = np.asarray(pixels, np.float32) / 255          # [B, {h}, {w}, {c}] uint8 pixels, any B
(logits,) = session.run(["logits"], {{"images": images}})
classes = logits.argmax(-1)
```
"""
_STABLEHLO = """### StableHLO: `{name}` (JAX on CPU, CUDA or TPU, and flatbuffers; without ard_jax)

```python
from pathlib import Path

import jax.export
import numpy as np

network = jax.export.deserialize(bytearray(Path("{name}").read_bytes())).call
logits = network(np.asarray(pixels, np.float32) / 255)  # [B, {h}, {w}, {c}] uint8 pixels, any B
```
"""
_SAFETENSORS = """### safetensors: `{name}` (weights only; the description is in the header)

```python
import numpy as np

from ard_jax.models import described
from ard_jax.interop import safetensors_file

description, variables = safetensors_file.load("{name}")
network = described.from_description(description)
logits, _ = network.apply(variables, np.asarray(pixels, np.float32) / 255, False)  # [B, {h}, {w}, {c}]
```

Any safetensors reader opens it; names are ours ("params/conv1/kernel"), convolutions [kh, kw, in, out].
"""
_TORCH = """### PyTorch: `{name}` and `model.py` (without ard_jax)

```python
import torch
from model import load                                  # the model.py beside this file

network = load("{name}")                            # evaluation mode; add map_location="cuda" for a GPU
with torch.no_grad():
    logits = network(pixels.float() / 255)              # [B, {c}, {h}, {w}] uint8 pixels: channels first
```

Its `["state_dict"]` has the tensors under their public names.
"""
_BY_SUFFIX = {
    ".onnx": _ONNX,
    ".stablehlo": _STABLEHLO,
    ".safetensors": _SAFETENSORS,
    ".pt": _TORCH,
}


def section(files: list[Path], description: Mapping[str, Any]) -> str:
    """The section "How to call it": an example for each file of a known format; "" without any."""
    height, width, channels = description["image_shape"]
    shape = {"h": height, "w": width, "c": channels}
    parts = [
        _BY_SUFFIX[file.suffix].format(name=file.name, **shape)
        for file in files
        if file.suffix in _BY_SUFFIX
    ]
    if not parts:
        return ""
    note = (
        "The normalisation is inside each file: give pixels in [0, 1], nothing else. "
        "Row k of the classes above is logit k.\n"
    )
    return "\n".join(["## How to call it\n", note, *parts])
