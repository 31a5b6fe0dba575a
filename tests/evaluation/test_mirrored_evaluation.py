"""What mirrors are given of the evaluation that ends a run."""

import numpy as np

from ard_jax.evaluation import full
from ard_jax.reporting.record import AttackResult, Evaluation, NetworkResult


class Writer:
    def __init__(self):
        self.records, self.images = [], []

    def mirror(self, record):
        self.records.append(record)

    def image(self, *image):
        self.images.append(image)


def test_accuracies_and_one_picture():
    best = NetworkResult(step=7, clean=0.75, attacks={"fgsm": AttackResult(accuracy=0.5)})
    nets = {"student (best)": best, "clean teacher": NetworkResult(clean=1.0)}
    clean = np.arange(48, dtype=np.float32).reshape(2, 4, 3, 2)[..., :1] / 255
    writer = Writer()
    full._mirror(writer, Evaluation(nets=nets), {"clean": clean, "adversarial": clean + 1 / 255})
    assert writer.records == [
        {"kind": "test", "net": "student (best)", "step": 7, "clean": 0.75, "fgsm": 0.5},
        {"kind": "test", "net": "clean teacher", "step": 7, "clean": 1.0},
    ]
    ((name, pixels, step),) = writer.images
    assert (name, step, pixels.shape, pixels.dtype) == ("examples", 7, (8, 6, 1), np.uint8)
    np.testing.assert_array_equal(pixels[:4, 3:], np.round(255 * clean[1]))  # side by side
    np.testing.assert_array_equal(pixels[4:], pixels[:4] + 1)  # above each other
