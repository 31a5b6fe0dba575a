import numpy as np
import pytest


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """Tests never touch the user's cache."""
    path = tmp_path / "cache"
    monkeypatch.setenv("ARD_CACHE_DIR", str(path))
    return path


@pytest.fixture
def write_image():
    """write_image(path, shape=(8, 8, 3), seed=0, mode=None) -> the pixels it wrote."""
    from PIL import Image

    def write(path, shape=(8, 8, 3), seed=0, mode=None):
        pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels[..., 0] if shape[-1] == 1 else pixels)
        (image.convert(mode) if mode else image).save(path)
        return pixels

    return write


@pytest.fixture
def folder(tmp_path, write_image):
    """Train 2 x 20, test 2 x 3, RGB 8x6; every image is another."""
    for part, count in (("train", 20), ("test", 3)):
        for c, name in enumerate(("cat", "dog")):
            for i in range(count):
                seed = 1000 * len(part) + 100 * c + i
                write_image(tmp_path / "set" / part / name / f"{i:02}.png", (8, 6, 3), seed)
    return tmp_path / "set"
