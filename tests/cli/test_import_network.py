"""Files of published form -> checkpoints of ours."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from experiments import tiny
from published import NORMALIZATION, run

from ard_jax import data, models
from ard_jax.checkpoints import networks
from ard_jax.cli import import_network
from ard_jax.cli.import_network import ImportingError
from ard_jax.config import parse
from ard_jax.interop import catalogue
from ard_jax.interop.catalogue import CatalogueError, Entry
from ard_jax.interop.import_folder import OutFolderError
from ard_jax.interop.normalization import NormalizationError


@pytest.fixture(scope="module")
def trained():
    return published.network()


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("published") / "teacher.npz", *trained)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A network for 32x32 RGB images, which are what the import expects without data."""
    bundle = models.create("small_cnn")
    path = tmp_path_factory.mktemp("untrained") / "untrained.npz"
    published.write(path, bundle, bundle.init(jax.random.key(0)))
    return path


@pytest.fixture
def experiment(tmp_path):
    return parse.to_experiment(tiny(tmp_path))


def test_normalisation_is_measured(trained, file, tmp_path, experiment, capsys):
    given = json.dumps(NORMALIZATION)
    out = run(file, tmp_path, normalization=given, experiment=experiment)
    text = capsys.readouterr().out
    assert "Clean accuracy on 1000 training images by input normalisation" in text
    assert "WARNING" not in text
    bundle, variables, meta, folder = networks.load(str(out))
    assert folder == str(out.absolute() / "best" / "0")
    jax.tree.map(np.testing.assert_array_equal, variables, trained[1])
    images = jnp.asarray(data.load("digits").test.images, jnp.float32) / 255
    logits = bundle.apply(variables, images, False)[0]
    want = trained[0].apply(trained[1], images, False)[0]
    np.testing.assert_allclose(logits, want, rtol=0, atol=1e-5)  # programs of their own
    assert meta["config"]["net"]["class_names"] == [str(i) for i in range(10)]
    origin = meta["origin"]
    assert origin["file"] == "teacher.npz" and len(origin["sha256"]) == 64
    assert origin["format"] == "npz" and origin["normalization_from"] == "given by --normalization"
    labels = data.load("digits").test.labels
    clean = np.mean(np.argmax(logits, -1)[:100] == labels[:100])  # config.eval.max_examples
    assert origin["test"] == {"data": "digits", "clean": clean, "images": 100}
    assert set(origin["normalization_accuracies"]) == {
        "given by --normalization",
        "raw pixels",
        "pixels in [-1, 1]",
    }


@pytest.fixture
def half(trained, tmp_path):
    """The same network, but for pixels in [-1, 1]: 5 x' + 2 (and another border) for its x'."""
    params, stats = trained[1]["params"], trained[1]["batch_stats"]
    kernel = params["conv1"]["kernel"]
    moved = {"mean": stats["bn1"]["mean"] - 2 * kernel.sum((0, 1, 2)), "var": stats["bn1"]["var"]}
    fitted = {
        "params": params | {"conv1": {"kernel": 5 * kernel}},
        "batch_stats": stats | {"bn1": moved},
    }
    path = tmp_path / "half.npz"
    published.write(path, trained[0], fitted)
    return path


def test_the_clearly_best_is_taken(half, tmp_path, experiment, capsys):
    meta = networks.load(str(run(half, tmp_path, experiment=experiment)))[2]
    assert meta["config"]["net"]["normalization"] == {"mean": [0.5], "std": [0.5]}
    assert meta["origin"]["normalization_from"].startswith("clearly the best of 2")
    assert "clearly the best" in capsys.readouterr().out


def test_a_worse_normalisation_given_by_hand_warns(half, tmp_path, experiment, capsys):
    out = run(half, tmp_path, normalization="none", experiment=experiment)
    assert "pixels in [-1, 1] gives" in capsys.readouterr().out
    assert networks.load(str(out))[0].normalization == "none"


def test_without_data_the_normalisation_must_be_said(untrained, tmp_path):
    with pytest.raises(NormalizationError, match="add --config"):
        run(untrained, tmp_path)
    assert not (tmp_path / "imported").exists()
    meta = networks.load(str(run(untrained, tmp_path, normalization="cifar10")))[2]
    assert meta["origin"]["normalization_from"] == "given by --normalization, not measured"
    assert meta["config"]["net"]["normalization"] == "cifar10"


def test_without_data_the_image_shape_is_assumed(file, tmp_path):
    with pytest.raises(
        ImportingError, match=r"images are taken to be \(32, 32, 3\); give the --config"
    ):
        run(file, tmp_path, normalization="none")


def test_another_class_count(tmp_path, experiment):
    bundle = models.create("small_cnn", 7, (8, 8, 1))
    path = tmp_path / "seven.npz"
    published.write(path, bundle, bundle.init(jax.random.key(0)))
    with pytest.raises(
        ImportingError, match="seven.npz is a network for 7 classes, but digits has 10"
    ):
        run(path, tmp_path, experiment=experiment)


