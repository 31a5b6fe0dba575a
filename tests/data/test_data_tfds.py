"""CIFAR from a small array_record directory of the form that TFDS writes, made here."""

import importlib.util
import io
import json
import shlex
import shutil
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from ard_jax import data
from ard_jax.data.sources import tfds as tfds_source

pytest.importorskip("array_record")
SHARDS, PER_SHARD = 2, 5


def record(example_id, label, pixels):
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    example = tf_example_pb2.Example()
    features = example.features.feature
    features["id"].bytes_list.value.append(example_id.encode())
    features["image"].bytes_list.value.append(buffer.getvalue())
    features["label"].int64_list.value.append(label)
    return example.SerializeToString()


def write_prepared(root, damage_image=None):
    """A prepared cifar10 of 10 + 10 examples in shuffled order; returns the pixels in id order."""
    from array_record.python.array_record_module import ArrayRecordWriter

    directory = root / "cifar10" / "3.0.2"
    directory.mkdir(parents=True)

    def feature(name, **content):
        return {"pythonClassName": f"tensorflow_datasets.core.features.{name}", **content}

    image = {"dtype": "uint8", "shape": {"dimensions": ["32", "32", "3"]}}
    features = {
        "id": feature("text_feature.Text", text={}),
        "image": feature("image_feature.Image", image=image),
        "label": feature("class_label_feature.ClassLabel", classLabel={"numClasses": "10"}),
    }
    top = feature("features_dict.FeaturesDict", featuresDict={"features": features})
    (directory / "features.json").write_text(json.dumps(top))
    (directory / "label.labels.txt").write_text("".join(f"class{i}\n" for i in range(10)))
    splits, all_pixels = [], {}
    for split in ("train", "test"):
        rng = np.random.default_rng(len(split))
        n = SHARDS * PER_SHARD
        pixels = all_pixels[split] = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
        order = rng.permutation(n)
        for shard in range(SHARDS):
            name = f"cifar10-{split}.array_record-{shard:05d}-of-{SHARDS:05d}"
            writer = ArrayRecordWriter(str(directory / name), "group_size:1")
            for i in order[shard * PER_SHARD : (shard + 1) * PER_SHARD]:
                content = record(f"{split}_{i:05d}", int(i), pixels[i])
                if damage_image == (split, i):
                    at = content.index(b"IDAT") + 200
                    content = content[:at] + bytes(100) + content[at + 100 :]
                writer.write(content)
            writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"filepathTemplate": template, "name": split, "numBytes": "1000",
                       "shardLengths": [str(PER_SHARD)] * SHARDS})  # fmt: skip
    info = {"fileFormat": "array_record", "name": "cifar10", "version": "3.0.2", "splits": splits}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    return all_pixels


