"""What a method is, and the few moves that every method's step is made of."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ard_jax import losses
from ard_jax.attacks import cpu_tiling
from ard_jax.attacks.attack import Attack
from ard_jax.convolutions.cpu_conv import devices_of_batch
from ard_jax.losses import checks
from ard_jax.methods import awp as weight_perturbation
from ard_jax.methods import batch_statistics, checked
from ard_jax.methods import igdm as gradient_matching
from ard_jax.methods.registration import Registration as Registration
from ard_jax.models.bundle import ModelBundle
from ard_jax.optim import Optimizer
from ard_jax.state import NetState, RunState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# Roles of networks that an attack may ask, in the order in which it does.
ASKED = ("robust", "peer")
# Roles of networks that begin with the run and learn beside the student, by its optimiser.
PARTNERS = ("guide", "peer")
# Fields of `Parts`: what they must be, and what makes one.
_KINDS = {
    "student": (ModelBundle, "models.create(...)"),
    "student_optim": (Optimizer, "optim.make(optim.OptimConfig(), epochs)"),
    "attack": (Attack | None, "attacks.make(...)"),
    "awp": (weight_perturbation.Awp | None, "methods.Awp(gamma)"),
    "igdm": (gradient_matching.Igdm | None, "methods.Igdm(weight=...)"),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """A training method as a record of pure functions.

    Attributes:
      init: (student variables, {role: teacher variables}) -> RunState at step 0.
      step: (state, batch, key) -> (state, metrics), one update. `batch` holds "image" [B,H,W,C]
        float32 in [0,1] (augmented), "label" [B] int32, "epoch" int32 scalar counted from 1, and
        optionally "start_noise" [B,H,W,C], the attack's start perturbation, which replaces the
        random one (parity tests), "soft_label" [B,K] float32, distributions that replace the label in
        cross-entropies (`targets`), and the `columns` of the method. `state.step` is advanced by the
        caller. Metrics are float32 scalars, means over the batch.
      columns: names of further arrays [B,...] that a batch must hold: soft labels made once, before
        the run (`ard_jax.training.soft_labels`).
      views: of every image in a batch; with 2 it also holds "view" [B,H,W,C], another augmentation of
        the same images.
      name: of its registration, like what follows.
      teachers: roles of the teachers that it needs, in order.
      trained_teachers: those of them that it goes on training.
    """

    init: Callable[[Any, dict[str, Any]], RunState]
    step: Callable[[RunState, Batch, jax.Array], tuple[RunState, Metrics]]
    columns: tuple[str, ...] = ()
    views: int = 1
    name: str = ""
    teachers: tuple[str, ...] = ()
    trained_teachers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a method is built from; everything here is static.

    Attributes:
      student: the student network.
      teachers: role -> network.
      student_optim: the student's optimiser.
      attack: `attacks.Attack` of the inner attack.
      teacher_optims: role -> optimiser, for teachers that are trained.
      epochs: length of the run.
      steps_per_epoch: updates per epoch, for methods that change something once per epoch.
      batch_size: images of a full batch, for methods that keep something of each; 0 where it is not known.
      attack_bn: BatchNorm of the student inside the attack: "eval" (running statistics) or "train"
        (statistics of the adversarial batch).
      attack_bn_stats: of "train": "discard" the running statistics that the attack's forward passes
        would leave, or "keep" them, as code does that never calls eval().
      eps_ramp: epochs over which the attack's radius and step size grow from 1/eps_ramp of theirs; 0: they
        stay.
      soft_labels: whether every batch has "soft_label".
      awp: adversarial weight perturbation, None for none.
      igdm: gradient matching, None for none.

    Raises:
      ValueError: on construction, for something of another kind or out of its range.
    """

    student: ModelBundle
    student_optim: Optimizer
    attack: Any = None
    teachers: dict[str, ModelBundle] = dataclasses.field(default_factory=dict)
    teacher_optims: dict[str, Optimizer] = dataclasses.field(default_factory=dict)
    epochs: int = 1
    steps_per_epoch: int = 0
    batch_size: int = 0
    attack_bn: str = "eval"
    attack_bn_stats: str = "discard"
    eps_ramp: int = 0
    soft_labels: bool = False
    awp: weight_perturbation.Awp | None = None
    igdm: gradient_matching.Igdm | None = None

    def __post_init__(self):
        """Raises ValueError for something that is not what a method is built from."""
        checked.kinds(self, _KINDS)
        if self.attack is not None:
            self.attack.threat.check_reach(self.student.image_shape)
        checks.count(self.epochs, "epochs", 1)
        checks.count(self.steps_per_epoch, "steps_per_epoch", 0)
        checks.count(self.batch_size, "batch_size", 0)
        checked.lengths(self)
        checks.count(self.eps_ramp, "eps_ramp", 0)
        checks.flag(self.soft_labels, "soft_labels")
        checks.choice(self.attack_bn, "attack_bn", ("eval", "train"))
        checks.choice(self.attack_bn_stats, "attack_bn_stats", ("discard", "keep"))
        if self.eps_ramp > self.epochs:
            raise ValueError(f"eps_ramp={self.eps_ramp}: must be at most epochs={self.epochs}")
        if (self.attack_bn, self.attack_bn_stats) == ("eval", "keep"):
            raise ValueError("attack_bn_stats='keep' is of attack_bn='train': set that too")


