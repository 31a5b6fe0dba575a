"""Attacks by name, with the parameters that papers report them under."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from ard_jax.attacks import loop, objectives, threat_model
from ard_jax.attacks.pgd import Predict, pgd

# Fields that may differ between two runs of one compiled program.
_TRACED = ("name", "label", "eps", "step_size")


@dataclasses.dataclass(frozen=True)
class AttackSpec:
    """One attack with all its numbers; hashable.

    Attributes:
      name: registry name, or any other.
      label: how reports call it.
      eps: radius in pixel units ([0,1] images: 8/255 is 8 grey levels).
      step_size: in pixel units.
      steps: number of steps.
      loss: what is maximised, one of `objectives.LOSSES` (`objectives.make_objective`).
      start: "none", "uniform" or "gauss".
      restarts: independent starts, of which the worst is kept per example.
      norm: "linf" or "l2".
      order: of cutting to ball and range (`threat_model.ORDERS`).
      confidence: of loss "cw", in logit units.
      sigma: of start "gauss", in pixel units.
      clip_start: cut a random start to the pixel range.
      clip_min: lowest pixel value.
      clip_max: highest pixel value.
      alpha_schedule: how the step size changes over the steps (`loop.ascend`).
      channel_mask_rho: channels with less gradient than this part of the largest do not move.
      lambda_schedule, lambda_value, dice, dice_form, dice_groups, smoothing: of loss "dice"
        (`dpgd`); with another loss they must keep their defaults.

    Raises:
      ValueError: on construction, for a bad value; the message names it and the fix.
    """

    name: str
    label: str
    eps: float
    step_size: float
    steps: int
    loss: str = "cross_entropy"
    start: str = "none"
    restarts: int = 1
    norm: str = "linf"
    order: str = "ball_then_range"
    confidence: float = 50.0
    sigma: float = 0.001
    clip_start: bool = True
    clip_min: float = 0.0
    clip_max: float = 1.0
    alpha_schedule: str = "const"
    channel_mask_rho: float = 0.0
    lambda_schedule: str = "paper"
    lambda_value: float = 0.25
    dice: str = "batch"
    dice_form: str = "stable"
    dice_groups: int = 1
    smoothing: float = 1e-5

    def __post_init__(self):
        """Checks every field."""
        try:
            for name in ("eps", "step_size"):
                if isinstance(getattr(self, name), jax.Array):
                    raise ValueError(
                        f"{name} is a JAX array; give a Python number, or pass it to run()"
                    )
            threat_model.check_threat(
                self.eps, self.step_size, self.steps, self.norm, self.clip_min, self.clip_max
            )
            threat_model.check_count("restarts", self.restarts, 1)
            threat_model.check_choice("attack loss", self.loss, objectives.LOSSES)
            threat_model.check_choice("start", self.start, threat_model.STARTS)
            threat_model.check_choice("order", self.order, threat_model.ORDERS)
            threat_model.check_number("confidence", self.confidence)
            threat_model.check_number("sigma", self.sigma)
            threat_model.check_choice("alpha_schedule", self.alpha_schedule, loop.ALPHA_SCHEDULES)
            threat_model.check_number("channel_mask_rho", self.channel_mask_rho, 0.0, 1.0)
            self._check_dice()
        except ValueError as error:
            raise ValueError(f"attack {self.name!r}: {error}") from None

    def _check_dice(self):
        options = {name: getattr(self, name) for name in objectives.DICE_OPTIONS}
        objectives.check_dice_options(options)
        changed = [n for n, value in options.items() if value != objectives.DICE_OPTIONS[n]]
        if changed and self.loss != "dice":
            raise ValueError(f"{', '.join(changed)}: options of loss 'dice', not {self.loss!r}")

    @property
    def needs_teacher(self) -> str:
        """What `run` needs of a teacher: "" nothing, "logits" teacher_logits, "network" teacher."""
        if self.loss == "teacher_moving_kl":
            return "network"
        soft = self.loss == "dice" and self.dice == "soft"
        return "logits" if soft or self.loss == "teacher_kl" else ""

    @property
    def program(self) -> tuple[tuple[str, Any], ...]:
        """Everything static, hashable: attacks with equal programs share one compiled function.

        Left out are names, eps and step_size, which `run` takes as traced values.
        """
        fields = dataclasses.fields(self)
        return tuple((f.name, getattr(self, f.name)) for f in fields if f.name not in _TRACED)

    def with_eps(self, eps: float) -> "AttackSpec":
        """The same attack at another radius, the step size scaled with it."""
        return dataclasses.replace(self, eps=eps, step_size=self._scaled_step(eps))

    def _scaled_step(self, eps):
        if self.eps == 0:
            raise ValueError(
                f"attack {self.name!r} has eps=0, so its step size cannot be scaled to eps={eps}; "
                "give step_size too"
            )
        return self.step_size / self.eps * eps

    def own_start(
        self, images: jax.Array, key: jax.Array | None, eps: float | jax.Array | None = None
    ) -> jax.Array:
        """The first iterate [B,H,W,C] that `run` takes with this key and eps, for one restart."""
        key = None if key is None else jax.random.fold_in(key, 0)
        clip = (self.clip_min, self.clip_max) if self.clip_start else None
        return threat_model.random_start(
            self.start, key, images, self.eps if eps is None else eps, norm=self.norm,
            sigma=self.sigma, clip=clip,
        )  # fmt: skip

    def run(
        self,
        predict: Predict,
        images: jax.Array,
        labels: jax.Array | None,
        key: jax.Array | None = None,
        *,
        eps: float | jax.Array | None = None,
        step_size: float | jax.Array | None = None,
        start: jax.Array | None = None,
        unroll: int | bool | None = None,
        teacher_logits: jax.Array | None = None,
        teacher: Callable[[jax.Array], jax.Array] | None = None,
        state: Any = None,
    ) -> jax.Array | tuple[jax.Array, Any]:
        """Runs the attack.

        Args:
          predict: images -> logits [B,K], pure, eval mode; with a state (images, state) ->
            (logits, state).
          images: [B,H,W,C] float32 in [clip_min, clip_max].
          labels: [B] int; may be None for the losses `objectives.WITHOUT_LABELS`.
          key: typed PRNG key; needed for a random start.
          eps: other radius, may be traced; without `step_size` the step scales with it.
          step_size: other step size, may be traced.
          start: first iterate [B,H,W,C] (or [R,B,H,W,C]) in place of the random one.
          unroll: see `loop.resolve_unroll`.
          teacher_logits: [B,K], a constant; needed where `needs_teacher` is "logits".
          teacher: images -> logits [B,K]; needed where `needs_teacher` is "network".
          state: pytree that predict updates once a step, threaded through the attack; None for a
            stateless predict. Not with restarts.

        Returns:
          [B,H,W,C] float32; with a state (that, the state after the last step).

        Raises:
          ValueError: as `pgd`.
        """
        if step_size is None:
            step_size = self.step_size if eps is None else self._scaled_step(eps)
        options = dict(self.program)
        if self.loss != "dice":
            options = {k: v for k, v in options.items() if k not in objectives.DICE_OPTIONS}
        if start is not None:
            options["start"] = start
        eps = self.eps if eps is None else eps
        return pgd(
            predict, images, labels, key, eps=eps, step_size=step_size, unroll=unroll,
            teacher_logits=teacher_logits, teacher=teacher, state=state, **options,
        )  # fmt: skip


def _entry(label, step_per_eps, steps, **static):
    return {"label": label, "step_per_eps": step_per_eps, "steps": steps, **static}


_UNIFORM = {"start": "uniform", "order": "range_then_ball"}
_GAUSS = {"start": "gauss", "clip_start": False}
_TRADES_STEP = 0.007 / 0.031
_PER_SAMPLE = {"loss": "dice", "dice": "per_sample"}

# Step sizes as parts of eps. At 8/255: eps/4 is 2/255, 0.003 is PGD_trades' step, all of them from
# eminentgu/CIARD's evaluation except BIM and T-PGD (torchattacks). Inner attacks of training:
# trades_train (yaodongyu/TRADES: 0.007 at eps 0.031), mart_train (YisenWang/MART, the same with CE),
# rslad_train (zibojia/RSLAD), adaad_train (boyellow/AdaAD), ard_train (goldblum/
# AdversariallyRobustDistillation and ZFancy/IAD), score_train (P2333/SCORE), sat_train
# (MadryLab/cifar10_challenge). dpgd: DARD's scripts; see `dpgd`.
ATTACKS = {
    "fgsm": _entry("FGSM", 1.0, 1),
    "pgd_sat": _entry("PGD_sat", 0.25, 20, **_UNIFORM),
    "pgd_trades": _entry("PGD_trades", 0.003 * 255 / 8, 20, **_UNIFORM),
    "bim": _entry("BIM", 0.25, 10),
    "tpgd": _entry("T-PGD", 0.25, 10, start="uniform", loss="least_likely"),
    "cw_inf": _entry("CW_inf", 0.25, 30, loss="cw", order="range_at_end"),
    "pgd20": _entry("PGD-20", 0.25, 20, **_UNIFORM),
    "ciard_train": _entry("CIARD training", 0.25, 10, **_GAUSS),
    "trades_train": _entry("TRADES training", _TRADES_STEP, 10, loss="kl", **_GAUSS),
    "mart_train": _entry("MART training", _TRADES_STEP, 10, **_GAUSS),
    "rslad_train": _entry("RSLAD training", 0.25, 10, loss="teacher_kl", **_GAUSS),
    "adaad_train": _entry("AdaAD training", 0.25, 10, loss="teacher_moving_kl", **_GAUSS),
    "ard_train": _entry("ARD training", 0.25, 10, start="uniform", clip_start=False),
    "score_train": _entry("SCORE training", 0.25, 10, start="uniform", loss="squared"),
    "sat_train": _entry("SAT training", 0.25, 10, start="uniform"),
    "dpgd": _entry("DPGD", 0.25, 10, loss="dice"),
    "dpgd_per_sample": _entry("DPGD_per_sample", 0.25, 10, **_PER_SAMPLE),
    "dpgd_strong": _entry("DPGD_strong", 0.25, 10, loss="dice", start="uniform"),
}
_EVALUATION = ("fgsm", "pgd_sat", "pgd_trades", "bim", "tpgd", "cw_inf")


def names() -> list[str]:
    """Names that `make` knows."""
    return sorted(ATTACKS)


def evaluation_names() -> tuple[str, ...]:
    """The attacks that the evaluation runs by default, in the order of its table."""
    return _EVALUATION


def make(name: str, eps: float = 8 / 255, norm: str = "linf", **overrides: Any) -> AttackSpec:
    """The attack `name` at radius `eps`.

    Step sizes are stored relative to eps, so every attack can be had at any radius (digits: 0.2);
    at 8/255 they are the papers'. In L2 the same step-to-radius ratios hold and the label says so.

    Args:
      name: one of `names()`. "pgd20" is PGD_sat under the name that training logs use.
      eps: radius in pixel units.
      norm: "linf" or "l2".
      **overrides: fields of `AttackSpec`, absolute (steps, step_size, restarts, start, ...).

    Returns:
      AttackSpec.

    Raises:
      ValueError: unknown name or field, or a bad value.
    """
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}; choose one of {', '.join(names())}")
    fields = {f.name for f in dataclasses.fields(AttackSpec)} - {"name", "eps", "norm"}
    unknown = sorted(set(overrides) - fields)
    if unknown:
        raise ValueError(
            f"attack {name!r} has no parameter {', '.join(unknown)}; it has "
            f"{', '.join(sorted(fields))}"
        )
    values = dict(ATTACKS[name])
    ratio = values.pop("step_per_eps")
    threat_model.check_number("eps", eps)
    if norm == "l2":
        values["label"] = f"{values['label'].replace('_inf', '')} (L2)"
    values |= {"step_size": ratio * eps} | overrides
    return AttackSpec(name=name, eps=eps, norm=norm, **values)