def test_taken_folders(untrained, tmp_path, capsys):
    other = tmp_path / "run"
    other.mkdir()
    (other / "metrics.jsonl").touch()
    for force in (False, True):
        with pytest.raises(OutFolderError, match="is not an imported network"):
            run(untrained, tmp_path, out=str(other), normalization="none", force=force)
    out = run(untrained, tmp_path, normalization="none")
    with pytest.raises(OutFolderError, match="add --force"):
        run(untrained, tmp_path, normalization="none")
    assert run(untrained, tmp_path, normalization="cifar10", force=True) == out
    assert networks.load(str(out))[0].normalization == "cifar10"
    moved = tmp_path / "imported.replaced-1"
    assert networks.load(str(moved))[0].normalization == "none"
    assert str(moved) in capsys.readouterr().out
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]
    (tmp_path / "empty").mkdir()
    assert run(untrained, tmp_path, out=str(tmp_path / "empty"), normalization="none")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"out": ""}, "--out is missing"),
        ({"file": ""}, "--file is missing"),
        ({"file": "absent.pt"}, "--file=absent.pt is not a file"),
        ({"download": True}, "--download with --file=.*: the file is here; leave one of them out"),
        ({"source": "nobody"}, "not in the catalogue"),
        ({"normalization": "mnist"}, "choose one of"),
        ({"normalization": '{"mean": [0.5], "std": [0.5]}'}, "3 channel"),
        ({"model": "resnet5"}, "unknown model 'resnet5'"),
    ],
)
def test_mistakes(untrained, tmp_path, kwargs, message):
    kwargs = {"file": str(untrained), "out": str(tmp_path / "imported"), "model": "small_cnn",
              "normalization": "none"} | kwargs  # fmt: skip
    with pytest.raises(ValueError, match=message):
        import_network.run(**kwargs)
    assert not (tmp_path / "imported").exists()


@pytest.fixture
def entry(file, monkeypatch):
    """Puts a made-up teacher into the catalogue; returns a function that changes it."""

    def put(**values):
        from ard_jax.interop import files

        base = dict(name="ours", role="clean", dataset="digits", num_classes=10, model="small_cnn",
                    image_shape=(8, 8, 1), page="https://page", normalization=NORMALIZATION,
                    file="teacher.npz", sha256=files.sha256_of(file), sha256_from="the file",
                    clean=97.0, numbers_from="the page")  # fmt: skip
        made = {"ours": Entry(**base | values)}
        monkeypatch.setattr(catalogue, "entries", lambda: made)

    put()
    return put


def test_catalogue_teacher(entry, file, tmp_path, experiment, capsys):
    out = run(file, tmp_path, source="ours", model="", experiment=experiment)
    text = capsys.readouterr().out
    assert "SHA-256 matches" in text and "published 97.00%, measured" in text
    meta = networks.load(str(out))[2]
    assert meta["config"]["net"]["normalization"] == NORMALIZATION
    assert meta["origin"]["source"] == "ours" and meta["origin"]["published"]["clean"] == 97.0


def test_catalogue_teacher_without_data(entry, file, tmp_path):
    out = run(file, tmp_path, source="ours", model="")
    assert networks.load(str(out))[2]["config"]["net"]["normalization"] == NORMALIZATION


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "00000000"}, "its SHA-256 checksum is"),
        ({"clean": 60.0}, "published 60.00%, measured"),
    ],
)
def test_a_file_that_is_not_the_catalogues(
    entry, file, tmp_path, experiment, capsys, change, message
):
    entry(**change)
    arguments = {"source": "ours", "model": "", "experiment": experiment}
    with pytest.raises(CatalogueError, match=message):
        run(file, tmp_path, **arguments)
    assert not (tmp_path / "imported").exists()
    out = run(file, tmp_path, force=True, **arguments)
    assert out.is_dir() and "WARNING (--force): " in capsys.readouterr().out


def test_looks_for_the_file(entry, file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARD_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(ImportingError, match="not in .*cache/teachers; get it by hand from"):
        run("", tmp_path, source="ours", model="")
    entry(url="https://host/teacher.npz")
    with pytest.raises(ImportingError, match="add --download to get it from https://host"):
        run("", tmp_path, source="ours", model="")
    asked = []

    def fetch(url, target, *, sha256):
        asked.append((url, sha256))
        target.parent.mkdir(parents=True)
        target.write_bytes(file.read_bytes())
        return target

    monkeypatch.setattr(import_network.download, "fetch", fetch)
    assert run("", tmp_path, source="ours", model="", download=True).is_dir()
    assert asked == [("https://host/teacher.npz", catalogue.get("ours").sha256)]
    run("", tmp_path, source="ours", model="", out=str(tmp_path / "again"))
    assert f"Found {tmp_path / 'cache' / 'teachers' / 'teacher.npz'}" in capsys.readouterr().out


def test_command_line(file, main):
    code, listed, _ = main("--mode=import", "--source=list")
    assert code == 0 and "trades_wrn34_10" in listed
    code, _, wrong = main("--mode=import", f"--file={file}", "--out=", "--model=small_cnn")
    assert code == 2 and wrong.startswith("ERROR: --out is missing")
