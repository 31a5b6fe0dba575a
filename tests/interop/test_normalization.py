import numpy as np
import pytest

from ard_jax.interop import normalization as fn
from ard_jax.interop.normalization import Candidate, NormalizationError

RAW, CIFAR = Candidate("raw", "none"), Candidate("CIFAR-10", "cifar10")
IMAGENET = Candidate("ImageNet", "imagenet")


def right(*wrong, count=1000):
    """bool [count], False in the given ranges."""
    flags = np.ones(count, bool)
    for begin, end in wrong:
        flags[begin:end] = False
    return flags


def own(candidate):
    return Candidate(candidate.title, candidate.normalization, own=True)


def test_the_best_when_it_is_clearly_ahead():
    # 10 images for the best, none for the other: 10 > 3 sqrt(10) = 9.49.
    chosen, how = fn.choose([RAW, CIFAR], [right((0, 60)), right((10, 60))], 3, 10)
    assert chosen is CIFAR and how == "clearly the best of 2 on 1000 training images"
    # 9 images: 9 = 3 sqrt(9) is not more than three standard errors.
    with pytest.raises(NormalizationError, match="do not tell these apart.*CIFAR-10; raw"):
        fn.choose([RAW, CIFAR], [right((0, 59)), right((9, 59))], 3, 10)


def test_images_that_only_one_gets_right_count_on_both_sides():
    # 30 ahead of 10: 20 > 3 sqrt(40) = 18.97; 30 ahead of 11: 19 < 3 sqrt(41) = 19.2.
    assert fn.choose([RAW, CIFAR], [right((0, 30)), right((30, 40))], 3, 10)[0] is CIFAR
    with pytest.raises(NormalizationError):
        fn.choose([RAW, CIFAR], [right((0, 30)), right((30, 41))], 3, 10)


def test_the_source_decides_among_alike_ones():
    correct = [right((0, 500)), right((0, 50)), right((0, 48))]
    chosen, how = fn.choose([RAW, own(CIFAR), IMAGENET], correct, 3, 10)
    assert chosen.title == "CIFAR-10" and "do not tell it from ImageNet" in how
    with pytest.raises(NormalizationError, match="CIFAR-10.*--normalization=none"):
        fn.choose([RAW, CIFAR, IMAGENET], correct, 3, 10)


@pytest.mark.parametrize("candidate", fn.candidates(3), ids=lambda c: c.title)
def test_which_ones_are_alike(candidate):
    # Raw pixels are far from CIFAR's constants: which one it is makes a difference under attack.
    alike = "raw" not in candidate.title and "[-1, 1]" not in candidate.title
    tried = [own(CIFAR), candidate]
    correct = [right((0, 50)), right((0, 49))]
    if alike:
        assert fn.choose(tried, correct, 3, 10)[0].title == "CIFAR-10"
    else:
        with pytest.raises(NormalizationError, match="do not tell these apart"):
            fn.choose(tried, correct, 3, 10)


def test_measurement_overrules_the_source():
    chosen, how = fn.choose([RAW, own(CIFAR)], [right((0, 50)), right((0, 500))], 3, 10)
    assert chosen is RAW and how.endswith("against CIFAR-10")


def test_not_better_than_chance():
    # 10 classes: chance 10 %, three standard errors on 1,000 images are 2.8 points.
    with pytest.raises(NormalizationError, match="None of these is better than chance"):
        fn.choose([RAW], [right((0, 873))], 3, 10)
    assert fn.choose([RAW], [right((0, 871))], 3, 10)[0] is RAW


def test_candidates():
    assert [c.title for c in fn.candidates(3)] == [
        "raw pixels", "CIFAR-10", "CIFAR-100", "ImageNet", "CIFAR-10, smaller std", "pixels in [-1, 1]",
    ]  # fmt: skip
    assert [c.title for c in fn.candidates(1)] == ["raw pixels", "pixels in [-1, 1]"]
    assert not any(c.own for c in fn.candidates(3))


def test_the_sources_own_is_a_candidate_once():
    named = fn.candidates(3, own="imagenet")
    assert len(named) == 6 and named[0].title == "ImageNet (the source's own)" and named[0].own
    mean, std = [0.507, 0.4865, 0.4409], [0.2673, 0.2564, 0.2761]  # chenyaofo's CIFAR-100
    nearly = fn.candidates(3, own={"mean": mean, "std": std})
    assert len(nearly) == 6 and nearly[0].normalization["mean"] == mean
    new = fn.candidates(3, own={"mean": [0.1] * 3, "std": [1.0] * 3})
    assert len(new) == 7 and new[0].title == "stated (the source's own)"
    given = fn.candidates(3, own="cifar10", given="none")  # comes before it
    assert given[0].title == "given by --normalization" and len(given) == 6
    with pytest.raises(ValueError, match="1 channel"):
        fn.candidates(1, own="cifar10")


def test_warning_about_a_given_one_that_is_clearly_worse():
    good, bad = right((0, 50)), right((0, 500))
    assert "50.00%, but CIFAR-10 gives 95.00%" in fn.check_given([RAW, CIFAR], [bad, good])
    assert fn.check_given([RAW, CIFAR], [good, bad]) == ""
    assert fn.check_given([RAW, CIFAR], [right((0, 52)), good]) == ""


def test_parse():
    assert fn.parse("cifar10") == "cifar10"
    assert fn.parse('{"mean": [0.5], "std": [0.25]}') == {"mean": [0.5], "std": [0.25]}
    with pytest.raises(NormalizationError, match="--normalization="):
        fn.parse("{mean: 0.5}")


def test_table_is_sorted():
    lines = fn.table([RAW, CIFAR], [right((0, 500)), right((0, 50))]).splitlines()
    assert lines[0].startswith("Clean accuracy on 1000 training images")
    assert "95.00%  CIFAR-10" in lines[1] and "50.00%  raw" in lines[2]