class Attacked(NamedTuple):
    """What an attack on the student leaves behind.

    Attributes:
      images: adversarial images [B,H,W,C], a constant for all later gradients.
      batch_stats: the student's afterwards; changed only by bn="train" with bn_stats="keep".
      right: [B] float32, at how many of the attack's iterates the student was right; None unless asked.
    """

    images: jax.Array
    batch_stats: Any
    right: jax.Array | Any = None


def student_state(
    parts: Parts,
    variables: Any,
    teachers: dict[str, Any] | None = None,
    memory: dict[str, jax.Array] | None = None,
) -> RunState:
    """RunState at step 0: the student with its optimiser, frozen teachers, the method's own arrays."""
    student = NetState.create(variables, parts.student_optim.init(variables["params"]))
    frozen = {role: NetState.create(v) for role, v in (teachers or {}).items()}
    return RunState(jnp.zeros((), jnp.int32), student, frozen, None, memory or {})


def teacher_predict(parts: Parts, state: RunState, role: str) -> Callable:
    """A teacher in eval mode as a function of the images; gradients flow through it."""
    net, variables = parts.teachers[role], state.teachers[role].variables
    return lambda images: net.apply(variables, images, False)[0]


def teacher_logits(parts: Parts, state: RunState, role: str, images: jax.Array) -> jax.Array:
    """A teacher's eval-mode logits [B,K], a constant."""
    return jax.lax.stop_gradient(teacher_predict(parts, state, role)(images))


def run_attack(
    parts: Parts, predict: Callable, params: Any, batch: Batch, key: jax.Array, **arguments: Any
):
    """The configured attack on any predict function of `params`; the images are a constant afterwards.

    `params` is None where predict looks at the whole batch: see `cpu_tiling.run`.

    Our networks' convolutions have gradients that are fast inside loops on every backend, so the
    attack loop is a plain scan here (unroll=1).
    """
    if parts.eps_ramp:
        part = jnp.minimum(batch["epoch"] / parts.eps_ramp, 1.0)
        arguments = {name: part * v for name, v in parts.attack.numbers.items()} | arguments
    result = cpu_tiling.run(
        parts.attack, predict, batch["image"], batch["label"], key, params=params,
        devices=devices_of_batch(), unroll=1, **arguments,
    )  # fmt: skip
    return jax.tree.map(jax.lax.stop_gradient, result)


