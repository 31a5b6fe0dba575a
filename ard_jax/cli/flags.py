"""The flags of `python -m ard_jax.main`; importing them is light, so that --help answers at once."""

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment file, e.g. configs/ciard_digits.py.", lock_config=True
)
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "compare", "import", "export", "plan"],
    "train: one experiment, or continue it. evaluate: a checkpoint again. compare: methods times seeds "
    "with shared teachers, ending in tables and a plot; --config is e.g. configs/compare_digits.py, a part "
    "of it --config.seeds='(0,1)' --config.methods=\"('sat','rslad')\". Exit code of compare: 1 when "
    "a run failed. import: a published network becomes a checkpoint. export: a checkpoint in other formats. "
    "plan: what --config would cost on --devices, on paper; exit code 1 when it does not fit.",
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "",
    "For --mode=evaluate and export: a run's folder, its best/ or last/, one step, or an imported network.",
)
ATTACKS = flags.DEFINE_list(
    "attacks",
    None,
    "For --mode=evaluate: attack names, comma separated, e.g. autoattack; default config.eval.attacks.",
)
TRANSFER = flags.DEFINE_string(
    "transfer_from", "", "For --mode=evaluate: another run, whose attacks are tried on this one."
)
OUT = flags.DEFINE_string("out", "", "Folder to make; default of --mode=export: <run>/export.")
SOURCE = flags.DEFINE_string(
    "source",
    "file",
    "For --mode=import: a name of the catalogue; list prints it; file: see --file.",
)
FILE = flags.DEFINE_string(
    "file", "", "For --mode=import: .pt, .pth, .th (PyTorch), .npy (Haiku), .safetensors or .npz."
)
MODEL = flags.DEFINE_string(
    "model", "", "For --mode=import: architecture, when the tensors do not tell it."
)
NORMALIZATION = flags.DEFINE_string(
    "normalization",
    "",
    "For --mode=import: none, cifar10, cifar100, imagenet or JSON with mean and std; default: found by "
    "measurement on the data of --config, else the source's own.",
)
KEY = flags.DEFINE_string("key", "", "For --mode=import: which network, if the file holds several.")
DOWNLOAD = flags.DEFINE_bool("download", False, "For --mode=import: fetch a file of the catalogue.")
FORCE = flags.DEFINE_bool(
    "force",
    False,
    "For --mode=import: import a file whose checksum or accuracy is not the catalogue's; replace an "
    "earlier import in --out.",
)
FORMAT = flags.DEFINE_list(
    "format", ["onnx"], "For --mode=export: onnx, stablehlo, safetensors, torch; comma separated."
)
ITEM = flags.DEFINE_enum(
    "item", "student", ["student", "ema"], "For --mode=export: the network or its moving average."
)
FOLD = flags.DEFINE_bool(
    "fold_batchnorm", False, "For --mode=export: BatchNorm becomes part of the convolutions."
)
DEVICES = flags.DEFINE_string(
    "devices", "", "For --mode=plan: a kind and a number, v4-32, v5e-16, h100-8, or a number alone."
)
ASSUME = flags.DEFINE_list(
    "assume", [], "For --mode=plan: numbers to calculate with, e.g. utilisation=0.5,flops=2e14."
)
COMPILE = flags.DEFINE_bool(
    "compile", True, "For --mode=plan: also compile the step, for its memory and collectives."
)
PLAN_JSON = flags.DEFINE_string("plan_json", "", "For --mode=plan: file to write the plan to.")
