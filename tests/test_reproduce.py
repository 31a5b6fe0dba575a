"""The reproduction: budgets, the frozen schedule, packs, the table; no training."""

import io
import json
import os
import signal
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest

from ard_jax import compare_config
from ard_jax.preemption import PreemptedError
from ard_jax.reproduce import __main__ as command
from ard_jax.reproduce import budget, pack, papers, report, run, schedule, session
from configs import reproduce_cifar10 as configs

LAUNCH = Path(__file__).parents[1] / "launch" / "reproduce_cifar10.sh"
METHODS = configs.METHODS
BOTH = ("robust", "clean")


def cost(step, compile_seconds=10.0, save=0.5):
    return {"step": step, "compile": compile_seconds, "save": save}


def measured(student=0.03, large=0.2, small=0.05):
    """A made-up accelerator; with the large teacher a student's step takes twice as long."""
    by_teacher = {"wrn_34_10": 2 * student, "wrn_28_4": student}
    return {
        "seconds": 100.0,
        "students": {name: dict.fromkeys(METHODS, cost(s)) for name, s in by_teacher.items()},
        "clean": cost(0.01),
        "robust": {"wrn_34_10": cost(large), "wrn_28_4": cost(small)},
        "evaluation": {"gradient": 1e-5, "forward": 3e-6, "compile": 5.0},
    }


def solve(hours, machine=None, **more):
    options = {"methods": METHODS, "trained": BOTH} | more
    return budget.solve(hours, "accelerator", machine or measured(), **options)


def frozen(hours=2.0, **more):
    return solve(hours) | {
        "schema": 1, "created": "2000-01-01T00:00:00+00:00", "hours": hours, "device": "a machine",
        "networks": "accelerator", "precision": "float32", "seeds": [0], "methods": list(METHODS),
        "clean_teacher": "", "measured": measured(),
        "describe": {"student": "resnet18", "robust": "wrn_28_4", "clean": "resnet56"},
    } | more  # fmt: skip


@pytest.mark.parametrize("hours", [0.5, 1, 2, 8, 24])
@pytest.mark.parametrize("trained", [BOTH, ("robust",)])
def test_the_plan_fits_the_budget_and_uses_it(hours, trained):
    plan = solve(hours, trained=trained)
    total = hours * 3600 * (1 - budget.RESERVE) - measured()["seconds"]
    seconds = sum(plan["estimate"].values())
    assert seconds <= total + 1
    at_most = budget.MOST_EPOCHS["student"]
    # Less is left than one more epoch of every method takes: 383 steps of at most 60 ms, and its evaluation.
    one_more = len(METHODS) * (383 * 0.06 + 5)
    assert plan["epochs"]["student"] == at_most or seconds > total - one_more
    assert ("clean teacher" in plan["estimate"]) == ("clean" in trained)


def test_more_time_never_means_less():
    plans = [solve(hours) for hours in (0.5, 1, 2, 4, 8, 16, 32, 64)]
    for less, more in zip(plans, plans[1:], strict=False):
        assert less["images"] <= more["images"]
        assert less["evaluation"]["autoattack"] <= more["evaluation"]["autoattack"]
    assert plans[0]["robust_teacher"] == "wrn_28_4" and plans[-1]["robust_teacher"] == "wrn_34_10"
    last = plans[-1]
    assert last["epochs"] == budget.MOST_EPOCHS and last["evaluation"]["nets"] == "all"


def test_seeds_and_fewer_methods_share_the_time():
    one, three = solve(8), solve(8, seeds=3)
    assert three["epochs"]["student"] < one["epochs"]["student"]
    few = solve(1, methods=("sat", "ciard"))
    assert few["epochs"]["student"] > solve(1)["epochs"]["student"]
    assert set(few["estimate"]) >= {"sat", "ciard"} and "rslad" not in few["estimate"]


def test_too_small_a_budget_is_refused_with_the_smallest_that_works():
    with pytest.raises(budget.BudgetError, match="smallest plan .* takes --hours=") as caught:
        solve(0.01)
    least = float(str(caught.value).rsplit("=", 1)[1])
    assert solve(least)["images"] == 5000
    with pytest.raises(budget.BudgetError):
        solve(0.9 * least)


