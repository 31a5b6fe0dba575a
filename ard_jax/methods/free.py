"""Free adversarial training (Shafahi et al. 2019, NeurIPS, arXiv 1904.12843): one gradient, two uses."""

from typing import Any

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.attacks import threat_model
from ard_jax.attacks.projected_gradient import PgdAttack
from ard_jax.methods import base
from ard_jax.methods.options import AtLeastOne, Options
from ard_jax.state import RunState


class FreeConfig(Options):
    """Options of Free."""

    replays: AtLeastOne = Field(8, description="Updates on every batch; 8 in the code.")


def make(config: FreeConfig, parts: base.Parts) -> base.Method:
    """L = mean_B CE(S(x + d), y), m times in a row on every batch; d is kept, over the batches too.

    One train-mode pass S(x + d) of a replay, forward and back, has the gradients of the weights and of d. d
    moves by a step of eps along its sign and is cut to the ball and to where x + d is in [0,1]; then the
    weights are updated. The next batch begins with the d of the last one, which is cut there only after its
    first pass, as in the code; a shorter batch uses and changes the first rows of d. At the start d = 0.
    BatchNorm: train mode throughout, so that the running statistics move once in every replay, whatever
    `attack_bn` is. Cost: m passes of the student forward and back, to input and weights.
    Schedule: 10 epochs of m replays, `cyclic` to 0.04 over all replays, weight decay 5e-4. Source:
    locuslab/fast_adversarial, train_free.py. There inputs are normalised and eps and step divided by the
    same numbers, which is this attack; half precision is `config.precision`.

    Raises:
      ValueError: `parts` has no batch size, a radius that grows, or a weight perturbation, which has no place
        in one gradient.
    """
    if not parts.batch_size:
        raise ValueError("method 'free' keeps d over the batches: it needs Parts(batch_size=...)")
    if parts.eps_ramp:
        raise ValueError(
            "method 'free' keeps d over the batches, in one ball; use attack.eps_ramp=0"
        )
    if parts.awp is not None:
        raise ValueError("method 'free' takes one gradient, and so no weight perturbation (awp)")
    net, optim, attack = parts.student, parts.student_optim, parts.attack

    def init(student_variables: dict[str, Any], teacher_variables: dict[str, Any]):
        delta = jnp.zeros((parts.batch_size, *net.image_shape), jnp.float32)
        return base.student_state(parts, student_variables, memory={"delta": delta})

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        images, labels, size = batch["image"], batch["label"], len(batch["label"])
        if size > parts.batch_size:
            raise ValueError(
                f"a batch of {size} images: method 'free' was made with {parts.batch_size}"
            )

        def loss_at(params: Any, delta: jax.Array, stats: Any):
            variables = {"params": params, "batch_stats": stats}
            logits, after = net.apply(variables, images + delta, True)
            return jnp.mean(losses.cross_entropy(logits, labels)), (logits, after)

        def replay(carry: tuple[Any, jax.Array], _: Any):
            student, delta = carry
            gradient = jax.value_and_grad(loss_at, (0, 1), has_aux=True)
            (loss, (logits, stats)), (of_params, of_delta) = gradient(
                student.params, delta, student.batch_stats
            )
            moved = delta + attack.step_size * threat_model.ascent_direction(of_delta, attack.norm)
            delta = attack.threat.cut(images + moved, images) - images
            rate = jnp.asarray(optim.lr(batch["epoch"], student.opt_state))
            momentum = optim.momentum(batch["epoch"], student.opt_state)
            params, opt_state = optim.update(
                of_params, student.opt_state, student.params, rate, momentum
            )
            student = student.replace(params=params, batch_stats=stats, opt_state=opt_state)
            accuracy = base.accuracy(logits, labels)
            return (student, delta), {"loss": loss, "lr": rate, "robust_accuracy": accuracy}

        kept = state.method["delta"]
        start = batch.get("start_noise", kept[:size])
        carry, metrics = jax.lax.scan(replay, (state.student, start), length=config.replays)
        student, delta = carry
        memory = {"delta": kept.at[:size].set(delta)}
        means = {name: jnp.mean(values) for name, values in metrics.items()}
        return state.replace(student=student, method=memory), means

    return base.Method(init, step)


def _refuses(config: FreeConfig, attack: Any) -> str:
    if isinstance(attack, PgdAttack) and (attack.loss, attack.steps, attack.start) == (
        "cross_entropy", 1, "none",
    ):  # fmt: skip
        return ""
    return "is not one step on CE from x: the replays of 'free' are its steps; use 'fgsm'"


REGISTRATION = base.Registration(
    "free", FreeConfig, make, attack="fgsm", refuses=_refuses,
    updates=lambda config: config.replays,
    needs_labels=lambda _: "has one gradient of the class's cross-entropy for weights and images",
)  # fmt: skip
