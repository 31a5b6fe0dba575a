import numpy as np
import pytest

from ard_jax.data import batching
from ard_jax.data.base import ArrayDataset


def toy(n):
    images = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 1), np.uint8)
    return ArrayDataset(images, (np.arange(n) % 3).astype(np.int32), tuple("abc"), "toy", "train")


@pytest.mark.parametrize(("n", "batch"), [(10, 10), (10, 3), (97, 8), (64, 16), (7, 1)])
@pytest.mark.parametrize(("last", "seed"), [("keep", 0), ("keep", 2**64 - 1), ("drop", 0)])
def test_an_epoch_has_each_example_at_most_once_and_with_keep_all(n, batch, last, seed):
    rest = [n % batch] if last == "keep" and n % batch else []
    steps = batching.steps_per_epoch(n, batch, last)
    for epoch in (0, 1, 5):
        batches = [
            batching.batch_indices(n, batch, seed, epoch * steps + i, last) for i in range(steps)
        ]
        assert [len(b) for b in batches] == [batch] * (n // batch) + rest
        seen = np.concatenate(batches).tolist()
        assert len(set(seen)) == len(seen) and set(seen) <= set(range(n))
        assert batches[0].dtype == np.int64


def test_epochs_and_seeds_differ_and_so_does_what_is_dropped():
    orders = {
        tuple(batching.batch_indices(50, 50, seed, epoch))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16
    left = [set(range(10)) - set(batching.batch_indices(10, 9, 0, e).tolist()) for e in range(20)]
    assert len(set(map(frozenset, left))) > 3


def test_any_step_can_be_asked_for_first_and_the_cached_order_cannot_be_spoilt():
    forward = [batching.batch_indices(50, 8, 3, s, "keep") for s in range(30)]
    batching._epoch_order.cache_clear()
    for step in (*reversed(range(30)), 0):
        found = batching.batch_indices(50, 8, 3, step, "keep")
        np.testing.assert_array_equal(found, forward[step])
        found[:] = 0


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_together_make_the_same_global_batch(hosts):
    whole = batching.batch_indices(52, 16, 0, 1)
    parts = [batching.host_slice(whole, p, hosts) for p in range(hosts)]
    assert len({len(p) for p in parts}) == 1
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_get_batch():
    dataset = toy(20)
    batch = batching.get_batch(dataset, np.array([3, 17, 3]))
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
        "image": ("uint8", (3, 4, 4, 1)),
        "label": ("int32", (3,)),
        "index": ("int32", (3,)),
    }
    assert (batch["image"] == dataset.images[[3, 17, 3]]).all()
    assert batch["label"].tolist() == [0, 2, 0] and batch["index"].tolist() == [3, 17, 3]


@pytest.mark.parametrize(("n", "batch", "hosts"), [(10, 4, 1), (8, 8, 2), (3, 8, 4)])
def test_eval_batches_cover_each_example_once_in_order(n, batch, hosts):
    dataset = toy(n)
    per_host = [list(batching.eval_batches(dataset, batch, p, hosts)) for p in range(hosts)]
    assert {len(batches) for batches in per_host} == {-(-n // batch)}
    seen = []
    for parts in zip(*per_host, strict=True):
        for part in parts:
            assert part["image"].shape == (batch // hosts, 4, 4, 1)
            assert part["mask"].dtype == bool and part["index"].dtype == np.int32
            real = part["mask"]
            seen += part["index"][real].tolist()
            assert (part["image"][real] == dataset.images[part["index"][real]]).all()
            assert (part["label"][real] == dataset.labels[part["index"][real]]).all()
            assert not part["image"][~real].any() and (part["index"][~real] == -1).all()
    assert seen == list(range(n))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: batching.steps_per_epoch(5, 6), "batch_size=6 is more than the 5 .*'keep'"),
        (lambda: batching.batch_indices(5, 6, 0, 0), "batch_size=6"),
        (lambda: batching.steps_per_epoch(5, 0), "at least 1"),
        (lambda: batching.steps_per_epoch(5, 2, "pad"), "last_batch='pad': choose"),
        (lambda: batching.batch_indices(5, 2, 0, -1), "step=-1"),
        (lambda: batching.batch_indices(5, 2, -1, 0), "seed=-1"),
        (lambda: batching.host_slice(np.arange(6), 0, 4), "6 examples does not divide by 4"),
        (lambda: batching.host_slice(np.arange(6), 2, 2), r"process_index=2 is not in 0\.\.1"),
        (lambda: batching.eval_batches(toy(5), 6, 0, 4), "6 examples does not divide by 4"),
        (lambda: batching.eval_batches(toy(5), 0), "batch_size=0"),
        (lambda: batching.check_sharding(100, 30, 8), "batch_size=30 does not divide by 8 .* 24"),
        (lambda: batching.check_sharding(100, 16, 8, "keep"), "100 mod 16 = 4 .*'drop'"),
        (lambda: batching.check_sharding(10, 16, 8), "more than the 10"),
    ],
)
def test_bad_sizes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_check_sharding_accepts_what_divides():
    for last in ("drop", "keep"):
        batching.check_sharding(50000, 128, 16, last)  # the paper's CIFAR: a last batch of 80