def test_autoattack_counts_every_attack():
    forward_only = budget.autoattack_seconds({"gradient": 0.0, "forward": 1.0})
    assert forward_only == pytest.approx(0.55 * 5001)  # Square, on what the others left
    gradients = budget.autoattack_seconds({"gradient": 1.0, "forward": 0.0})
    # APGD-CE on all that is right, nine targets of APGD-T and of FAB-T (4/3 gradients a step).
    assert gradients == pytest.approx(0.9 * 101 + 0.55 * (9 * 101 + 9 * 100 * 4 / 3))


def test_the_configuration_follows_the_schedule(tmp_path):
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(frozen(methods=["sat", "ciard"], images=20_000)))
    comparison = compare_config.build(configs.get_config(str(path)))
    plan = json.loads(path.read_text())
    assert comparison.methods == ("sat", "ciard") and comparison.roles == BOTH
    e = comparison.experiments["ciard", 0]
    assert (e.epochs, e.data.holdout) == (plan["epochs"]["student"], 30_000)
    assert e.teachers.robust.recipe.epochs == plan["epochs"]["robust"]
    assert e.method.options["itt_start"] == round(51 * e.epochs / 300)
    # Nothing in it depends on where the work lies.
    paths = (e.workdir, e.data.dir, e.teachers.cache, e.teachers.robust.checkpoint)
    assert not any(Path(p).is_absolute() for p in paths)
    trained = schedule.with_recipe_teachers(e).teachers
    assert trained.robust.checkpoint == trained.clean.checkpoint == ""


def test_the_schedule_is_frozen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(schedule.ReproduceError, match="--hours is missing"):
        schedule.obtain(schedule.Options())
    schedule.FILE.write_text(json.dumps(frozen()))
    assert schedule.obtain(schedule.Options()) == frozen()
    assert schedule.obtain(schedule.Options(hours=2.0))["hours"] == 2.0
    for options, said in (
        (schedule.Options(hours=3.0), "--hours=2, not 3"),
        (schedule.Options(methods=("sat",)), "--methods=sat,trades"),
        (schedule.Options(clean_teacher="x"), "trains itself"),
    ):
        with pytest.raises(schedule.ReproduceError, match=said):
            schedule.obtain(options)


def test_data_are_linked_anew_on_each_machine(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name / "cifar10").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in ("here", "there"):
        run.link_data(str(tmp_path / name))
        assert run.DATA.resolve() == tmp_path / name
    with pytest.raises(schedule.ReproduceError, match="no cifar10/"):
        run.link_data(str(tmp_path))


