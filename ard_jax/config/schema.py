"""What an experiment is: every value with its type, default, range and meaning (see `parse.to_experiment`).

Fields that leave the trained networks as they are say so by "changes", `NOTHING`, `EVALUATION` or `CONTENT`;
what two runs must agree on is derived from that (`build.comparable`, `parse.result_of`).
"""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ard_jax.attacks import registry
from ard_jax.attacks.threat_model import LEAST_EPS
from ard_jax.config.data_options import DataConfig
from ard_jax.config.marks import CONTENT, EVALUATION, NOTHING, Folder
from ard_jax.io.options import AtLeastOne, Count, NotNegative, Options, Positive, Seed, Share
from ard_jax.methods.base import PARTNERS
from ard_jax.methods.igdm import Igdm
from ard_jax.methods.options import BelowOne
from ard_jax.optim import OptimConfig

_TINY_MULTIPLE = 0.1  # of eps: a list of nothing larger is rather one of radii
# Arguments of `models.create` that are no options of an architecture.
_OF_CREATE = {"name", "num_classes", "image_shape", "init", "dtype", "normalization", "bn_groups"}


class NetConfig(Options):
    """A network: `models.create(model, init=..., normalization=..., **kwargs)`."""

    model: str = Field(
        description="A network of docs/models.md, such as small_resnet, resnet18, mobilenet_v2 or wrn_34_10."
    )
    init: Literal["", "torch", "flax"] = Field(
        default="torch",
        description="Initial values as PyTorch or as Flax draws them; empty: `torch`.",
    )
    normalization: str = Field(
        default="",
        description="Statistics inside the network, one of `models.NORMALIZATIONS`, `none`, or JSON such as "
        '`{"mean": [0.5], "std": [0.2]}`; empty: the architecture\'s own.',
    )
    kwargs: dict[str, Any] = Field(default={}, description="Options of the architecture.")

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        if taken := sorted(_OF_CREATE & set(self.kwargs)):
            return [
                f"kwargs.{taken[0]} is no option of an architecture: the classes, sizes and precision follow "
                "from the data and the other values; leave it out"
            ]
        return []

    def statistics(self) -> Any:
        """`normalization` as `models.create` takes it.

        Raises:
          ValueError: it begins like JSON and is none.
        """
        if not self.normalization.lstrip().startswith("{"):
            return self.normalization or None
        try:
            return json.loads(self.normalization)
        except ValueError as error:
            raise ValueError(
                f"normalization={self.normalization!r} is no JSON ({error}); write it like "
                '\'{"mean": [0.5], "std": [0.25]}\''
            ) from error


class AttackConfig(Options):
    """The inner attack of training; 0 and an empty text mean the named attack's own value."""

    name: str = Field(
        description="A training attack of docs/attacks.md, such as pgd_sat or trades_train."
    )
    step_size: NotNegative = Field(default=0.0, description="In [0,1] pixel units.")
    steps: Annotated[int, Field(ge=0, le=10_000)] = Field(default=0, description="Gradient steps.")
    init: Literal["", "none", "uniform", "gauss"] = Field(
        default="", description="Start; `gauss` is 0.001 N(0,1)."
    )
    bn: Literal["eval", "train"] = Field(
        default="eval",
        description="BatchNorm of the attacked student: running statistics, or those of the batch.",
    )
    bn_stats: Literal["discard", "keep"] = Field(
        default="discard",
        description="Of bn=`train`: what becomes of the statistics that the attack leaves.",
    )
    eps_ramp: Count = Field(
        default=0,
        description="Epochs over which radius and step size grow: e/eps_ramp of theirs in epoch e; 0: they "
        "do not.",
    )
    options: dict[str, Any] = Field(
        default={}, description="Further fields of `attacks.PgdAttack`, such as DPGD's `dice`."
    )


def _late(epochs: dict[str, int], name: str, last: int) -> list[str]:
    """One sentence for each name -> epoch behind the last one of a run."""
    return [
        f"{what}={epoch}: must be at most {name}={last}"
        for what, epoch in epochs.items()
        if epoch > last
    ]


