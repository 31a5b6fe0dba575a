"""Makes networks_slice.npz: `pip install torch torchvision timm; python tests/golden/make_slice_networks.py`.

Names and shapes of torchvision's and timm's networks for 1,000 classes, and logits for 10
in both modes in float64, dropout and stochastic depth left out. Weights and images are those of `filling`.
"""

import json
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from filling import filled, pixels

HERE, SALT, CLASSES = Path(__file__).parent, 20, 10
# name -> (maker, image side)
NETWORKS = {
    **{name: (getattr(torchvision.models, name), 64) for name in (
        "resnet18", "resnet34", "resnet50", "wide_resnet50_2", "mobilenet_v3_large", "mobilenet_v3_small",
        "efficientnet_b0", "shufflenet_v2_x1_0",
    )},
    **{name: (lambda name=name, **k: timm.create_model(name, **k), 64) for name in (
        "convnext_tiny", "convnext_small", "convnext_base",
    )},
    **{
        f"{name}_patch{patch}_{side}": (
            lambda name=name, patch=patch, side=side, **k: timm.create_model(
                f"{name}_patch16_224", patch_size=patch, img_size=side, **k
            ),
            side,
        )
        for name, patch, side in (
            ("vit_tiny", 4, 32), ("vit_small", 16, 64), ("vit_base", 16, 64), ("deit_small", 16, 64),
        )
    },
}  # fmt: skip


class ChannelNorm(torch.nn.LayerNorm):
    """LayerNorm of the channels of [B, C, H, W]."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvStem(torch.nn.Module):
    """Of Singh et al. 2023, under RobustBench's names: 3x3 convolutions of (channels, stride)."""

    def __init__(self, sizes, outputs=None):
        super().__init__()
        layers, inputs = [], 3
        for channels, stride in sizes:
            layers += [
                torch.nn.Conv2d(inputs, channels, 3, stride, 1),
                ChannelNorm(channels, 1e-6),
                torch.nn.GELU(),
            ]
            inputs = channels
        if outputs:
            layers.append(torch.nn.Conv2d(inputs, outputs, 1))
        self.stem = torch.nn.Sequential(*layers)

    def forward(self, x):
        return self.stem(x)


def with_conv_stem(name: str, sizes, outputs=None, **options):
    network = timm.create_model(name, **options)
    if outputs:
        network.patch_embed.proj = ConvStem(sizes, outputs)
    else:
        network.stem = ConvStem(sizes)
    return network


FOUR = ((48, 2), (96, 2), (192, 2), (384, 2))
NETWORKS |= {
    "convnext_tiny_convstem": (lambda **k: with_conv_stem("convnext_tiny", FOUR[:2], **k), 64),
    "convnext_base_convstem": (
        lambda **k: with_conv_stem("convnext_base", ((64, 2), (96, 2), (128, 1)), **k), 64,
    ),
    "vit_small_convstem_64": (
        lambda **k: with_conv_stem("vit_small_patch16_224", FOUR, 384, img_size=64, **k), 64,
    ),
    "vit_base_convstem_64": (
        lambda **k: with_conv_stem("vit_base_patch16_224", FOUR, 768, img_size=64, **k), 64,
    ),
}  # fmt: skip
SHAPES_ONLY = {
    "convnext_large": (lambda **k: timm.create_model("convnext_large", **k), 64),
    "convnext_large_convstem": (
        lambda **k: with_conv_stem("convnext_large", ((96, 2), (144, 2), (192, 1)), **k), 64,
    ),
}  # fmt: skip


def without_noise(network: torch.nn.Module) -> torch.nn.Module:
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout | torchvision.ops.StochasticDepth):
            module.p = 0.0
    return network


def shapes(network: torch.nn.Module) -> list[tuple[str, list[int]]]:
    state = network.state_dict().items()
    return [(k, list(v.shape)) for k, v in state if not k.endswith("num_batches_tracked")]


def main() -> None:
    arrays, states = {"salt": np.int32(SALT), "classes": np.int32(CLASSES)}, {}
    for name, (make, side) in (NETWORKS | SHAPES_ONLY).items():
        states[name] = {"side": side, "state": (whole := shapes(make()))}  # for 1,000 classes
        if name in SHAPES_ONLY:
            continue
        network = without_noise(make(num_classes=CLASSES)).double()
        weights = {
            tensor: torch.from_numpy(filled(tensor, shape, place, SALT)).double()
            for place, (tensor, shape) in enumerate(shapes(network))
        }
        network.load_state_dict(weights, strict=False)
        images = torch.from_numpy(pixels((4, side, side, 3), SALT)).double().permute(0, 3, 1, 2)
        with torch.no_grad():
            arrays[f"{name}/logits_eval"] = network.eval()(images).numpy()
            arrays[f"{name}/logits_train"] = network.train()(images).numpy()
        print(name, len(whole), np.abs(arrays[f"{name}/logits_eval"]).max(), flush=True)
    arrays["states"] = np.frombuffer(json.dumps(states).encode(), np.uint8)
    np.savez_compressed(HERE / "networks_slice.npz", **arrays)
    print((HERE / "networks_slice.npz").stat().st_size)


if __name__ == "__main__":
    main()
