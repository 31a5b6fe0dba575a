"""What the docstrings say of CIARD's cost: S(x) is computed once, although the code names it twice."""

import jax
import jax.numpy as jnp
import pytest

from ard_jax import attacks, methods, models, optim

SHAPE = (16, 16, 3)


def flops(order):
    """Floating point operations of one compiled step, in forward passes of the student."""
    net = models.create("small_resnet", 10, SHAPE, widths=(8, 16), blocks=1)
    parts = methods.Parts(
        student=net,
        student_optim=optim.make(optim.OptimConfig(), 10),
        attack=attacks.make("ciard_train", eps=0.1, steps=1),
        teachers={"robust": net, "clean": net},
        teacher_optims={"robust": optim.make(optim.OptimConfig(), 10)},
    )
    method = methods.create("ciard", parts, forward_order=order)
    variables = net.init(jax.random.key(0))
    state = method.init(variables, {"robust": variables, "clean": variables})
    batch = {"image": jnp.zeros((32, *SHAPE)), "label": jnp.zeros(32, jnp.int32)}
    batch["epoch"] = jnp.asarray(1)

    def count(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    forward = count(lambda v, x: net.apply(v, x, True), variables, batch["image"])
    return count(method.step, state, batch, jax.random.key(1)) / forward


@pytest.mark.slow
def test_the_pass_before_the_attack_is_not_computed_again(optimised_programs):
    assert abs(flops("clean_first") - flops("adversarial_first")) < 0.01
