import hashlib
import re

import pytest

from ard_jax import models
from ard_jax.interop import catalogue
from ard_jax.interop.catalogue import Entry

ENTRIES = list(catalogue.entries().values())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_entry(entry):
    assert entry.role in ("robust", "clean")
    assert entry.page.startswith("https://")
    options = {"normalization": entry.normalization, **entry.kwargs}
    bundle = models.create(entry.model, entry.num_classes, entry.image_shape, **options)
    assert bundle.num_classes == {"cifar10": 10, "cifar100": 100}[entry.dataset]
    assert entry.clean is None or 50 < entry.clean < 100  # percent
    assert (entry.robust is None) == (entry.attack is None)
    assert entry.robust is None or 0 < entry.robust < entry.clean
    assert entry.numbers_from or entry.clean is None
    assert bool(entry.sha256) == bool(entry.sha256_from)
    assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}", entry.sha256)
    if entry.sha256_from == "file name":
        assert f"-{entry.sha256}." in entry.file
    if entry.url:
        assert entry.url.startswith("https://") and entry.url.endswith("/" + entry.file)


def test_names_are_unique_and_shown():
    text = catalogue.table()
    raw = (catalogue.Path(catalogue.__file__).with_name("catalogue.json")).read_text()
    assert raw.count('"name"') == len(ENTRIES) >= 15
    for entry in ENTRIES:
        assert entry.name in text and (entry.file or "not known") in text
    assert "84.92" in text and "AutoAttack, linf 0.031" in text  # TRADES' WRN-34-10


def test_unknown_name_names_the_nearest():
    with pytest.raises(catalogue.CatalogueError, match="akamaster_resnet56.*--source=list"):
        catalogue.get("akamaster_resnet_56")


def entry(**values):
    base = dict(name="x", role="clean", dataset="cifar10", num_classes=10, model="resnet20")
    return Entry(image_shape=(32, 32, 3), page="https://x", **base | values)


def test_checksum(tmp_path):
    sha = hashlib.sha256(b"weights").hexdigest()
    for right in (sha, sha[:8]):
        known = entry(sha256=right, sha256_from="a")
        assert "matches" in catalogue.check_sha256(known, sha, tmp_path)
    assert catalogue.check_sha256(entry(), sha, tmp_path) == ""
    with pytest.raises(catalogue.CatalogueError, match=f"{sha}.*00000000.*--force"):
        catalogue.check_sha256(entry(sha256="00000000", sha256_from="a"), sha, tmp_path)
    # A second-hand checksum may be wrong itself.
    doubtful = entry(sha256="00000000", sha256_from="second-hand: somebody")
    assert catalogue.check_sha256(doubtful, sha, tmp_path).startswith("WARNING")


def test_clean_accuracy():
    published = entry(clean=90.0)
    assert "within 1%" in catalogue.check_clean(published, 0.891, 10_000)
    assert "within 1%" in catalogue.check_clean(published, 0.909, 10_000)
    for wrong in (0.889, 0.911):
        with pytest.raises(catalogue.CatalogueError, match="90.00%.*--normalization.*--force"):
            catalogue.check_clean(published, wrong, 10_000)
    assert catalogue.check_clean(entry(), 0.1, 10_000) == ""
    # 400 images: standard error sqrt(.9 * .1 / 400) = 1.5 points, so 1 + 2 * 1.5 = 4 points are allowed.
    assert "standard error 1.50% of 400 images" in catalogue.check_clean(published, 0.861, 400)
    with pytest.raises(catalogue.CatalogueError, match="standard error 1.50%"):
        catalogue.check_clean(published, 0.859, 400)
