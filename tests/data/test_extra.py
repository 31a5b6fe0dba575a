"""Further images from a file: which of them a batch has, how the file is read, and what is wrong with it."""

import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ard_jax.data import extra as extra_lib
from ard_jax.data.base import ArrayDataset, DataError, Splits
from ard_jax.data.extra import ExtraImages, open_extra
from ard_jax.data.train_batches import HostBatch, TrainBatches

SIZE, BATCH = 23, 8  # 3 batches of an epoch


def dataset(size=SIZE):
    """Images that hold their own number."""
    images = np.broadcast_to(np.arange(size, dtype=np.uint8)[:, None, None, None], (size, 4, 4, 1))
    return ArrayDataset(
        images, np.arange(size, dtype=np.int32) % 3, ("a", "b", "c"), "own", "train"
    )


def file(tmp_path, count=50, **changed):
    """Of images 100, 101, ... with their labels."""
    images = np.broadcast_to(np.arange(count)[:, None, None, None] + 100, (count, 4, 4, 1))
    arrays = {"image": images.astype(np.uint8), "label": np.arange(count) % 3} | changed
    path = tmp_path / "extra.npz"
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def load(extra, process=(0, 1), batch_size=BATCH, last_batch="keep"):
    return HostBatch(dataset(), batch_size, 5, last_batch, process, extra)


def test_batches_are_whole_and_hold_their_share(tmp_path):
    batches = load(open_extra(file(tmp_path), dataset(), 0.7, BATCH))
    of_epochs = []
    for epoch in range(2):
        own = []
        for step in range(3 * epoch, 3 * epoch + 3):
            batch = batches(step)
            further = batch["index"] < 0
            assert len(further) == BATCH and further.sum() == 5  # int(0.7 * 8)
            pixels = batch["image"][:, 0, 0, 0].astype(int)
            assert (pixels[further] >= 100).all() and (
                pixels[~further] == batch["index"][~further]
            ).all()
            assert (batch["label"] == np.where(further, pixels - 100, pixels) % 3).all()
            own += pixels[~further].tolist()
        assert len(set(own)) == 9  # the beginning of an order of all
        of_epochs.append(set(own))
    assert of_epochs[0] != of_epochs[1]
    assert any(
        (batches(n)["index"][:3] < 0).any() for n in range(3)
    )  # not one part after the other


def test_the_own_images_of_an_epoch_may_end(tmp_path):
    batches = load(open_extra(file(tmp_path), dataset(), 0.13, BATCH))  # one in 8
    assert [(batches(n)["index"] >= 0).sum() for n in range(3)] == [7, 7, 7]
    batches = load(open_extra(file(tmp_path), dataset(), 0.1, 10), batch_size=10)
    assert [(batches(n)["index"] >= 0).sum() for n in range(3)] == [9, 9, 5]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**40), st.integers(1, 10**9), st.integers(0, 40))
def test_rows_are_a_function_of_seed_and_step(seed, step, count, real):
    class Counted:
        def __len__(self):
            return count

    def rows(n):
        return extra_lib.batch_rows(Counted(), np.arange(real), 40, seed, n)

    first = rows(step)
    assert (first == rows(step)).all() and len(first) == 40
    assert sorted(first[first >= 0]) == list(range(real))
    assert ((-1 - first[first < 0] >= 0) & (-1 - first[first < 0] < count)).all()
    assert real == 40 or count == 1 or (first != rows(step + 1)).any()


def test_hosts_have_parts_of_one_batch_and_a_worker_maps_the_file_again(tmp_path):
    extra = open_extra(file(tmp_path), dataset(), 0.5, BATCH)
    whole = load(extra)(4)
    again = pickle.loads(pickle.dumps(load(extra)))
    assert len(pickle.dumps(extra)) < 1000 and not again.extra.images.flags.owndata
    for name, value in whole.items():
        assert (again(4)[name] == value).all()
        parts = [load(extra, (host, 2))(4)[name] for host in range(2)]
        assert (np.concatenate(parts) == value).all()
    file(tmp_path, count=51)
    with pytest.raises(DataError, match="changed while it was read"):
        pickle.loads(pickle.dumps(extra))


def test_a_run_goes_on_with_the_batches_that_it_would_have_had(tmp_path):
    extra = open_extra(file(tmp_path), dataset(), 0.5, BATCH)

    def batches():
        return TrainBatches(
            dataset(), batch_size=BATCH, seed=5, last_batch="keep", total=7, extra=extra
        )

    through, after = batches(), batches()
    expected = [through.next(step) for step in range(7)]
    state = {"next_index": 4}
    after.restore(4, state)
    for step in range(4, 7):
        found = after.next(step)
        assert all((found[name] == value).all() for name, value in expected[step].items())
    assert after.state() == through.state() == {"next_index": 7}
    through.close(), after.close()


