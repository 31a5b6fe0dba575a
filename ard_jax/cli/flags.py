"""The flags of all modes; importing them is light, so that --help answers at once."""

from collections.abc import Callable
from typing import Any

from absl import flags

# Mode -> what it does.
MODES = {
    "train": "Train one experiment, or continue it.",
    "evaluate": "Evaluate a checkpoint again, under any attacks.",
    "teacher": "Say whether a checkpoint will help as a robust teacher, and why.",
    "compare": "Train and compare methods over seeds, with shared teachers, ending in tables and a plot; "
    "--config is e.g. compare_digits, a part of it --config.seeds='(0,1)' --config.methods=sat,rslad. Exit "
    "code 1 when a run failed.",
    "import": "Make a checkpoint of a published network.",
    "export": "Write a checkpoint in other formats.",
    "plan": "Say what --config would cost on --devices, on paper; exit code 1 when it does not fit.",
    "show": "List the runs below a folder, their states and best numbers; of two runs, what differs.",
    "doctor": "Check devices, packages, data, disk and caches; exit code 1 when something would stop a run.",
}
# Flag -> the modes that use it; in another mode it is refused.
MODES_OF = {
    "checkpoint": ("evaluate", "export", "teacher"),
    "attacks": ("evaluate",),
    "transfer_from": ("evaluate",),
    "students": ("teacher",),
    "out": ("evaluate", "import", "export", "teacher"),
    "source": ("import",),
    "file": ("import",),
    "model": ("import",),
    "normalization": ("import",),
    "key": ("import",),
    "download": ("import",),
    "force": ("import",),
    "format": ("export",),
    "item": ("export",),
    "fold_batchnorm": ("export",),
    "onnx_ir_version": ("export",),
    "devices": ("plan",),
    "assume": ("plan",),
    "compile": ("plan",),
    "plan_json": ("plan",),
    "runs": ("show",),
}


def _define(define: Callable[..., Any], name: str, default: Any, text: str, **more: Any) -> Any:
    return define(name, default, help=f"For --mode={' and '.join(MODES_OF[name])}: {text}", **more)


CONFIG = flags.DEFINE_string(
    "config",
    None,
    "Experiment file, or the name of one that comes with the package: ciard_digits, digits:rslad, "
    "configs/ciard_digits.py. --config.PATH=VALUE sets a value of it, such as "
    "--config.attack.steps=7 or --config.eps=8/255.",
)
OVERRIDES = flags.DEFINE_multi_string(
    "override", [], "PATH=VALUE: what --config.PATH=VALUE is rewritten to."
)
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    list(MODES),
    " ".join(f"{name}: {text}" for name, text in MODES.items()),
)
CHECKPOINT = _define(
    flags.DEFINE_string, "checkpoint", "",
    "a run's folder, its best/ or last/, one step, or an imported network.",
)  # fmt: skip
ATTACKS = _define(
    flags.DEFINE_list, "attacks", None,
    "attack names, comma separated, e.g. autoattack; default config.eval.attacks.",
)  # fmt: skip
TRANSFER = _define(
    flags.DEFINE_string, "transfer_from", "",
    "another run, whose attacks are tried on this one.",
)  # fmt: skip
STUDENTS = _define(
    flags.DEFINE_list, "students", [],
    "runs of reference students, comma separated: what the teacher says where they are attacked.",
)  # fmt: skip
OUT = _define(
    flags.DEFINE_string, "out", "",
    "folder to make; defaults: <run>/evaluations/<number> of evaluate, <run>/teacher/<number> of teacher, "
    "<run>/export of export.",
)  # fmt: skip
SOURCE = _define(
    flags.DEFINE_string, "source", "file",
    "a name of the catalogue; list prints it; file: see --file.",
)  # fmt: skip
FILE = _define(
    flags.DEFINE_string, "file", "",
    ".pt, .pth, .th (PyTorch), .npy (Haiku), .safetensors or .npz.",
)  # fmt: skip
MODEL = _define(flags.DEFINE_string, "model", "", "architecture, when the tensors do not tell it.")
NORMALIZATION = _define(
    flags.DEFINE_string, "normalization", "",
    "none, cifar10, cifar100, imagenet or JSON with mean and std; default: found by measurement on the data "
    "of --config, else the source's own.",
)  # fmt: skip
KEY = _define(flags.DEFINE_string, "key", "", "which network, if the file holds several.")
DOWNLOAD = _define(flags.DEFINE_bool, "download", False, "fetch a file of the catalogue.")
FORCE = _define(
    flags.DEFINE_bool, "force", False,
    "import a file whose checksum or accuracy is not the catalogue's; replace an earlier import in --out.",
)  # fmt: skip
FORMAT = _define(
    flags.DEFINE_list, "format", ["onnx"],
    "onnx, stablehlo, safetensors, torch; comma separated.",
)  # fmt: skip
ITEM = _define(
    flags.DEFINE_enum, "item", "student", "the network or its moving average.",
    enum_values=["student", "ema"],
)  # fmt: skip
FOLD = _define(
    flags.DEFINE_bool, "fold_batchnorm", False,
    "BatchNorm becomes part of the convolutions.",
)  # fmt: skip
ONNX_IR = _define(flags.DEFINE_integer, "onnx_ir_version", 8, "version of the ONNX file's format.")
DEVICES = _define(
    flags.DEFINE_string, "devices", "",
    "a kind and a number, v4-32, v5e-16, h100-8, or a number alone.",
)  # fmt: skip
ASSUME = _define(
    flags.DEFINE_list, "assume", [],
    "numbers to calculate with, e.g. utilisation=0.5,flops=2e14.",
)  # fmt: skip
COMPILE = _define(
    flags.DEFINE_bool, "compile", True,
    "also compile the step, for its memory and collectives.",
)  # fmt: skip
PLAN_JSON = _define(flags.DEFINE_string, "plan_json", "", "file to write the plan to.")
RUNS = _define(
    flags.DEFINE_list, "runs", ["runs"],
    "folders, comma separated; or without the flag: --mode=show FOLDER.",
)  # fmt: skip
