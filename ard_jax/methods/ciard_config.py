"""CIARD's options: each default is what the authors' code does, each alternative has a name."""

import dataclasses

_CHOICES = {
    "itt_anchor": ("none", "ema", "ce_kl"),
    "forward_order": ("clean_first", "adversarial_first"),
    "branch_weights": ("unit", "nlb"),
    "temp_balance": ("on", "off"),
    "temp_decay": ("freeze", "per_epoch"),
    "push_temperature": ("student_only", "both"),
    "push_scale": ("decade", "continuous", "fixed", "bounded"),
    "kl_reduction": ("mean_classes", "batchmean", "scaled10"),
    "r_label_bn": ("train", "eval"),
    "r_clean_forward": ("drop", "keep"),
}


@dataclasses.dataclass(frozen=True)
class CiardConfig:
    """Options of CIARD.

    Attributes:
      itt_start: first epoch (from 1) in which the robust teacher R is trained; 51 of 300.
      itt_every: R takes an SGD step at every k-th student step.
      itt_anchor: "none"; "ema": soft labels come from a moving average of R's weights; "ce_kl": R's
        loss has an added KL to the R that the run began with.
      itt_ema_decay: decay of "ema", per step.
      itt_kl_weight: weight of the KL of "ce_kl".
      forward_order: "clean_first" is CIARD's; MTARD and B-MTARD run "adversarial_first".
      clean_weight: factor of L2 in the objective, 1 in the code; the push's scale s is taken from L2 itself.
      branch_weights: "unit": L1 + L2 (the code since May 2025); "nlb": MTARD's balanced weights (the
        first public commit).
      weight_rate: rate of "nlb".
      temp_balance: entropy-balanced teacher temperatures, or "off" for T = 1.
      temp_rate: their rate per step.
      temp_decay: "freeze" from the first of `decay_epochs` (what the code's per-step decay amounts
        to), or "per_epoch": times 0.1 at each.
      decay_epochs: 215, 260, 285 of 300.
      push: the contrastive push-loss.
      push_lambda: its factor.
      push_temperature: 5 on the student only, or on "both".
      push_t: that temperature.
      push_scale: "decade" is the code's; "continuous" replaces the jumps by min(L1, L2)/L3; "fixed"
        uses push_lambda alone (start from 0.1 at 10 classes); "bounded" adds the student's
        probability of the teacher's wrong class, where R is right (start from push_lambda 0.05-0.08).
      push_warmup: epochs over which "bounded" ramps up; 0 for none.
      kl_eps: constant on the teacher's side of the KL.
      kl_reduction: "mean_classes" is the code's mean over batch and classes.
      kl_scale: factor of L1 and L2; 10 on CIFAR-100 undoes the mean over more classes.
      r_label_bn: R's soft labels from batch statistics ("train", as the code) or "eval".
      r_clean_forward: "keep" also runs R(x), which moves R's running statistics and nothing else.
        The default drops it and saves a forward pass through R; with r_label_bn="train" the student is
        the same.
    """

    itt_start: int = 51
    itt_every: int = 1
    itt_anchor: str = "none"
    itt_ema_decay: float = 0.999
    itt_kl_weight: float = 1.0
    forward_order: str = "clean_first"
    clean_weight: float = 1.0
    branch_weights: str = "unit"
    weight_rate: float = 0.025
    temp_balance: str = "on"
    temp_rate: float = 1e-3
    temp_decay: str = "freeze"
    decay_epochs: tuple[int, ...] = (215, 260, 285)
    push: bool = True
    push_lambda: float = 1.0
    push_temperature: str = "student_only"
    push_t: float = 5.0
    push_scale: str = "decade"
    push_warmup: int = 80
    kl_eps: float = 1e-5
    kl_reduction: str = "mean_classes"
    kl_scale: float = 1.0
    r_label_bn: str = "train"
    r_clean_forward: str = "drop"

    def problems(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = [
            f"method.{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}"
            for name, choices in _CHOICES.items()
            if getattr(self, name) not in choices
        ]
        for name in ("itt_every", "itt_start"):
            if getattr(self, name) < 1:
                found.append(f"method.{name}={getattr(self, name)}: must be at least 1")
        for name in (
            "push_lambda",
            "clean_weight",
            "kl_scale",
            "temp_rate",
            "weight_rate",
            "itt_kl_weight",
        ):
            if getattr(self, name) < 0:
                found.append(f"method.{name}={getattr(self, name)}: must not be negative")
        if not self.push_t > 0:
            found.append(f"method.push_t={self.push_t}: a temperature must be positive")
        if not self.kl_eps >= 0:
            found.append(f"method.kl_eps={self.kl_eps}: must not be negative")
        if not 0 <= self.itt_ema_decay < 1:
            found.append(f"method.itt_ema_decay={self.itt_ema_decay}: must be in [0, 1)")
        if list(self.decay_epochs) != sorted(self.decay_epochs):
            found.append(f"method.decay_epochs={self.decay_epochs}: must increase")
        return found