def attack(
    parts: Parts,
    state: RunState,
    batch: Batch,
    key: jax.Array,
    *,
    batch_stats: Any = None,
    teacher_logits: jax.Array | None = None,
    count_right: bool = False,
    **more: Any,
) -> Attacked:
    """Adversarial images of the batch, made against the student.

    What an attack loss needs of the robust teacher, or of the peer, is given to it: its logits at the clean
    images (computed once, or `teacher_logits` where the method has them already), or the network. Where there
    is neither teacher nor peer, soft labels of the batch take the place of these logits.

    Args:
      parts: networks and attack.
      state: the run.
      batch: see `Method.step`.
      key: typed PRNG key of this step.
      batch_stats: running statistics to attack with; None for the student's own.
      teacher_logits: [B,K] of the robust teacher at the clean images.
      count_right: also count the iterates that are still classified right.
      **more: arguments of the attack's `run`, such as another eps.
    """
    net, params = parts.student, state.student.params
    stats = state.student.batch_stats if batch_stats is None else batch_stats
    arguments = more | _of_teacher(parts, state, batch, teacher_logits)
    if "start_noise" in batch:
        arguments["start"] = batch["image"] + batch["start_noise"]
    train, keep = parts.attack_bn == "train", parts.attack_bn_stats == "keep"

    def forward(images: jax.Array, stats: Any):
        return net.apply({"params": params, "batch_stats": stats}, images, train)

    if not (count_right or (train and keep)):
        of = None if train else params
        images = run_attack(parts, lambda x: forward(x, stats)[0], of, batch, key, **arguments)
        return Attacked(images, stats)

    def counting(images: jax.Array, carried: Any):
        now, right = carried
        logits, after = forward(images, now)
        right = right + (jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32)
        return logits, (after if train and keep else now, right)

    start = (stats, jnp.zeros(batch["label"].shape, jnp.float32))
    images, (stats, right) = run_attack(parts, counting, None, batch, key, state=start, **arguments)
    return Attacked(images, stats, right if count_right else None)


def _of_teacher(parts: Parts, state: RunState, batch: Batch, logits: Any) -> dict[str, Any]:
    needs = parts.attack.needs_teacher
    role = next((role for role in ASKED if role in state.teachers), "")
    if needs == "logits":
        if logits is None and not role:
            logits = losses.as_logits(batch["soft_label"])
        elif logits is None:
            logits = teacher_logits(parts, state, role, batch["image"])
        return {"teacher_logits": logits}
    return {"teacher": teacher_predict(parts, state, role)} if needs == "network" else {}


def train_forward(bundle: ModelBundle, params: Any, batch_stats: Any, images: jax.Array):
    """One train-mode forward pass whose backward pass can be taken later.

    Returns (logits [B,K], backward: cotangent [B,K] -> parameter gradient, new batch_stats). Taking
    the pieces apart lets a method use one forward pass for statistics, targets and gradient, as the
    papers' code does with one autograd graph.
    """

    def forward(p: Any):
        return bundle.apply({"params": p, "batch_stats": batch_stats}, images, True)

    logits, vjp, stats = jax.vjp(forward, params, has_aux=True)
    return logits, lambda cotangent: vjp(cotangent)[0], stats


class Passes(NamedTuple):
    """What an update of the student leaves beside its metrics.

    Attributes:
      logits: [B,K] of every pass, in order.
      memory: the method's own arrays after the step, where `loss_of` returns them; else None.
    """

    logits: tuple[jax.Array, ...]
    memory: Any = None


