"""Makes docs/images/front.png: one image, attacked on a natural and on a distilled student.

    python -m ard_jax.main --config=configs/ciard_digits.py
    python -m ard_jax.main --config=configs/ciard_digits.py:natural
    python docs/front_picture.py

Each network is attacked by PGD with its own gradients. The image is the first of the test set that both
networks get right and that the distilled one still gets right under its attack. Other data work too:

    python docs/front_picture.py --natural=RUN --distilled=RUN --data=cifar10 --data_dir=DIR --eps=8/255
"""

import argparse
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from ard_jax import attacks, data
from ard_jax.checkpoints import networks

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

RIGHT, WRONG = "#2a7f62", "#c0392b"
MOST = 10  # magnification of the perturbation


def answers(run: str, test: data.ArrayDataset, eps: float):
    """Returns (probabilities at the images, adversarial images, probabilities there) of a run's student."""
    network, variables, _, _ = networks.load(run)

    def predict(images: jax.Array):
        return network.apply(variables, images, False)[0]

    images = jnp.asarray(test.images / np.float32(255))
    attack = attacks.make("pgd_sat", eps=eps)
    adversarial = attack(predict, images, test.labels, jax.random.key(0))
    clean, attacked = (np.asarray(jax.nn.softmax(predict(x))) for x in (images, adversarial))
    return clean, np.asarray(adversarial), attacked


def show(axis: plt.Axes, image: np.ndarray, title: str) -> None:
    """One image [H,W,C] of pixels in [0,1]."""
    axis.imshow(np.clip(image.squeeze(), 0, 1), cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=11)
    axis.set_xticks([]), axis.set_yticks([])


def bars(axis: plt.Axes, probabilities: np.ndarray, label: int, names: tuple[str, ...]) -> None:
    """The network's answer as one bar for each class."""
    answer = int(probabilities.argmax())
    colors = ["#b8bec6"] * len(names)
    colors[answer] = RIGHT if answer == label else WRONG
    axis.bar(names, probabilities, color=colors)
    axis.set_ylim(0, 1), axis.set_yticks([0, 1])
    axis.tick_params(axis="x", labelsize=9, rotation=0 if max(map(len, names)) < 3 else 60)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(
        f"answer: {names[answer]} ({probabilities[answer]:.0%})", fontsize=12, color=colors[answer]
    )


def draw(
    rows: dict, images: np.ndarray, test: data.ArrayDataset, index: int, eps: float, out: Path
):
    """The picture, one row for each network."""
    scale = min(MOST, int(0.5 / eps * 10) / 10)
    figure, axes = plt.subplots(
        len(rows), 4, figsize=(7.6, 3.9), width_ratios=(1, 1, 1, 1.5), layout="constrained"
    )
    label = int(test.labels[index])
    for axis, (title, (_, adversarial, attacked)) in zip(axes, rows.items(), strict=True):
        top = axis[0] is axes[0][0]  # titles stand once
        show(axis[0], images[index], f"image: {test.class_names[label]}" if top else "")
        change = adversarial[index] - images[index]
        show(axis[1], 0.5 + scale * change, f"perturbation ×{scale:g}" if top else "")
        show(axis[2], adversarial[index], "adversarial image" if top else "")
        bars(axis[3], attacked[index], label, test.class_names)
        axis[0].set_ylabel(title, fontsize=12)
    figure.savefig(out, dpi=130)


def main() -> None:
    """Attacks both networks, picks the image and draws."""
    flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    flags.add_argument("--natural", default="runs/natural_digits-seed0")
    flags.add_argument("--distilled", default="runs/ciard_digits-seed0")
    flags.add_argument("--data", default="digits")
    flags.add_argument("--data_dir", default=None)
    flags.add_argument("--eps", default="1/5", type=lambda text: float(Fraction(text)))
    flags.add_argument("--out", default=Path(__file__).parent / "images" / "front.png", type=Path)
    given = flags.parse_args()
    test = data.load(given.data, given.data_dir).test.subset(np.arange(256))
    images = test.images / np.float32(255)
    rows = {
        "natural student": answers(given.natural, test, given.eps),
        "distilled student": answers(given.distilled, test, given.eps),
    }
    right = [p.argmax(1) == test.labels for found in rows.values() for p in found[::2]]
    both_clean, distilled = right[0] & right[2], right[3]
    index = int(np.flatnonzero(both_clean & distilled)[0])
    draw(rows, images, test, index, given.eps, given.out)
    print(
        f"image {index} of the test set; right of 256 under PGD: natural {right[1].mean():.0%}, distilled "
        f"{right[3].mean():.0%}"
    )


if __name__ == "__main__":
    main()
