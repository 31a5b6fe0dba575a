"""Metrics files, TensorBoard mirror and progress display."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest

from ard_jax.io import files, progress
from ard_jax.io.metric_writer import MetricWriter, read_metrics
from ard_jax.io.mirrors import Tracking
from ard_jax.io.progress import Progress


def _lines(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def _strict(line):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_records_come_back_in_order(tmp_path):
    records = [
        {"kind": "train", "step": 1, "loss": 0.5, "epoch": 0},
        {"kind": "eval", "step": 1, "split": "test", "net": "student", "clean": 0.25},
        {"kind": "event", "step": 1, "event": "saved", "best": True},
    ]
    with MetricWriter(tmp_path / "new" / "folder", tensorboard=False) as writer:
        for record in records:
            writer.write(record)
    assert read_metrics(tmp_path / "new" / "folder" / "metrics.jsonl") == records


def test_each_record_is_on_disk_at_once(tmp_path):
    writer = MetricWriter(tmp_path, tensorboard=False)
    writer.write({"kind": "train", "step": 1})
    assert len(_lines(tmp_path)) == 1
    writer.close()
    writer.close()
    writer.write({"kind": "train", "step": 2})  # after the end: nothing, not an error
    assert len(_lines(tmp_path)) == 1


def test_nan_inf_and_arrays_stay_valid_json(tmp_path):
    record = {
        "kind": "train",
        "step": np.int64(3),
        "loss": float("nan"),
        "up": np.float32("inf"),
        "down": -np.inf,
        "half": np.float32(0.5),
        "scalar": np.array(2.0),
        "flag": np.bool_(True),
        "list": np.array([1.0, np.nan]),
        "where": tmp_path,
    }
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(record)
    plain = _strict(_lines(tmp_path)[0])
    assert plain["loss"] == "nan" and plain["up"] == "inf" and plain["down"] == "-inf"
    assert plain["half"] == 0.5 and plain["scalar"] == 2.0 and plain["step"] == 3
    assert plain["flag"] is True and plain["list"] == [1.0, "nan"]
    assert plain["where"] == str(tmp_path)
    back = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert np.isnan(back["loss"]) and back["up"] == np.inf and back["down"] == -np.inf


def _write_run(workdir):
    with MetricWriter(workdir, tensorboard=False) as writer:
        for step in range(1, 7):
            writer.write({"kind": "train", "step": step, "loss": 1.0 / step})
            if step % 2 == 0:
                writer.write({"kind": "eval", "step": step, "net": "student", "clean": 0.5})
        writer.write({"kind": "event", "step": 6, "event": "saved"})


def test_resume_drops_what_will_be_done_again(tmp_path):
    _write_run(tmp_path)
    with MetricWriter(tmp_path, tensorboard=False, resume_step=4) as writer:
        writer.write({"kind": "train", "step": 5, "loss": 9.0})
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4, 5]
    assert [r["step"] for r in records if r["kind"] == "eval"] == [2, 4]
    assert [r["event"] for r in records if r["kind"] == "event"] == ["saved"]
    assert records[-1]["loss"] == 9.0
    assert not list(tmp_path.glob("*.tmp"))


def test_resume_at_zero_starts_over_and_none_keeps_everything(tmp_path):
    _write_run(tmp_path)
    MetricWriter(tmp_path, tensorboard=False).close()
    assert len(_lines(tmp_path)) == 10
    MetricWriter(tmp_path, tensorboard=False, resume_step=0).close()
    assert [r["kind"] for r in read_metrics(tmp_path / "metrics.jsonl")] == ["event"]


@pytest.mark.parametrize("resume_step", [None, 6])
def test_truncated_last_line_is_dropped_at_every_cut(tmp_path, resume_step):
    _write_run(tmp_path)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last, len(whole) + 1):
        path.write_bytes(whole[:cut])
        # Without its newline the last record is whole, and is kept.
        kept = 10 if cut >= len(whole) - 1 else 9
        assert len(read_metrics(path)) == kept
        with MetricWriter(tmp_path, tensorboard=False, resume_step=resume_step) as writer:
            writer.write({"kind": "train", "step": 7})
        assert [_strict(line) for line in _lines(tmp_path)][-1] == {"kind": "train", "step": 7}
        assert len(_lines(tmp_path)) == kept + 1


def test_damage_elsewhere_names_file_and_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tr\n{"kind": "train", "step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 "):
        read_metrics(path)
    with pytest.raises(ValueError, match="line 2"):
        MetricWriter(tmp_path, tensorboard=False, resume_step=1)
    assert len(_lines(tmp_path)) == 3  # nothing was thrown away


def test_missing_and_empty_files(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    (tmp_path / "metrics.jsonl").touch()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_other_processes_touch_nothing(tmp_path):
    with MetricWriter(tmp_path / "run", resume_step=0, lead=False) as writer:
        writer.write({"kind": "train", "step": 1})
    assert not (tmp_path / "run").exists()


def _scalars(folder):
    """(tag, step) -> value over all event files, with the records framing of TFRecord."""
    from tensorboardX.proto.event_pb2 import Event

    found, purges = {}, []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.HasField("session_log"):
                purges.append(event.step)
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found, purges


def test_tensorboard_mirror_and_purge(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write({"kind": "train", "step": 1, "epoch": 0, "time": 1e9, "loss": 0.5})
        writer.write({"kind": "eval", "step": 1, "net": "student", "split": "test", "clean": 0.25})
        writer.write({"kind": "event", "step": 1, "event": "saved", "seconds": 3.0})
    found, purges = _scalars(tmp_path / "tensorboard")
    assert found == {("train/loss", 1): 0.5, ("eval/student/test/clean", 1): 0.25}
    assert purges == []
    with MetricWriter(tmp_path, resume_step=1) as writer:  # within the same second
        writer.write({"kind": "train", "step": 2, "loss": float("nan")})
    found, purges = _scalars(tmp_path / "tensorboard")
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert purges == [2]
    assert found["train/loss", 1] == 0.5 and np.isnan(found["train/loss", 2])


def test_tensorboard_has_hyper_parameters_and_images(tmp_path):
    told = Tracking(
        config={"eps": 0.5, "data": {"name": "digits", "pads": [1, 2]}}, metrics=("eval/x",)
    )
    with MetricWriter(tmp_path, resume_step=0, tracking=told) as writer:
        writer.image("examples", np.zeros((4, 6, 1), np.uint8), 3)
    (file,) = (tmp_path / "tensorboard").iterdir()
    parts = b"eps data.name digits data.pads [1, 2] eval/x _hparams_/session_start_info".split()
    assert all(part in file.read_bytes() for part in parts)
    assert ("examples", 3) in _scalars(tmp_path / "tensorboard")[0]
    size = file.stat().st_size
    with MetricWriter(tmp_path, resume_step=5, tracking=told):  # goes on: they are there
        pass
    later = max((tmp_path / "tensorboard").iterdir(), key=lambda path: path.name[-19:])
    assert b"hparams" not in later.read_bytes() and later.stat().st_size < size


def test_a_full_disk_ends_tensorboard_alone(tmp_path, monkeypatch, caplog):
    from tensorboardX.record_writer import RecordWriter

    def full(*_):
        raise OSError(28, "No space left on device")

    with MetricWriter(tmp_path) as writer:
        monkeypatch.setattr(RecordWriter, "write", full)
        for step in (1, 2):
            writer.write({"kind": "train", "step": step, "loss": 0.5})
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/tensorboard cannot be written (No space left on device): going on without it"
    ]


def test_write_text_atomic_keeps_the_old_file_on_failure(tmp_path, monkeypatch):
    path = files.write_text_atomic(tmp_path / "a.txt", "old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_text_atomic(path, "new")
    assert path.read_text() == "old"


def test_a_kill_leaves_a_readable_file(tmp_path):
    code = (
        "import sys; from ard_jax.io.metric_writer import MetricWriter\n"
        "w = MetricWriter(sys.argv[1], tensorboard=False)\n"
        "step = 0\n"
        "while True:\n"
        "    step += 1; w.write({'kind': 'train', 'step': step})\n"
        "    if step == 50: print('go', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "go\n"
    process.kill()
    process.wait()
    process.stdout.close()
    steps = [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")]
    assert len(steps) >= 50 and steps == list(range(1, len(steps) + 1))


class _Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_plain_progress_lines(monkeypatch, capsys):
    clock = _Clock(monkeypatch)
    progress = Progress(100, description="student", plain_interval=10)
    fields = {"epoch": 3, "loss": 0.123456, "accuracy": 0.9125, "images_per_second": 1234.5}
    clock.now = 60  # the first step compiles for a minute
    progress.update(1, fields)
    for _ in range(25):
        clock.now += 1
        progress.update(1, fields)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # the compiled step, then one every ten seconds
    assert lines[0].endswith("ETA ?")  # it says nothing of the others
    for part in ("student: 21/100", "epoch=3", "loss=0.1235", "accuracy=91.2%", "1,234 img/s"):
        assert part in lines[-1]
    assert lines[-1].endswith("ETA 01:19")  # 79 steps at 1 step/s: compilation is left out
    progress.message("saved")
    progress.close()
    progress.close()
    assert capsys.readouterr().err.splitlines()[0] == "saved"


def test_plain_progress_resumed_and_finished(monkeypatch, capsys):
    clock = _Clock(monkeypatch)
    with Progress(1000, initial=990, plain_interval=10) as progress:
        assert progress.seconds_left() is None
        for _ in range(10):
            clock.now += 2
            progress.update(1, {"loss": float("nan")})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("995/1000") and lines[0].endswith("ETA 00:10")
    assert "loss=nan" in lines[0]
    assert lines[-1].startswith("1000/1000") and lines[-1].endswith("ETA 00:00")
    assert len(lines) == 2  # closing repeats nothing


def test_plain_progress_shows_a_short_run_when_closed(capsys):
    with Progress(10) as progress:
        progress.update(2, {"loss": 1.0})
    assert "2/10 loss=1 ETA" in capsys.readouterr().err


def test_disabled_progress_is_silent(capsys):
    with Progress(5, enabled=False) as progress:
        progress.update(5, {"loss": 1.0})
        progress.message("hidden")
    assert progress.step == 5
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bar_on_a_terminal(monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(4, initial=1, description="student") as progress:
        progress.update(1, {"epoch": 2, "loss": 0.5, "robust_accuracy": 0.625})
        progress.message("saved step 2")
        progress.update(2, {"epoch": 2, "loss": 0.25, "robust_accuracy": 0.75})
    text = terminal.getvalue()
    assert "\nsaved step 2\n" in text.replace("\r", "\n")  # on a line of its own
    assert text.count("\n") == 2  # the message and the end: the bar itself never scrolls
    last = text.rstrip("\n").split("\r")[-1]
    for part in ("student", "100%", "4/4", "loss=0.25", "robust_accuracy=75.0%"):
        assert part in last