@pytest.fixture
def folder(tmp_path):
    """A work in progress: a trained teacher, one student finished, one training, one evaluated."""
    root = tmp_path / "work"
    sizes = {
        "schedule.json": 900, "sessions.json": 10, "data_is_no_link": 5,
        "teachers/robust/best/7/arrays": 40_000,
        "teachers/training/robust-wrn-1/last/9/arrays": 90_000,
        "teachers/training/clean-r56-1/last/3/arrays": 7_000,
        "sat/seed0/evaluation.json": 300, "sat/seed0/best/5/arrays": 20_000,
        "sat/seed0/last/9/arrays": 20_001, "sat/seed0/best/3/arrays": 20_002,
        "ciard/seed0/metrics.jsonl": 100, "ciard/seed0/last/2/arrays": 30_000,
        "ciard/seed0/last/4/arrays": 30_001, "ciard/seed0/best/4/arrays": 30_002,
        "ciard/seed0/last/6.orbax-checkpoint-tmp/arrays": 9, "ciard/seed0/.lock": 0,
        "ciard/seed0/events.out.tfevents.1": 50_000, "dard/seed0/autoattack/ab/fab-0-0.npz": 600,
    }  # fmt: skip
    for index, (name, size) in enumerate(sizes.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(bytes([index]) * size)
    (root / "data").symlink_to(tmp_path)
    return root


CARRIED = {
    "schedule.json", "sessions.json", "data_is_no_link", "teachers/robust/best/7/arrays",
    "teachers/training/clean-r56-1/last/3/arrays", "sat/seed0/evaluation.json", "sat/seed0/best/5/arrays",
    "ciard/seed0/metrics.jsonl", "ciard/seed0/last/4/arrays", "ciard/seed0/best/4/arrays",
    "dard/seed0/autoattack/ab/fab-0-0.npz",
}  # fmt: skip


def files_of(root):
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def test_a_pack_holds_what_is_needed_and_comes_back_whole(folder, tmp_path):
    made = pack.pack(folder, tmp_path / "out", part_bytes=30_000)
    sizes = [p.stat().st_size for p in sorted((tmp_path / "out").glob("part-*"))]
    assert len(sizes) > 5 and max(sizes) == 30_000 and sizes == [p["bytes"] for p in made["parts"]]
    there = tmp_path / "there"
    (there / "ciard/seed0/last/9").mkdir(parents=True)  # of an attempt that is given up
    (there / "ciard/seed0/last/9/arrays").write_text("x")
    assert pack.unpack(tmp_path / "out", there) == len(CARRIED)
    assert files_of(there) == CARRIED
    assert all((there / n).read_bytes() == (folder / n).read_bytes() for n in CARRIED)
    assert not (there / "data").exists()


def test_the_limit_leaves_out_the_least_needed_first(folder, tmp_path):
    whole = sum(p["bytes"] for p in pack.pack(folder, tmp_path / "out")["parts"])
    made = pack.pack(folder, tmp_path / "out", limit=whole)
    used = sum(p["bytes"] for p in made["parts"])
    assert used <= whole and [x["what"] for x in made["left_out"]] == ["sat/seed0: best network"]
    made = pack.pack(folder, tmp_path / "out", limit=80_000)
    left = [x["what"] for x in made["left_out"]]
    assert left == ["ciard/seed0: training in progress", "sat/seed0: best network"]
    with pytest.raises(pack.PackError, match="results, schedule, teachers take"):
        pack.pack(folder, tmp_path / "out", limit=20_000)


def test_damaged_and_missing_parts_are_refused_by_name(folder, tmp_path):
    out, there = tmp_path / "out", tmp_path / "there"
    pack.pack(folder, out, part_bytes=30_000)
    part = out / "part-001.tar"
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    (out / "part-002.tar").unlink()
    (out / "part-003.tar").write_bytes(b"short")
    with pytest.raises(pack.PackError) as caught:
        pack.unpack(out, there)
    for said in ("part-001.tar is damaged: another checksum", "part-002.tar is missing",
                 "part-003.tar is damaged: 5 bytes, not 30000"):  # fmt: skip
        assert said in str(caught.value)
    (out / "manifest.json").write_text("{}")
    with pytest.raises(pack.PackError, match="manifest.json is missing or damaged"):
        pack.unpack(out, there)
    assert not there.exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/../etc/last/3/x", "link"])
def test_a_pack_cannot_write_elsewhere(tmp_path, name):
    out, archive = tmp_path / "out", io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        for member in (tarfile.TarInfo("schedule.json"), tarfile.TarInfo(name)):
            if member.name == "link":
                member.type, member.linkname = tarfile.SYMTYPE, "schedule.json"
            file.addfile(member)
    out.mkdir()
    parts = pack.Writer(out, 1000)
    parts.write(archive.getvalue()), parts.finish()
    (out / "manifest.json").write_text(json.dumps({"parts": parts.done}))
    there = tmp_path / "there"
    if name.startswith("/"):  # is taken as below the folder
        pack.unpack(out, there)
        assert (there / "etc/last/3/x").is_file()
        return
    with pytest.raises(pack.PackError, match="the pack holds"):
        pack.unpack(out, there)
    assert not (tmp_path / "outside").exists() and not files_of(there)


def test_packs_are_not_mixed_up(folder, tmp_path):
    pack.pack(folder, tmp_path / "out")
    (folder / "schedule.json").write_text("{}")
    with pytest.raises(pack.PackError, match="another schedule"):
        pack.unpack(tmp_path / "out", folder)
    for out, said in ((folder / "out", "lies in the folder"), (tmp_path, "holds other files")):
        with pytest.raises(pack.PackError, match=said):
            pack.pack(folder, out)
    with pytest.raises(pack.PackError, match="no schedule.json"):
        pack.pack(tmp_path / "out", tmp_path / "out2")


def test_the_command_packs_and_unpacks(folder, tmp_path, capsys):
    arguments = [f"--workdir={folder}", f"--pack={tmp_path / 'out'}"]
    assert command.main(arguments) == 0 and "in 1 parts" in capsys.readouterr().out
    (tmp_path / "out/part-000.tar").write_bytes(b"")
    arguments = [f"--workdir={tmp_path / 'new'}", f"--unpack={tmp_path / 'out'}"]
    assert command.main(arguments) == 2
    assert "part-000.tar is damaged" in capsys.readouterr().err


def net(clean, robust):
    attacks = {name: {"accuracy": robust} for name in papers.COLUMNS[1:]}
    return {"clean": clean, "attacks": attacks}


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    """CIARD finished, the others not begun."""
    monkeypatch.chdir(tmp_path)
    schedule.FILE.write_text(json.dumps(frozen()))
    found = compare_config.build(configs.get_config(str(schedule.FILE)))
    done = {"nets": {"student (best)": net(0.8, 0.4), "student (last)": net(0.9, 0.3)},
            "timing": {}, "warnings": ["a warning"]}  # fmt: skip
    own = found.experiments["ciard", 0]
    monkeypatch.setattr(report.train, "finished", lambda e: done if e == own else None)
    (tmp_path / "ciard/seed0").mkdir(parents=True)
    lines = [{"kind": "eval", "net": "student", "step": i, "epoch": i, "clean": i / 10, "pgd_trades": i / 20}
             for i in (1, 2, 3)]  # fmt: skip
    (tmp_path / "ciard/seed0/metrics.jsonl").write_text(
        "".join(json.dumps(x) + "\n" for x in lines)
    )
    return found


def test_the_table_stands_beside_the_papers_numbers(comparison):
    plan = json.loads(schedule.FILE.read_text())
    Path(session.FILE).write_text(json.dumps([
        {"started": "a", "seconds": s, "ended": "stopped", "device": "x", "versions": {}, "commit": "abc+"}
        for s in (1800, 3600)
    ]))  # fmt: skip
    record = report.write(comparison, plan, Path())
    lines = Path("reproduce.md").read_text().splitlines()
    rows = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
            for line in lines if line.startswith("| ")}  # fmt: skip
    assert rows["ciard"][:6] == ["80.00"] + ["40.00"] * 5
    assert rows["ciard, last"][0] == "90.00"
    assert rows["*ciard, paper*"][0] == "*88.87*\\*" and "supplement" in rows["*ciard, paper*"][6]
    assert rows["*dard, paper*"][:6] == ["-"] * 5 + ["*47.75*\\*"]
    assert rows["*sat, paper*"][0] == "*83.38?*" and rows["*mtard, paper*"][5] == "-"
    assert rows["*ciard_dard, paper*"] == ["-"] * 6 + ["in no paper"]
    assert rows["sat"][:6] == ["-"] * 6 and rows["sat"][6] == "to come"
    few = plan["evaluation"]["autoattack"]
    assert (
        few < plan["evaluation"]["examples"] and rows["method"][5] == f"AutoAttack, first {few:,}"
    )
    text = "\n".join(lines)
    assert "**Not finished.** Still to come: sat, trades" in text and "a warning" in text
    assert "1.50 hours in all" in text
    assert record["curves"]["ciard, seed 0"]["pgd_trades"] == [0.05, 0.1, 0.15]
    assert Path("reproduce.png").stat().st_size > 5000 and not record["finished"]
    assert json.loads(Path("reproduce.json").read_text())["seconds"] == 5400