class RecipeConfig(Options):
    """How a teacher is trained when there is no checkpoint."""

    method: Literal["natural", "sat", "trades"] = Field(
        description="`sat` is PGD adversarial training."
    )
    beta: NotNegative = Field(default=6.0, description="Of TRADES.")
    epochs: AtLeastOne = Field(description="Length.")
    batch_size: AtLeastOne = Field(default=128, description="Images per update.")
    seed: Seed = Field(
        default=0,
        description="Of initialisation, batches and augmentation; not the student's: runs share the teacher.",
    )
    optim: OptimConfig = Field(default=OptimConfig(), description="Optimiser and schedule.")
    attack: AttackConfig = Field(description="Of `sat` and `trades`.")
    eval_every: AtLeastOne = Field(default=10, description="Epochs between evaluations.")

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        found = [f"optim.{text}" for text in self.optim.misfits(self.epochs)]
        return found + _late({"attack.eps_ramp": self.attack.eps_ramp}, "epochs", self.epochs)


class TeacherConfig(Options):
    """One teacher: a checkpoint of ours, or a network and the recipe that trains it."""

    checkpoint: Folder = Field(
        default="",
        description="Folder of a run of ours or of an imported network; empty to train by the recipe.",
    )
    net: NetConfig = Field(
        description="What the recipe trains; a checkpoint brings its own network."
    )
    recipe: RecipeConfig = Field(description="How it is trained.")
    min_clean: Share = Field(
        default=0.0,
        description="Clean accuracy, a share and not percent, below which the run stops.",
    )


class PartnerConfig(Options):
    """A network that begins in every run anew, from its seed, and learns beside the student by its SGD."""

    net: NetConfig = Field(description="Its architecture.")


class TeachersConfig(Options):
    """The teachers by role, None where there is none."""

    cache: Folder = Field(
        default="runs/teachers",
        description="Folder that keeps trained ones.",
        json_schema_extra=NOTHING,
    )
    precision: Literal["", "float32", "bfloat16"] = Field(
        default="",
        description="Compute type of the teachers while the student trains; empty: as each was trained.",
    )
    robust: TeacherConfig | None = Field(default=None, description="The robust teacher.")
    clean: TeacherConfig | None = Field(default=None, description="The clean teacher.")
    guide: PartnerConfig | None = Field(default=None, description="The guide of LBGAT.")
    peer: PartnerConfig | None = Field(default=None, description="The peer of PeerAiD.")


# Fields of `TeachersConfig` that are networks.
ROLES = ("robust", "clean", *PARTNERS)


class AwpConfig(Options):
    """Adversarial weight perturbation of the student: see `methods.awp.Awp`."""

    gamma: Share = Field(
        default=0.0, description="Size of the move relative to the weights; 0 for none."
    )
    start: AtLeastOne = Field(default=1, description="First epoch with a perturbation.")

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        return [] if self.gamma else self.without_effect("gamma")


class MethodConfig(Options):
    """A method by name and its options (see `methods`)."""

    name: str = Field(
        description="A method of docs/methods/index.md; a config of it sets the rest, such as digits.py:NAME."
    )
    options: dict[str, Any] = Field(default={}, description="Of the method's own record.")


