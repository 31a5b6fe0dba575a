"""Natural training, PGD adversarial training and TRADES."""

import jax
import numpy as np
import pytest
from small_networks import batch, network

from ard_jax import attacks, methods, optim


def parts(name):
    inner = "trades_train" if name == "trades" else "pgd_sat"
    return methods.Parts(
        student=network(),
        student_optim=optim.make(optim.OptimConfig(lr=0.05), 10),
        attack=None if name == "natural" else attacks.make(inner, eps=0.1, steps=3),
    )


@pytest.mark.parametrize("name", ["natural", "sat", "trades"])
def test_loss_falls_on_one_batch(name):
    p = parts(name)
    method = methods.create(name, p)
    state, step, losses = (
        method.init(p.student.init(jax.random.key(0)), {}),
        jax.jit(method.step),
        [],
    )
    for i in range(30):
        state, metrics = step(state, batch(), jax.random.key(i))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_trades_statistics_are_three_passes():
    """yaodongyu/TRADES runs S(x), S(x'), S(x) in train mode: so must the running statistics show."""
    p = parts("trades")
    method, b = methods.create("trades", p), batch()
    state = method.init(p.student.init(jax.random.key(0)), {})
    new, _ = method.step(state, b, jax.random.key(1))
    old = state.student
    predict = lambda x: p.student.apply(old.variables, x, False)[0]  # noqa: E731
    adversarial = p.attack.run(predict, b["image"], b["label"], jax.random.key(1), unroll=1)
    stats = old.batch_stats
    for images in (b["image"], adversarial, b["image"]):
        _, stats = p.student.apply({"params": old.params, "batch_stats": stats}, images, True)
    for ours, theirs in zip(*map(jax.tree.leaves, (new.student.batch_stats, stats)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_unknown_method_names_the_choices():
    with pytest.raises(ValueError, match="unknown method 'mard'") as caught:
        methods.create("mard", parts("sat"))
    assert all(name in str(caught.value) for name in methods.names())