def set_tensorflow(monkeypatch, found):
    """Makes the search for TensorFlow end with it."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: found if n == "tensorflow" else real(n, *a)
    )


@pytest.fixture
def no_tensorflow(monkeypatch):
    set_tensorflow(monkeypatch, None)


def test_original_order_and_the_second_load_does_not_decode(tmp_path, cache_dir, monkeypatch):
    pixels = write_prepared(tmp_path)
    first = data.load("cifar10", tmp_path)
    monkeypatch.setattr(tfds_source, "_decode_split", None)
    for splits in (first, data.load("cifar10", str(tmp_path))):
        assert (splits.train.images == pixels["train"]).all()
        assert (splits.test.images == pixels["test"]).all()
        assert splits.train.labels.tolist() == list(range(10))
        assert splits.test.class_names == tuple(f"class{i}" for i in range(10))
    stored = sorted(p.name.rsplit("-", 1)[0] for p in cache_dir.iterdir())
    assert stored == ["cifar10-test", "cifar10-train"]


@pytest.mark.parametrize("exists", [True, False])
def test_not_prepared_gives_the_command(tmp_path, exists, no_tensorflow):
    root = tmp_path / "my data"
    if exists:
        root.mkdir()
    with pytest.raises(data.DataError) as error:
        data.load("cifar100", root)
    message, command = str(error.value).split("\n")
    assert str(root) in message
    assert ("cifar100 is not prepared" if exists else "no such directory") in message
    words = shlex.split(command)
    assert words[:3] == ["pip", "install", "ard_jax[tfds]"] and words[4:6] == ["python", "-c"]
    compile(words[6], "command", "exec")
    assert f"tfds.builder('cifar100', data_dir='{root}', file_format='array_record')" in words[6]


def fake_builder(monkeypatch, prepare):
    """In place of TensorFlow: a builder that prepares the directory this way."""
    import tensorflow_datasets as tfds

    set_tensorflow(monkeypatch, True)
    builder = mock.Mock(return_value=SimpleNamespace(download_and_prepare=prepare))
    monkeypatch.setattr(tfds, "builder", builder)
    return builder


def test_prepares_where_tensorflow_is_installed(tmp_path, monkeypatch):
    fake = fake_builder(monkeypatch, lambda: write_prepared(tmp_path))
    for _ in range(2):
        assert len(data.load("cifar10", tmp_path).train) == 10
    options = {"data_dir": str(tmp_path), "file_format": "array_record"}
    fake.assert_called_once_with("cifar10", **options)


def test_failed_preparation_and_a_mistyped_path_that_starts_none(tmp_path, monkeypatch):
    fake = fake_builder(monkeypatch, mock.Mock(side_effect=OSError("no network")))
    with pytest.raises(data.DataError, match="no such directory.*mkdir -p"):
        data.load("cifar10", tmp_path / "typo")
    fake.assert_not_called()
    with pytest.raises(data.DataError, match=r"could not be prepared \(OSError: no network\)"):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_damaged_shards(tmp_path, split):
    from array_record.python.array_record_module import ArrayRecordWriter

    write_prepared(tmp_path)
    shard = tmp_path / f"cifar10/3.0.2/cifar10-{split}.array_record-00001-of-00002"
    content = shard.read_bytes()
    flipped = bytearray(content)
    flipped[8000] ^= 255  # inside a compressed image; the file is mostly padding
    writer = ArrayRecordWriter(str(tmp_path / "short"), "group_size:1")
    writer.write(b"")
    writer.close()
    cut = [content[: int(len(content) * part)] for part in (0.0, 0.5, 0.9)]
    for damaged in (*cut, flipped, (tmp_path / "short").read_bytes()):
        shard.write_bytes(damaged)
        with pytest.raises(data.DataError) as error:
            data.load("cifar10", tmp_path)
        assert str(error.value).startswith(f"{shard} is truncated or damaged")
        assert "prepare it again:\n  pip install" in str(error.value)
    shard.unlink()
    with pytest.raises(data.DataError, match="00001-of-00002 is missing"):
        data.load("cifar10", tmp_path)


def test_damaged_image_is_named_by_its_id(tmp_path):
    write_prepared(tmp_path, damage_image=("test", 3))
    message = r"example test_00003 of the test split in .* cannot be decoded"
    with pytest.raises(data.DataError, match=message):
        data.load("cifar10", tmp_path)


def test_label_out_of_range(tmp_path):
    write_prepared(tmp_path)
    names = tmp_path / "cifar10/3.0.2/label.labels.txt"
    names.write_text("".join(f"class{i}\n" for i in range(8)))
    features = tmp_path / "cifar10/3.0.2/features.json"
    features.write_text(features.read_text().replace('"numClasses": "10"', '"numClasses": "8"'))
    with pytest.raises(data.DataError, match=r"cifar10 in .*labels\[8\] = 8 .*0\.\.7"):
        data.load("cifar10", tmp_path)


def test_other_bad_directories(tmp_path, no_tensorflow):
    write_prepared(tmp_path)
    version = tmp_path / "cifar10/3.0.2"
    with pytest.raises(data.DataError, match=f"here probably {tmp_path}$"):
        data.load("cifar10", version)
    info = version / "dataset_info.json"
    text = info.read_text()
    info.write_text(text.replace('"array_record"', '"tfrecord"'))
    with pytest.raises(data.DataError, match=r"3\.0\.2 is prepared as tfrecord"):
        data.load("cifar10", tmp_path)
    shutil.copytree(version, tmp_path / "cifar10/3.0.1")  # an older one beside it does not matter
    info.write_text(text)
    assert len(data.load("cifar10", tmp_path).train) == 10
    info.write_text(text[:50])
    with pytest.raises(data.DataError, match=r"dataset_info\.json cannot be read"):
        data.load("cifar10", tmp_path)
    info.write_text(text)
    (version / "features.json").unlink()
    with pytest.raises(data.DataError, match=r"features\.json cannot be used"):
        data.load("cifar10", tmp_path)
