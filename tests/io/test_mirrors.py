"""Weights & Biases and MLflow, without a network: where their packages are missing the tests skip."""

import warnings

import numpy as np
import pytest
from PIL import Image

from ard_jax.io import mirrors
from ard_jax.io.metric_writer import MetricWriter, read_metrics
from ard_jax.io.mirrors import Tracking

CONFIG = {"name": "r", "eps": 0.5, "data": {"name": "digits"}, "boundaries": [1, 2], "none": None}
PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)


def write(workdir, tracking, steps, resume_step):
    with MetricWriter(
        workdir, tensorboard=False, resume_step=resume_step, tracking=tracking
    ) as writer:
        for step in steps:
            writer.write({"kind": "train", "step": step, "epoch": 1, "time": 1e9, "loss": 1 / step})
        writer.write({"kind": "event", "step": 1, "event": "saved"})
        writer.mirror({"kind": "test", "net": "student (best)", "step": 4, "clean": 0.5, "x": None})
        writer.image("examples", PIXELS, 4)


def test_configurations_are_flattened():
    assert mirrors.flat(CONFIG) == {"name": "r", "eps": 0.5, "data.name": "digits", "boundaries": "[1, 2]",
                                    "none": "None"}  # fmt: skip


class Failing:
    """A place that can be reached once."""

    where = "there"

    def __init__(self):
        self.records, self.closed = [], False

    def write(self, record):
        if self.records:
            raise OSError(5, "no network")
        self.records.append(record)

    def close(self):
        self.closed = True


def test_a_mirror_that_fails_is_left_out_alone(tmp_path, monkeypatch, caplog):
    good, bad = Failing(), Failing()
    good.write = good.records.append

    def unreachable():
        raise OSError(5, "no key")

    makers = [("there", lambda: bad), ("here", lambda: good), ("nowhere", unreachable)]
    monkeypatch.setattr(mirrors, "wanted", lambda *_: makers)
    with MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write({"kind": "train", "step": step})
        assert bad.closed and not good.closed
    assert good.closed and [r["step"] for r in good.records] == [1, 2, 3]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "nowhere cannot be written (no key): going on without it",
        "there cannot be written (no network): going on without it",
    ]


@pytest.fixture
def client(tmp_path, monkeypatch):
    """An MLflow client of a file store; importing it takes seconds, where it is."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, of its dependencies
        tracking = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed")
        yield tracking.MlflowClient()


def test_mlflow_has_the_same_run_after_a_restart(tmp_path, client):
    tracking = Tracking(name="r-seed0", config=CONFIG, mlflow="robust")
    write(tmp_path, tracking, (1, 2, 3), 0)
    write(tmp_path, tracking, (3, 4), 2)
    experiment = client.get_experiment_by_name("robust")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "r-seed0" and run.info.status == "FINISHED"
    assert run.data.params == {k: str(v) for k, v in mirrors.flat(CONFIG).items()}
    assert run.data.metrics == {"train/loss": 0.25, "test/student_best/clean": 0.5}
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [
        1,
        2,
        3,
        3,
        4,
    ]
    assert client.list_artifacts(run.info.run_id, "images")
    write(tmp_path, tracking, (1,), 0)  # anew in the same folder
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_mlflow_without_the_run_is_left_out(tmp_path, client, caplog):
    (tmp_path / "mlflow_id").write_text("f" * 32)  # of another store
    write(tmp_path, Tracking(mlflow="robust"), (3,), 2)
    assert "MLflow cannot be written (Run" in caplog.text
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [3, 1]


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracking = Tracking(name="r-seed0", config=CONFIG, wandb="robust")
    with MetricWriter(tmp_path, tensorboard=False, resume_step=0, tracking=tracking) as writer:
        writer.write({"kind": "train", "step": 2, "epoch": 1, "loss": 0.5})
        writer.write({"kind": "train", "step": 1, "epoch": 1, "loss": 0.25})  # again, after a kill
        run = wandb.run
        assert (run.name, run.project, run.config["data"]) == (
            "r-seed0",
            "robust",
            {"name": "digits"},
        )
        assert run.id == (tmp_path / "wandb_id").read_text()
        assert (run.summary["step"], run.summary["train/loss"]) == (1, 0.25)
        writer.image("examples", PIXELS, 4)
    assert wandb.run is None
    (image,) = (tmp_path / "wandb").glob(f"offline-run-*-{run.id}/files/media/images/examples*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(image)), PIXELS[..., 0])