def test_every_method_has_its_papers_row_or_none():
    assert set(papers.RESNET18) == set(METHODS) - {"ciard_dard"}
    assert papers.RESNET18["ciard"].values["autoattack"] == (48.88, "second-hand")
    assert papers.RESNET18["rslad"].values["clean"] == (83.38, "unverified")


def test_a_session_ends_in_time_and_is_counted(tmp_path, monkeypatch):
    got = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: got.set())
    monkeypatch.setattr(session, "_BEAT", 0.05)
    try:
        with pytest.raises(PreemptedError), session.Session(tmp_path, 0.2 / 3600) as clock:
            deadline = time.monotonic() + 10
            while not got.is_set() and time.monotonic() < deadline:
                time.sleep(0.01)  # the handler runs between bytecodes of this thread
            raise PreemptedError("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got.is_set() and clock.left() == 0
    (one,) = session.read(tmp_path)
    assert one["ended"] == "stopped" and one["seconds"] >= 0.2 and one["versions"]["jax"]
    assert "cpu" in one["device"]
    session.Session(tmp_path)._write()  # one that is killed afterwards
    with session.Session(tmp_path):
        pass
    assert [s["ended"] for s in session.read(tmp_path)] == ["stopped", "killed", "finished"]


def test_whole_runs_begin_only_what_fits(tmp_path):
    clock = session.Session(tmp_path, hours=1.0, whole=True)
    clock.start("first", 7200, str)  # nothing was done: it has to be done in parts
    clock.start("second", 3000, str)
    with pytest.raises(PreemptedError, match="stopped before third"):
        clock.start("third", 3500, str)
    session.Session(tmp_path, whole=True).start("no limit", 1e9, str)


def test_the_script_prints_what_it_would_run():
    arguments = [
        "--hours=0.4",
        "--data-dir",
        "a b",
        "--unpack=in",
        "--pack=out",
        "--pack-limit",
        "60",
    ]
    done = subprocess.run(
        ["bash", LAUNCH, "--dry-run", *arguments, "--workdir=w"], capture_output=True, text=True
    )
    program = "+ python -m ard_jax.reproduce --workdir=w"
    assert done.stdout.splitlines() == [
        f"{program} --unpack=in", f"{program} --hours=0.4 '--data-dir=a b'",
        f"{program} --pack=out --pack-limit=60",
    ]  # fmt: skip
    assert done.returncode == 0 and os.access(LAUNCH, os.X_OK)


@pytest.mark.parametrize("code", [0, 75, 1])
def test_the_script_packs_whatever_the_exit_code(tmp_path, code):
    stub = tmp_path / "python"
    stub.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\ncase "$*" in *pack*) ;; *) exit {code};; esac\n'
    )
    stub.chmod(0o755)
    done = subprocess.run(
        ["bash", LAUNCH, "--python", stub, "--workdir=w", "--pack=p"], capture_output=True
    )
    assert done.returncode == code
    start = "-m ard_jax.reproduce --workdir=w"
    assert (tmp_path / "calls").read_text().splitlines() == [start, f"{start} --pack=p"]


