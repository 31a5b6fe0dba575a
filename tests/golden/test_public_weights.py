"""The public checkpoints of the data folder, read without PyTorch: accuracies as published."""

import jax
import numpy as np
import pytest
from verification_networks import registered  # noqa: F401

from ard_jax import attacks, models
from ard_jax.interop import files, recognise

pytestmark = [pytest.mark.golden, pytest.mark.data, pytest.mark.slow]

# file -> clean accuracy in % on the 10,000 test images, accuracy under PGD-20 at 2/255 (None: not stated).
FILES = {
    "resnet56-4bfd9763.th": (93.39, None),
    "resnet20-12fca82f.th": (91.73, None),
    "cnn_a_adv.model": (69.75, 54.5),
    "cnn_a_adv4.model": (60.07, 51.4),
    "resnet4b.pth": (77.20, 61.8),
}
BATCH = 500


@pytest.fixture(scope="module")
def test_set(shared_data):
    """Images uint8 [10000, 32, 32, 3] in the official order, and labels."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="reading CIFAR-10 needs tfds")
    folder = shared_data / "tfds"
    if not (folder / "cifar10").exists() or not (shared_data / "weights").exists():
        pytest.skip(f"{folder / 'cifar10'} or {shared_data / 'weights'} is not there")
    source = tfds.data_source("cifar10", split="test", data_dir=folder, download=False)
    examples = sorted(source, key=lambda example: example["id"])
    return np.stack([e["image"] for e in examples]), np.array([e["label"] for e in examples])


@pytest.fixture(scope="module", params=FILES)
def network(request, shared_data):
    """(file, bundle, variables) through the restricted unpickler."""
    file = shared_data / "weights" / request.param
    if not file.exists():
        pytest.skip(f"{file} is not there")
    contents = files.read(file, use_torch=False)
    found = recognise.recognise(contents.tensors)
    assert found.num_classes == 10
    bundle = models.create(found.model, 10, normalization=found.normalization, **found.kwargs)
    return request.param, bundle, recognise.convert(contents.tensors, found)


def accuracy(predict, images, labels):
    right = [
        predict(images[i : i + BATCH].astype(np.float32) / 255, labels[i : i + BATCH])
        for i in range(0, len(images), BATCH)
    ]
    return 100 * np.concatenate(right).mean()


def test_clean_accuracy(network, test_set):
    file, bundle, variables = network
    predict = jax.jit(lambda x, y: bundle.apply(variables, x, False)[0].argmax(-1) == y)
    assert accuracy(predict, *test_set) == pytest.approx(FILES[file][0], abs=0.05)


def test_accuracy_under_pgd(network, test_set):
    file, bundle, variables = network
    expected = FILES[file][1]
    if expected is None:
        pytest.skip("no number is published")
    spec = attacks.make("pgd20", eps=2 / 255)

    def logits(x):
        return bundle.apply(variables, x, False)[0]

    @jax.jit
    def predict(x, y):
        adversarial = spec.run(logits, x, y, jax.random.key(0), unroll=1)
        return logits(adversarial).argmax(-1) == y

    images, labels = test_set
    # One point: the start is random, and the published numbers are rounded.
    assert accuracy(predict, images[:1000], labels[:1000]) == pytest.approx(expected, abs=1.0)
