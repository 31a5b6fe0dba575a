"""CIARD's options: each default is what the authors' code does, each alternative has a name."""

from typing import Literal

from pydantic import Field

from ard_jax.methods.options import (
    AtLeastOne,
    BelowOne,
    Count,
    Epochs,
    NotNegative,
    Options,
    Positive,
    Reduction,
    increase,
)


class CiardConfig(Options):
    """Options of CIARD."""

    itt_start: AtLeastOne = Field(
        51, description="First epoch (from 1) in which the robust teacher R is trained; 51 of 300."
    )
    itt_every: AtLeastOne = Field(1, description="R takes an SGD step at every k-th student step.")
    itt_anchor: Literal["none", "ema", "ce_kl"] = Field(
        "none",
        description=(
            "`none`; `ema`: soft labels come from a moving average of R's weights; `ce_kl`: R's loss has "
            "an added KL to the R that the run began with."
        ),
    )
    itt_ema_decay: BelowOne = Field(0.999, description="Decay of `ema`, per step.")
    itt_kl_weight: NotNegative = Field(1.0, description="Weight of the KL of `ce_kl`.")
    forward_order: Literal["clean_first", "adversarial_first"] = Field(
        "clean_first",
        description="`clean_first` is CIARD's; MTARD and B-MTARD run `adversarial_first`.",
    )
    clean_weight: NotNegative = Field(
        1.0,
        description="Factor of L2 in the objective, 1 in the code; the push's scale s comes from L2 itself.",
    )
    branch_weights: Literal["unit", "nlb"] = Field(
        "unit",
        description=(
            "`unit`: L1 + L2 (the code since May 2025); `nlb`: MTARD's balanced weights (the first public "
            "commit)."
        ),
    )
    weight_rate: NotNegative = Field(0.025, description="Rate of `nlb`.")
    temp_balance: Literal["on", "off"] = Field(
        "on", description="Entropy-balanced teacher temperatures, or `off` for T = 1."
    )
    temp_rate: NotNegative = Field(1e-3, description="Their rate per step.")
    temp_decay: Literal["freeze", "per_epoch"] = Field(
        "freeze",
        description=(
            "`freeze` from the first of `decay_epochs` (what the code's per-step decay amounts to), or "
            "`per_epoch`: times 0.1 at each."
        ),
    )
    decay_epochs: Epochs = Field((215, 260, 285), description="215, 260, 285 of 300.")
    push: bool = Field(True, description="The contrastive push-loss.")
    push_lambda: NotNegative = Field(1.0, description="Its factor.")
    push_temperature: Literal["student_only", "both"] = Field(
        "student_only", description="5 on the student only, or on `both`."
    )
    push_t: Positive = Field(5.0, description="That temperature.")
    push_scale: Literal["decade", "continuous", "fixed", "bounded"] = Field(
        "decade",
        description=(
            "`decade` is the code's; `continuous` replaces the jumps by min(L1, L2)/L3; `fixed` uses "
            "push_lambda alone (start from 0.1 at 10 classes); `bounded` adds the student's probability "
            "of the teacher's wrong class, where R is right (start from push_lambda 0.05-0.08)."
        ),
    )
    push_warmup: Count = Field(80, description="Epochs over which `bounded` ramps up; 0 for none.")
    kl_eps: NotNegative = Field(1e-5, description="Constant on the teacher's side of the KL.")
    kl_reduction: Reduction = Field(
        "mean_classes", description="`mean_classes` is the code's mean over batch and classes."
    )
    kl_scale: NotNegative = Field(
        1.0, description="Factor of L1 and L2; 10 on CIFAR-100 undoes the mean over more classes."
    )
    r_label_bn: Literal["train", "eval"] = Field(
        "train",
        description="R's soft labels from batch statistics (`train`, as the code) or `eval`.",
    )
    r_clean_forward: Literal["drop", "keep"] = Field(
        "drop",
        description=(
            "`keep` also runs R(x), which moves R's running statistics and nothing else. The default "
            "drops it and saves a forward pass through R; with r_label_bn=`train` the student is the "
            "same."
        ),
    )

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        return increase("decay_epochs", self.decay_epochs)