def train_student(
    parts: Parts,
    student: NetState,
    batch_stats: Any,
    inputs: tuple[jax.Array, ...],
    loss_of: Callable[..., tuple],
    epoch: jax.Array,
    merge_stats: Callable | None = None,
    made: tuple[Any, ...] = (),
) -> tuple[NetState, Metrics, Passes]:
    """One update of the student: train-mode passes, loss, gradient, optimiser.

    Args:
      parts: the student's network, optimiser and weight perturbation.
      student: before the update.
      batch_stats: running statistics that the first pass starts from.
      inputs: images [B,H,W,C] of the train-mode forward passes, in order; each updates the running
        statistics once.
      loss_of: (*logits, one [B,K] for each input) -> (scalar, metrics) or (scalar, metrics, memory).
      epoch: picks the learning rate.
      merge_stats: tuple of the statistics after each pass -> the student's; default: the last.
      made: the first of the passes, where they exist already: `train_forward` at the student's parameters.

    Returns:
      (student, metrics of `loss_of` with "loss" and "lr", passes). With adversarial weight perturbation all
      of them belong to the perturbed weights.
    """
    net, optim = parts.student, parts.student_optim

    def loss_and_rest(*logits: jax.Array):
        loss, metrics, *memory = loss_of(*logits)
        return loss, (metrics, *memory)

    def gradient_at(params: Any, *passes: Any):
        for images in inputs[len(passes) :]:
            before = passes[-1][2] if passes else batch_stats
            passes = *passes, train_forward(net, params, before, images)
        logits, backward, stats = zip(*passes, strict=True)
        (loss, (metrics, *memory)), cotangents = jax.value_and_grad(
            loss_and_rest, tuple(range(len(inputs))), has_aux=True
        )(*logits)
        checked.metrics(metrics)
        grads = [back(c) for back, c in zip(backward, cotangents, strict=True)]
        return add_trees(*grads), stats, {"loss": loss} | metrics, Passes(logits, *memory)

    params = student.params
    grads, stats, metrics, seen = gradient_at(params, *made)
    if parts.awp is not None:
        offset = weight_perturbation.offset(parts.awp, params, grads, epoch)
        params = add_trees(params, offset)
        grads, stats, metrics, seen = gradient_at(params)
    rate = jnp.asarray(optim.lr(epoch, student.opt_state))
    momentum = optim.momentum(epoch, student.opt_state)
    params, opt_state = optim.update(grads, student.opt_state, params, rate, momentum)
    if parts.awp is not None:
        params = jax.tree.map(jnp.subtract, params, offset)
    final = stats[-1] if merge_stats is None else merge_stats(stats)
    return NetState(params, final, opt_state), metrics | {"lr": rate}, seen


class Views(NamedTuple):
    """Logits [B,K] at the clean and at the adversarial images; None where they are not computed."""

    nat: jax.Array | Any = None
    adv: jax.Array | Any = None


def from_loss(
    parts: Parts,
    loss: Callable[[Views, Views, Batch], tuple[jax.Array, Metrics]],
    *,
    passes: tuple[str, ...],
    teacher_at: tuple[str, ...] = (),
    merge_stats: Callable[[Any, tuple, jax.Array], Any] | None = None,
    igdm: dict[str, tuple[str, ...]] | None = None,
) -> Method:
    """Makes a method that is a loss: teacher's logits, attack, train-mode passes, update.

    Args:
      parts: networks, optimiser, attack.
      loss: (student's train-mode logits, robust teacher's eval-mode logits, batch) -> (scalar, metrics).
        The teacher's are constants.
      passes: the student's train-mode passes in order, "nat" (clean) and "adv" (adversarial). Each updates
        the running statistics once. Without "adv" here and in `teacher_at` there is no attack.
      teacher_at: where the robust teacher is asked, likewise.
      merge_stats: (statistics before the passes, those after each, epoch) -> the student's; default: the
        last. Passes that gradient matching appends then move the result.
      igdm: as `Registration.igdm`: the passes with `Parts.igdm`, which may also have "plus" (in place of
        "adv" where there is none) and "minus".

    Raises:
      ValueError: names that are none of these, a teacher or an attack that `parts` lacks, or a loss that
        cannot be computed from these views, depends on none of them, or returns something else.
    """
    checked.passes(parts, passes, teacher_at, Views._fields)
    if not callable(merge_stats) and merge_stats is not None:
        raise ValueError(f"merge_stats={merge_stats!r}; give a function or None")
    logits = jax.ShapeDtypeStruct((2, parts.student.num_classes), jnp.float32)
    views_of = (Views(**dict.fromkeys(names, logits)) for names in (passes, teacher_at))
    checked.loss(loss, parts.student, *views_of)
    added = parts.igdm if parts.igdm and parts.igdm.weight else None
    own, passes = passes, gradient_matching.passes(added, passes, igdm or {}) if added else passes

    def init(student_variables: Any, teacher_variables: dict[str, Any]):
        return student_state(parts, student_variables, teacher_variables)

    def step(state: RunState, batch: Batch, key: jax.Array):
        views, stats = {"nat": batch["image"]}, state.student.batch_stats
        soft: dict[str, jax.Array] = {}
        if "nat" in teacher_at:
            soft["nat"] = teacher_logits(parts, state, "robust", batch["image"])
        if "adv" in (*own, *teacher_at):
            attacked = attack(parts, state, batch, key, teacher_logits=soft.get("nat"))
            views["adv"], stats = attacked.images, attacked.batch_stats
        asked = set(teacher_at)
        if added:
            views |= gradient_matching.points(added, batch["image"], views["adv"])
            asked |= gradient_matching.teacher_at(added)
        for name in sorted(asked - set(soft)):
            soft[name] = teacher_logits(parts, state, "robust", views[name])

        def loss_of(*logits: jax.Array):
            z = dict(zip(passes, logits, strict=True))
            with checked.keys("the loss", batch):
                total, metrics = loss(_views(z), _views(soft), batch)
            if added:
                term = gradient_matching.term(added, soft, z)
                metrics = metrics | {"loss_base": total, "loss_igdm": term}
                total = total + gradient_matching.ramp(added, parts.epochs, batch["epoch"]) * term
            return total, metrics

        def merge(after: tuple):
            if merge_stats is None:
                return after[-1]
            merged = merge_stats(stats, after[: len(own)], batch["epoch"])
            for i in range(len(own), len(passes)):
                merged = batch_statistics.repeat(after[i - 1], after[i], merged)
            return merged

        student, metrics, seen = train_student(
            parts, state.student, stats, tuple(views[name] for name in passes), loss_of,
            batch["epoch"], merge,
        )  # fmt: skip
        z = _views(dict(zip(passes, seen.logits, strict=True)))
        return state.replace(student=student), metrics | accuracies(batch["label"], z.nat, z.adv)

    return Method(init, step)


