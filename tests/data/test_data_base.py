import re

import numpy as np
import pytest

from ard_jax.data.base import ArrayDataset, DataError, Splits, class_mismatch


def make(n=6, shape=(4, 4, 3), classes=("a", "b", "c"), split="train", **kwargs):
    images = np.arange(n * np.prod(shape), dtype=np.int64).reshape(n, *shape).astype(np.uint8)
    labels = (np.arange(n) % len(classes)).astype(np.int32)
    values = dict(images=images, labels=labels, class_names=classes, name="toy", split=split)
    return ArrayDataset(**(values | kwargs))


def test_properties_and_subset():
    dataset = make()
    assert (len(dataset), dataset.image_shape, dataset.num_classes) == (6, (4, 4, 3), 3)
    part = dataset.subset(np.array([5, 1]), "validation")
    assert part.labels.tolist() == [2, 1] and part.split == "validation"
    assert (part.images == dataset.images[[5, 1]]).all()


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 6], "0 to 5, not .*: index 6 is out of bounds"),
        ([0.5], r"not \[0\.5\]: only integers"),
        ([True], "boolean"),
        (3, "not 3: it is no list"),
    ],
)
def test_bad_indices(indices, message):
    with pytest.raises(DataError, match=f"toy: subset takes a list of positions, .*{message}"):
        make().subset(indices)


def test_arrays_are_read_only_but_the_callers_are_not():
    images = np.zeros((6, 4, 4, 3), np.uint8)
    dataset = make(images=images)
    with pytest.raises(ValueError, match="read-only"):
        dataset.images[0] = 1
    images[0] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(images=np.zeros((6, 4, 4, 3))), r"toy \(train\) images are float64; .* uint8"),
        (dict(images=[1, 2]), "images are list"),
        (dict(images=np.zeros((6, 4, 4), np.uint8)), r"shape \(6, 4, 4\); give \[N, H, W, C\]"),
        (dict(images=np.zeros((6, 4, 4, 4), np.uint8)), "4 channels"),
        (dict(images=np.zeros((6, 3, 8, 8), np.uint8)), "8 channels"),
        (dict(images=np.zeros((0, 4, 4, 3), np.uint8)), "nothing in them"),
        (dict(classes=("a",)), "toy has 1 class; .* two"),
        (dict(classes=("a", "b", "a")), "toy: 2 classes are called 'a'"),
        (dict(labels=np.zeros(6, np.int64)), r"labels are int64; .*int32"),
        (dict(labels=np.zeros((6, 1), np.int32)), r"labels have shape \(6, 1\)"),
        (dict(labels=np.zeros(5, np.int32)), "6 images but 5 labels"),
        (dict(labels=np.array([0, 1, 2, 3, 0, 4], np.int32)), r"labels\[3\] = 3 \(2 such .*0\.\.2"),
        (dict(labels=np.array([0, -1, 2, 1, 0, 0], np.int32)), r"labels\[1\] = -1"),
    ],
)
def test_bad_arrays(change, message):
    with pytest.raises(DataError, match=message):
        make(**change)


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        ("abc", "abc", ""),
        ("012", "abc", ""),  # a network whose classes nobody named
        ("abc", "012", ""),
        ("", "abc", ""),
        ("abd", "abc", "class 2 is 'd' in the network and 'c' in the data: rename"),
        (
            "acb",
            "abc",
            "class 1 is 'c' in the network and 'b' in the data, the same classes in another",
        ),
        ("012", "021", "class 1 is '1' .* another order: sort .*class_order.*, or import it again"),
    ],
)
def test_class_names_of_a_network_and_of_data(theirs, ours, words):
    found = class_mismatch(tuple(theirs), tuple(ours))
    assert re.search(words, found) if words else not found


def test_splits_must_agree():
    with pytest.raises(
        DataError, match=r"test images are \(5, 5, 3\).*train images are \(4, 4, 3\)"
    ):
        Splits(make(), None, make(shape=(5, 5, 3), split="test"))
    with pytest.raises(DataError, match=r"validation has the classes 2 \[a, b\] but train has 3"):
        Splits(make(), make(classes=("a", "b"), split="validation"), make(split="test"))