@pytest.mark.parametrize("keys", [("image", "label"), ("images", "labels")])
@pytest.mark.parametrize("shape", [(30, 4, 4), (30, 4, 4, 1)])
def test_files_that_are_taken(tmp_path, keys, shape):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, shape, np.uint8), rng.integers(0, 3, (30, 1))
    np.savez(tmp_path / "x.npz", **{keys[0]: np.asfortranarray(images), keys[1]: labels})
    extra = open_extra(tmp_path / "x.npz", dataset(), 0.5, BATCH)
    assert isinstance(extra, ExtraImages) and not extra.images.flags.owndata and len(extra) == 30
    found = extra.take(np.array([3, 29, 3]))
    assert (found[0] == images.reshape(30, 4, 4, 1)[[3, 29, 3]]).all()
    assert (found[1] == labels[[3, 29, 3], 0]).all() and found[1].dtype == np.int32


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"label": None}, ["no array 'label'"]),
        ({"image": None, "label": np.arange(50)}, ["no array 'image'", "label number 3 is 3"]),
        ({"image": np.zeros((50, 5, 4, 1), np.float32)}, ["images are float32", r"images are (5, 4, 1)"]),
        ({"image": np.zeros((50, 4, 4, 3), np.uint8)}, ["images are (4, 4, 3)"]),
        ({"label": np.full(50, -1)}, ["label number 0 is -1"]),
        ({"label": np.zeros(50)}, ["labels are float64"]),
        ({"label": np.zeros((50, 3), int)}, ["labels are int64 of shape (50, 3)"]),
        ({"label": np.zeros(49, int)}, ["50 images but 49 labels"]),
        (
            {"image": np.full((3, 4, 4, 1), 2, np.uint8), "label": np.zeros(3, int)},
            ["3 images, fewer than the 5"],
        ),
        ({"image": np.ones((50, 4, 4, 1), np.uint8)}, ["images have no value above 1, black in the range"]),
        ({"image": np.zeros((50, 4, 4, 1), np.uint8)}, ["images have no value above 0, black in the range"]),
        ({"label": np.array([None] * 50)}, ["holds objects"]),
    ],
)  # fmt: skip
def test_every_problem_of_a_file_is_told_at_once(tmp_path, changed, words):
    path = file(tmp_path, **changed)
    with pytest.raises(DataError) as error:
        open_extra(path, dataset(), 0.7, BATCH)
    lines = str(error.value).split("\n  - ")
    assert str(path) in lines[0] and len(lines) == 1 + len(words)
    assert all(word in line for word, line in zip(words, lines[1:], strict=True)), lines


def test_files_that_cannot_be_mapped(tmp_path):
    images = np.zeros((9, 4, 4, 1), np.uint8)
    np.savez_compressed(tmp_path / "small.npz", image=images, label=np.zeros(9, int))
    with pytest.raises(DataError, match="image is compressed.*np.savez") as error:
        open_extra(tmp_path / "small.npz", dataset(), 0.5, BATCH)
    assert "label is compressed" in str(error.value)
    with pytest.raises(DataError, match="no such file"):
        open_extra(tmp_path / "none.npz", dataset(), 0.5, BATCH)
    with pytest.raises(DataError, match="it is a folder: give an .npz file in it"):
        open_extra(tmp_path, dataset(), 0.5, BATCH)
    both = dict.fromkeys(("image", "images"), images) | {"label": np.zeros(9, int)}
    np.savez(tmp_path / "both.npz", **both)
    with pytest.raises(DataError, match="both 'image' and 'images': leave one out"):
        open_extra(tmp_path / "both.npz", dataset(), 0.5, BATCH)
    whole = file(tmp_path).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="no .npz file"):
        open_extra(tmp_path / "cut.npz", dataset(), 0.5, BATCH)
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as made:
        made.writestr("image.npy", "no array")
        made.writestr("label.npy", "no array")
    with pytest.raises(DataError, match="no .npz file"):
        open_extra(tmp_path / "text.npz", dataset(), 0.5, BATCH)
    with pytest.raises(DataError, match="less than one image"):
        open_extra(file(tmp_path), dataset(), 0.1, 5)


def test_images_that_are_held_out_are_told(tmp_path, caplog):
    held = (dataset(20).images + 120, dataset(20).labels, ("a", "b", "c"), "own")
    splits = Splits(dataset(), ArrayDataset(*held, "validation"), ArrayDataset(*held, "test"))
    extra_lib.tell_of_held_out(open_extra(file(tmp_path), dataset(), 0.7, BATCH), splits)
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 2 and "20 of 50" in told[0] and "are validation images" in told[0]
    caplog.clear()
    others = open_extra(
        file(tmp_path, image=np.full((50, 4, 4, 1), 200, np.uint8)), dataset(), 0.7, BATCH
    )
    extra_lib.tell_of_held_out(others, splits)
    assert not caplog.records