def test_the_script_passes_sigterm_on(tmp_path):
    stub = tmp_path / "python"
    stub.write_text("#!/bin/bash\ntrap 'exit 75' TERM\necho ready\nwhile :; do sleep 0.05; done\n")
    stub.chmod(0o755)
    with subprocess.Popen(
        ["bash", LAUNCH, "--python", stub], stdout=subprocess.PIPE, text=True
    ) as script:
        while script.stdout.readline() != "ready\n":
            pass
        script.send_signal(signal.SIGTERM)
        assert script.wait(20) == 75


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--nonsense=1"], "unknown option --nonsense"), (["--pack-limit=5"], "needs --pack"),
     (["--hours"], "--hours needs a value"), (["--pack=p", "--pack-limit=x"], "whole number")],
)  # fmt: skip
def test_the_script_tells_mistakes(arguments, said):
    done = subprocess.run(["bash", LAUNCH, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr


@pytest.mark.slow
def test_measuring_goes_through_the_real_loop(tmp_path):
    from experiments import tiny

    from ard_jax import config, sharding, train
    from ard_jax.reproduce import measure

    ciard = config.build(tiny(tmp_path, batch_size=64))
    sat = config.build(tiny(tmp_path, "sat", batch_size=64))
    splits, mesh = train.load_data(ciard), sharding.make_mesh(1)
    found = measure.step(ciard, splits, mesh, tmp_path / "measuring")
    assert set(found) == {"step", "compile", "save"}
    assert 0 < found["step"] < found["compile"]
    assert measure.step(sat, splits, mesh, tmp_path / "measuring")["step"] > 0
    scaled = measure._scaled(found, sat, ciard, splits)
    assert 0 < scaled["step"] < found["step"]  # SAT has no teachers
    seen = measure.evaluation(sat, splits, mesh)
    assert seen["gradient"] > 0 and seen["forward"] > 0