def _views(logits: dict[str, jax.Array]) -> Views:
    return Views(logits.get("nat"), logits.get("adv", logits.get("plus")))


def targets(batch: Batch) -> jax.Array:
    """Labels for `losses.cross_entropy`: the batch's soft ones [B,K] if it has any, else its classes [B]."""
    return batch.get("soft_label", batch["label"])


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of rows whose largest logit is the label; float32 scalar."""
    return jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))


def accuracies(labels: jax.Array, z_nat: Any = None, z_adv: Any = None) -> Metrics:
    """Means of the train-mode logits that are given: "accuracy" (clean), "robust_accuracy"."""
    found = {"accuracy": z_nat, "robust_accuracy": z_adv}
    return {name: accuracy(z, labels) for name, z in found.items() if z is not None}


def scaled_kl(
    config: Any,
    z_student: jax.Array,
    z_teacher: jax.Array,
    teacher_temperature: float | jax.Array = 1.0,
) -> jax.Array:
    """config.kl_scale times the reduced KL(p_T || p_S); float32 scalar."""
    kl = losses.kl_divergence(z_student, z_teacher, teacher_temperature)
    return config.kl_scale * losses.reduce_kl(kl, z_student.shape[-1], config.kl_reduction)


def reliability(
    teacher_logits: jax.Array, labels: jax.Array, beta: float, active: jax.Array | bool
) -> jax.Array:
    """p_T(y|x')^beta, a constant; 1 where not `active`. [B] float32 in (0, 1]."""
    weight = jnp.exp(-beta * losses.cross_entropy(teacher_logits, labels))
    return jax.lax.stop_gradient(jnp.where(active, weight, 1.0))


def decayed(rate: float, decays_passed: list[jax.Array]) -> jax.Array:
    """`rate` times 0.1 for every decay that has happened; float32 scalar."""
    return jnp.asarray(rate * 0.1 ** sum((p * 1.0 for p in decays_passed), 0.0), jnp.float32)


def mean_loss(loss: Callable, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Batch mean of a per-example loss, and its gradient with respect to the logits [B,K]."""
    return jax.value_and_grad(lambda z: jnp.mean(loss(z)))(logits)


def add_trees(*trees: Any) -> Any:
    """Leafwise sum."""
    return jax.tree.map(lambda *leaves: sum(leaves), *trees)


def update_when(active: jax.Array, update: Callable[[], Any], kept: Any) -> Any:
    """`update()` where `active`, otherwise `kept` (the same structure); only one of them is computed."""
    return jax.lax.cond(active, update, lambda: kept)
