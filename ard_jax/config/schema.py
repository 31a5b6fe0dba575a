"""What an experiment is: the records that a configuration becomes (see `parse.to_experiment`)."""

import dataclasses
from typing import Any

from ard_jax.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Dataset, split and augmentation.

    Attributes:
      name: one of `data.names()`.
      dir: folder or file of the data; "" for datasets that come with a package.
      holdout: validation images taken from the training set: a share (< 1) or a number; 0 for none.
      split_seed: which images are held out; not the run's seed: no teacher may train on them either.
      augment: "none", "crop" or "crop_flip".
      pad: zero padding of the random crop, pixels.
      last_batch: "drop" the epoch's last, smaller batch, or "keep" it (compiles the step twice).
      loader: "memory" decodes all images at the start; "grain" reads them from disk as they are needed, for
        data that does not fit: see `data.Reading`. Both give the same batches.
      image_size: side in pixels that the images of "folder" and "tfds" are cropped and scaled to; 0: as
        they are.
      workers: of "grain": processes that decode; 0 for this one's threads.
      prefetch: of "grain": batches decoded ahead, by each worker.
      on_device: the whole training split kept in the memory of each device, from where a step takes its
        batch: "on", "off", or "auto": on in a single process for at most 1 GiB of images in memory. The
        trained parameters are the same, bit for bit.
    """

    name: str
    dir: str
    holdout: float
    split_seed: int
    augment: str
    pad: int
    last_batch: str
    loader: str = "memory"
    image_size: int = 0
    workers: int = 0
    prefetch: int = 4
    on_device: str = "auto"


@dataclasses.dataclass(frozen=True)
class NetConfig:
    """A network: `models.create(model, init=..., normalization=..., **kwargs)`; "" = its default."""

    model: str
    init: str
    normalization: str
    kwargs: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class AttackConfig:
    """The inner attack of training; 0 and "" mean the named attack's own value.

    Attributes:
      name: one of `attacks.names()`.
      step_size: in [0,1] pixel units.
      steps: number of gradient steps.
      init: start: "gauss" (0.001 N(0,1)), "uniform" or "none".
      bn: BatchNorm of the attacked student: "eval" (running statistics) or "train" (those of the batch).
      bn_stats: of "train": "discard" the running statistics that the attack leaves, or "keep" them.
      options: further fields of `attacks.Attack`, for example DPGD's {"dice": "per_sample"}.
    """

    name: str
    step_size: float
    steps: int
    init: str
    bn: str
    bn_stats: str
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RecipeConfig:
    """How a teacher is trained when there is no checkpoint.

    Attributes:
      method: "natural", "sat" (PGD adversarial training) or "trades".
      beta: of TRADES.
      seed: of initialisation, batches and augmentation; not the student's seed, so that runs share it.
    """

    method: str
    beta: float
    epochs: int
    batch_size: int
    seed: int
    optim: OptimConfig
    attack: AttackConfig
    eval_every: int


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """One teacher: a checkpoint of ours, or a network and the recipe that trains it.

    Attributes:
      checkpoint: folder of a run of ours or of an imported network; "" to train by the recipe.
      net, recipe: what the recipe trains, and how; a checkpoint brings its own network.
      min_clean: clean accuracy in [0,1] below which the run stops.
    """

    checkpoint: str
    net: NetConfig
    recipe: RecipeConfig
    min_clean: float


@dataclasses.dataclass(frozen=True)
class TeachersConfig:
    """The teachers by role, None where there is none.

    Attributes:
      cache: folder that keeps trained ones.
    """

    cache: str
    robust: TeacherConfig | None
    clean: TeacherConfig | None


@dataclasses.dataclass(frozen=True)
class AwpConfig:
    """Weight perturbation of the student from epoch `start`, gamma 0 for none: see `methods.awp.Awp`."""

    gamma: float
    start: int


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """A method by name and its options (see `methods`)."""

    name: str
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation while training and at the end.

    Attributes:
      attacks: names of `attacks.make` and `attacks.SUITES` ("autoattack"), for the final evaluation.
      select_attack: the attack whose accuracy counts in selection, score = (clean + it) / 2.
      step_sizes: attack name -> step size that replaces the attack's own.
      batch_size: images per evaluation batch.
      every: epochs between evaluations (the first epoch is always evaluated).
      dense_from: from this epoch on every epoch is evaluated; 0 for never.
      max_examples: examples of the final test evaluation, the first ones; 0 for all.
      max_selection_examples: the same for the evaluations while training.
      eps_sweep: multiples of eps at which accuracy is measured; () for none.
      transfer: attack the student through each teacher (PGD_trades and CW).
      teachers: evaluate the teachers too.
      seed: of the attacks' random starts.
      grid: adversarial images shown in the report.
      autoattack_examples: examples for AutoAttack and its like, the first ones; 0 for all.
      autoattack_nets: which networks they attack: "all", "students", or "best" (its checkpoint alone).
      save_images: also write AutoAttack's adversarial images, evaluation_images.npz.
    """

    attacks: tuple[str, ...]
    select_attack: str
    step_sizes: dict[str, float]
    batch_size: int
    every: int
    dense_from: int
    max_examples: int
    max_selection_examples: int
    eps_sweep: tuple[float, ...]
    transfer: bool
    teachers: bool
    seed: int
    grid: int
    autoattack_examples: int = 0
    autoattack_nets: str = "all"
    save_images: bool = False


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How, not what: none of this changes the trained parameters.

    Attributes:
      devices: number of devices to use; 0 for all.
      log_every: steps between train records.
      save_every: epochs between checkpoints (evaluated epochs are always saved).
      tensorboard: also write TensorBoard files.
      compilation_cache: XLA's folder; "" for xla in $ARD_CACHE_DIR or ~/.cache/ard_jax, "off" for none.
      distributed: "auto", "off", "HOST:PORT" or "HOST:PORT,COUNT,INDEX": see `distributed.start`.
      distributed_timeout: seconds that a process waits for the others at the start.
    """

    devices: int
    log_every: int
    save_every: int
    tensorboard: bool
    compilation_cache: str
    distributed: str = "auto"
    distributed_timeout: float = 300.0


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment, whole.

    Attributes:
      eps: attack radius in [0,1] pixel units, for training, teachers and evaluation.
      norm: "linf" or "l2".
      select_on: split that picks the best checkpoint: "validation", or "test" as the papers do.
      precision: compute type of the networks while training, "float32" or "bfloat16" (also spelt "f32" and
        "bf16"). Parameters, losses and attacked images are float32 either way, and every evaluation
        computes in float32, so that robust accuracy is not that of rounded gradients.
      ema_decay: decay per step of the student's moving average; 0 for none.
      swa_start: first epoch of the student's stochastic weight average; 0 for none.
      bn_groups: BatchNorm in training. 1: statistics of the global batch, whatever the devices. G: those of
        G equal parts of it, as PyTorch's DataParallel on G devices: see `models.create`.
    """

    name: str
    seed: int
    workdir: str
    epochs: int
    batch_size: int
    eps: float
    norm: str
    select_on: str
    precision: str
    ema_decay: float
    swa_start: int
    awp: AwpConfig
    data: DataConfig
    student: NetConfig
    student_optim: OptimConfig
    robust_teacher_optim: OptimConfig
    attack: AttackConfig
    method: MethodConfig
    teachers: TeachersConfig
    eval: EvalConfig
    run: RunConfig
    bn_groups: int = 1