class EvalConfig(Options):
    """Evaluation while training and at the end."""

    attacks: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        default=("fgsm", "pgd_sat", "pgd_trades", "bim", "tpgd", "cw_inf", "autoattack"),
        description="Names of `attacks.make` and of suites (`autoattack`), for the final evaluation.",
        json_schema_extra=EVALUATION,
    )
    select_attack: str = Field(
        default="pgd_trades",
        description="The attack whose accuracy counts in selection, score = (clean + it) / 2.",
    )
    step_sizes: dict[str, Positive] = Field(
        default={}, description="Attack name -> step size that replaces the attack's own."
    )
    batch_size: AtLeastOne = Field(
        default=250,
        description="Images per evaluation batch, at most as many as there are.",
        json_schema_extra=EVALUATION,
    )
    every: AtLeastOne = Field(
        default=10, description="Epochs between evaluations (the first is always evaluated)."
    )
    dense_from: Count = Field(
        default=0, description="From this epoch on every epoch is evaluated; 0 for never."
    )
    max_examples: Count = Field(
        default=0,
        description="Examples of the final test evaluation, the first ones; 0 for all.",
        json_schema_extra=EVALUATION,
    )
    max_selection_examples: Count = Field(
        default=0, description="The same for the evaluations while training."
    )
    eps_sweep: tuple[NotNegative, ...] = Field(
        default=(0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0),
        description="Multiples of eps at which accuracy is measured; () for none.",
        json_schema_extra=EVALUATION,
    )
    transfer: bool = Field(
        default=True,
        description="Attack the student through each teacher (PGD_trades and CW).",
        json_schema_extra=EVALUATION,
    )
    teachers: bool = Field(
        default=True, description="Evaluate the teachers too.", json_schema_extra=EVALUATION
    )
    seed: Seed = Field(default=0, description="Of the attacks' random starts.")
    grid: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=12,
        description="Adversarial images shown in the report.",
        json_schema_extra=EVALUATION,
    )
    autoattack_examples: Count = Field(
        default=0,
        description="Examples for AutoAttack and its like, the first ones; 0 for all. To leave AutoAttack "
        "out, take it from `attacks`.",
        json_schema_extra=EVALUATION,
    )
    autoattack_nets: Literal["all", "students", "best"] = Field(
        default="all",
        description="Which networks they attack; `best` is the best checkpoint alone.",
        json_schema_extra=EVALUATION,
    )
    save_images: bool = Field(
        default=False,
        description="Also write AutoAttack's adversarial images, evaluation_images.npz.",
        json_schema_extra=EVALUATION,
    )

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        found = []
        if problem := registry.weak_alone(self.attacks):
            found.append(f"attacks={self.attacks}: {problem}")
        if self.transfer and not self.teachers:
            found.append(
                "transfer needs the teachers' own evaluation: set config.eval.teachers too"
            )
        return found


class RunConfig(Options):
    """How, not what: none of this changes the trained parameters."""

    devices: Count = Field(default=0, description="Number of devices to use; 0 for all.")
    log_every: AtLeastOne = Field(default=50, description="Steps between train records.")
    save_every: AtLeastOne = Field(
        default=5, description="Epochs between checkpoints (evaluated epochs are always saved)."
    )
    tensorboard: bool = Field(default=True, description="Also write TensorBoard files.")
    wandb: str = Field(default="", description="Project of Weights & Biases; empty for none.")
    mlflow: str = Field(default="", description="Experiment of MLflow; empty for none.")
    compilation_cache: Folder = Field(
        default="",
        description="XLA's folder; empty for xla in $ARD_CACHE_DIR or ~/.cache/ard_jax, `off` for none.",
    )
    winograd: Literal["auto", "off"] = Field(
        default="auto",
        description="On a CPU, 3x3 convolutions by Winograd's algorithm where that is faster, or never. "
        "Results differ by rounding alone.",
    )
    remat: bool = Field(
        default=False,
        description="Compute the activations inside of the blocks of all networks again in the backward "
        "pass, instead of keeping them: less memory, more work; results differ by rounding. Of no use on a "
        "CPU, whose compiler undoes it.",
    )
    shard_optimizer: bool = Field(
        default=False,
        description="Split the state of the optimisers over the devices, instead of a copy on each (ZeRO's "
        "first stage, Rajbhandari et al. 2020); results differ by rounding at most.",
    )
    distributed: str = Field(
        default="auto",
        description="`auto`, `off`, `HOST:PORT` or `HOST:PORT,COUNT,INDEX`: see `distributed.start`.",
    )
    distributed_timeout: Positive = Field(
        default=300.0, description="Seconds that a process waits for the others at the start."
    )


def _full_name(precision: Any) -> Any:
    """Another spelling must not make another run of it."""
    short = {"f32": "float32", "bf16": "bfloat16"}
    return short.get(precision, precision) if isinstance(precision, str) else precision


