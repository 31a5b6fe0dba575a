"""RSLAD (Zi et al. 2021, arXiv 2108.07969): only the robust teacher's soft labels, no hard labels."""

from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import NotNegative, Options, Reduction, Share

TEACHERS = ("robust",)


class RsladConfig(Options):
    """Options of RSLAD."""

    adv_weight: Share = Field(
        5 / 6,
        description="Weight of the adversarial term; the clean one has 1 - adv_weight. 5/6 in the code.",
    )
    kl_reduction: Reduction = Field(
        "mean_classes",
        description="`mean_classes` on CIFAR-10; the code's CIFAR-100 terms times 10 are `scaled10`.",
    )
    kl_scale: NotNegative = Field(1.0, description="Factor on both terms.")


def distillation(config, z_student, z_teacher, teacher_temperature=1.0):
    """kl_scale times the reduced KL(p_T || p_S); float32 scalar."""
    kl = losses.kl_divergence(z_student, z_teacher, teacher_temperature)
    return config.kl_scale * losses.reduce_kl(kl, z_student.shape[-1], config.kl_reduction)


def make(config: RsladConfig, parts: base.Parts) -> base.Method:
    """L = 5/6 mean_BC KL(p_T(x) || p_S(x')) + 1/6 mean_BC KL(p_T(x) || p_S(x)).

    Attack: PGD on KL(p_T(x) || p_S(x')), start x + 0.001 N(0, I), eval mode, nothing updated. The
    teacher is evaluated once, at x, in eval mode; attack and loss share its logits. Then the train-mode
    passes S(x'), S(x), in this order: two updates of the student's running statistics.
    Cost with K attack steps: K passes forward and back to the input, 2 forward and back to the weights,
    1 forward of the teacher.
    Schedule: 300 epochs, rate 0.1, times 0.1 after 215, 260, 285, weight decay 2e-4. Source:
    zibojia/RSLAD; paper and code agree.
    """

    def init(student_variables, teacher_variables):
        return base.student_state(parts, student_variables, teacher_variables)

    def step(state, batch, key):
        images, labels = batch["image"], batch["label"]
        soft = base.teacher_logits(parts, state, "robust", images)
        attacked = base.attack(parts, state, batch, key, teacher_logits=soft)

        def loss_of(z_adv, z_nat):
            robust, clean = distillation(config, z_adv, soft), distillation(config, z_nat, soft)
            total = config.adv_weight * robust + (1 - config.adv_weight) * clean
            return total, {"loss_robust": robust, "loss_clean": clean}

        student, metrics, (z_adv, z_nat) = base.train_student(
            parts, state.student, attacked.batch_stats, (attacked.images, images), loss_of,
            batch["epoch"],
        )  # fmt: skip
        return state.replace(student=student), metrics | base.accuracies(labels, z_nat, z_adv)

    return base.Method("rslad", TEACHERS, (), init, step)