class Experiment(Options):
    """One experiment, whole."""

    name: str = Field(
        description="Of the run; its folder is runs/NAME-seedSEED unless `workdir` says."
    )
    seed: Seed = Field(
        default=0, description="Of initialisation, batches, augmentation and attacks."
    )
    workdir: Folder = Field(default="", description="Folder of the run.", json_schema_extra=NOTHING)
    epochs: AtLeastOne = Field(default=300, description="Length of the student's training.")
    batch_size: AtLeastOne = Field(default=128, description="Images per update, over all devices.")
    accumulate: AtLeastOne = Field(
        default=1,
        description="Parts of a batch that are trained on one after the other, with one update: less memory, "
        "see `accumulation`. BatchNorm's statistics are those of a part.",
    )
    eps: Positive = Field(
        default=8 / 255,
        description="Attack radius in [0,1] pixel units, for training, teachers and evaluation.",
    )
    norm: Literal["linf", "l2"] = Field(default="linf", description="Of the attack radius.")
    select_on: Literal["validation", "test"] = Field(
        default="test",
        description="Split that picks the best checkpoint; the papers pick on `test`.",
    )
    precision: Annotated[Literal["float32", "bfloat16"], BeforeValidator(_full_name)] = Field(
        default="float32",
        description="Compute type of the networks while training (also spelt `f32` and `bf16`). Parameters, "
        "losses and attacked images are float32 either way, and every evaluation computes in float32, so "
        "that robust accuracy is not that of rounded gradients.",
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Decay per step of the student's moving average; 0 for none."
    )
    swa_start: Count = Field(
        default=0, description="First epoch of the student's stochastic weight average; 0 for none."
    )
    average_bn: Literal["averaged", "copied", "recomputed"] = Field(
        default="averaged",
        description="Running statistics of BatchNorm in the student's average. `averaged`: like its "
        "parameters. `copied`: the student's own. `recomputed`: by a pass over the training images, "
        "augmented, after every epoch that is evaluated or saved.",
    )
    label_smoothing: BelowOne = Field(
        default=0.0,
        description="Share of each label that is spread evenly over all classes, in the cross-entropy of the "
        "method, not of its attack.",
    )
    awp: AwpConfig = Field(default=AwpConfig(), description="Adversarial weight perturbation.")
    igdm: Igdm = Field(
        default=Igdm(), description="Gradient matching, an add-on to some distillation methods."
    )
    data: DataConfig = Field(description="Dataset, split and augmentation.")
    student: NetConfig = Field(description="The network that is trained.")
    start_from: Folder = Field(
        default="",
        description="Folder of a run of ours or of an imported network of the student's architecture, with "
        "whose weights the student begins; empty for random ones.",
        json_schema_extra=CONTENT,
    )
    student_optim: OptimConfig = Field(
        default=OptimConfig(), description="The student's optimiser."
    )
    robust_teacher_optim: OptimConfig = Field(
        default=OptimConfig(),
        description="Optimiser of the robust teacher, in methods that go on training it.",
    )
    attack: AttackConfig = Field(description="The inner attack.")
    method: MethodConfig = Field(description="The training method.")
    teachers: TeachersConfig = Field(
        default=TeachersConfig(), description="The teachers by role.", json_schema_extra=CONTENT
    )
    eval: EvalConfig = Field(default=EvalConfig(), description="Evaluation.")
    run: RunConfig = Field(
        default=RunConfig(), description="How it runs.", json_schema_extra=NOTHING
    )
    bn_groups: AtLeastOne = Field(
        default=1,
        description="BatchNorm in training. 1: statistics of the global batch, whatever the devices. G: "
        "those of G equal parts of it, as PyTorch's DataParallel on G devices: see `models.create`.",
    )

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        found = [f"student_optim.{text}" for text in self.student_optim.misfits(self.epochs)]
        if self.robust_teacher_optim.schedule == "cyclic":
            found.append(
                "robust_teacher_optim.schedule='cyclic' is for networks that every step trains; choose "
                "another"
            )
        if not re.fullmatch(r"[^/\\]{1,200}", self.name) or self.name in (".", ".."):
            found.append(
                f"name={self.name!r}: names a folder: give up to 200 letters without / and \\"
            )
        if self.ema_decay and self.swa_start:
            found.append("ema_decay and config.swa_start are both set: choose one average")
        if self.average_bn != "averaged" and not (self.ema_decay or self.swa_start):
            found.append(
                f"average_bn={self.average_bn!r} is of an average of the student: set config.ema_decay or "
                "config.swa_start, or leave it out"
            )
        if self.data.mixes and self.batch_size == 1:
            found.append(
                "batch_size=1: config.data.mixup and cutmix mix two images of a batch; use at least 2, or "
                "leave them out"
            )
        starts = {"swa_start": self.swa_start, "awp.start": self.awp.start if self.awp.gamma else 0}
        starts["attack.eps_ramp"] = self.attack.eps_ramp
        starts["data.crop_boundaries"] = max(self.data.crop_boundaries, default=0)
        if self.data.crop_sizes and self.average_bn == "recomputed":
            found.append(
                "average_bn='recomputed' makes statistics of images of one size: leave out "
                "config.data.crop_sizes, or choose another"
            )
        found += _late(starts, "config.epochs", self.epochs)
        if self.select_on == "validation" and not self.data.holdout > 0:
            found.append(
                "data.holdout=0 leaves no validation images to select on; hold some out, or set "
                "config.select_on=test as the papers do"
            )
        if self.batch_size % self.accumulate:
            found.append(
                f"accumulate={self.accumulate} does not divide config.batch_size={self.batch_size}; give a "
                "divisor"
            )
        return found + self._radius_conflicts() + self._group_conflicts()

    def _radius_conflicts(self) -> list[str]:
        if self.eps < LEAST_EPS:
            return [
                f"eps={self.eps}: must be at least 0.1/255 = {LEAST_EPS:.3g}, a tenth of a grey level, in "
                "units of [0,1] pixels (8/255 = 0.0314)"
            ]
        if self.norm != "linf":
            return []
        if self.eps > 1:
            return [f"eps={self.eps}: must be in (0, 1], in units of [0,1] pixels (8/255 = 0.0314)"]
        found = []
        if over := [m for m in self.eval.eps_sweep if m * self.eps > 1 + 1e-9]:
            found.append(
                f"eval.eps_sweep={self.eval.eps_sweep}: {over} times config.eps={self.eps:.4g} is more than "
                f"1, where every image is within reach; multiples up to {1 / self.eps:.4g}"
            )
        if (largest := max(self.eval.eps_sweep, default=1)) and largest <= _TINY_MULTIPLE:
            found.append(
                f"eval.eps_sweep={self.eval.eps_sweep}: multiples of config.eps, such as 0.5 and 1, not radii"
            )
        found += [
            f"eval.step_sizes.{name}={size}: must be at most 1, in [0,1] pixels"
            for name, size in self.eval.step_sizes.items()
            if size > 1
        ]
        attacks = {"": self.attack} | {f"{w}.recipe.": r.attack for w, r in self._recipes().items()}
        return found + [
            f"{where}attack.step_size={attack.step_size}: must be at most 1, in [0,1] pixels"
            for where, attack in attacks.items()
            if attack.step_size > 1
        ]

    def _recipes(self) -> dict[str, RecipeConfig]:
        """The recipes that teachers are trained by, by the dotted name of the teacher."""
        teachers = {"robust": self.teachers.robust, "clean": self.teachers.clean}
        return {f"teachers.{r}": t.recipe for r, t in teachers.items() if t and not t.checkpoint}

    def _group_conflicts(self) -> list[str]:
        sizes = {f"{where}.recipe.batch_size": r.batch_size for where, r in self._recipes().items()}
        part = "batch_size / accumulate" if self.accumulate > 1 else "batch_size"
        sizes = {part: self.batch_size // self.accumulate} | sizes
        return [
            f"{name}={size} does not divide by config.bn_groups={self.bn_groups}"
            for name, size in sizes.items()
            if size % self.bn_groups
        ]
