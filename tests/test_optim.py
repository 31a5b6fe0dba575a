"""Learning-rate tables and SGD against torch's rule, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax.optim import OptimConfig, make

STUDENT = OptimConfig(schedule="ciard", start=150)
TEACHER = OptimConfig(lr=1e-4, momentum=0.1, schedule="ciard", start=50, idle_before_start=True)


# The authors' code at 300 epochs: 0.1 (0.5 + 0.5 cos(pi (e-150)/150)) exp(-0.01 (e-150)^2/150^2), etc.
@pytest.mark.parametrize(
    ("config", "table"),
    [
        (STUDENT, {1: 0.1, 149: 0.1, 200: 0.07492, 225: 0.04988, 250: 0.02489, 275: 0.00665,
                   299: 1.1e-5, 300: 0.0}),
        (TEACHER, {1: 0.0, 49: 0.0, 51: 1.000e-4, 100: 9.04e-5, 150: 6.53e-5, 200: 3.44e-5,
                   250: 9.5e-6, 300: 0.0}),
    ],
)  # fmt: skip
def test_rates_of_ciard(config, table):
    optimizer = make(config, 300)
    for epoch, rate in table.items():
        assert float(optimizer.lr(jnp.asarray(epoch))) == pytest.approx(rate, rel=6e-3, abs=2e-7)


def test_rate_is_exactly_zero_in_the_last_epoch():
    assert float(make(STUDENT, 300).lr(jnp.asarray(300))) == 0.0


def test_multistep_counts_epochs_from_one():
    optimizer = make(OptimConfig(schedule="multistep", boundaries=(75, 90)), 100)
    rates = [float(optimizer.lr(jnp.asarray(e))) for e in (1, 74, 75, 89, 90, 100)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


def test_cosine_with_warmup():
    optimizer = make(OptimConfig(schedule="cosine", warmup=4), 20)
    rates = [float(optimizer.lr(jnp.asarray(e))) for e in range(1, 21)]
    assert rates[0] == pytest.approx(0.025) and max(rates) < 0.1
    assert rates[4:] == sorted(rates[4:], reverse=True) and 0 < rates[-1] < 0.002


def test_one_cycle():
    """A fifth of the run up, the rest down; the momentum the other way."""
    optimizer = make(OptimConfig(lr=0.5, schedule="one_cycle", warmup=5), 25)
    rates = [float(optimizer.lr(jnp.asarray(e))) for e in (1, 3, 5, 15, 25)]
    middle = (0.5 + 0.5 / 250_000) / 2
    np.testing.assert_allclose(rates, [0.02, 0.26, 0.5, middle, 2e-6], rtol=1e-5, atol=1e-7)
    momenta = [float(optimizer.momentum(jnp.asarray(e))) for e in (1, 3, 5, 15, 25)]
    np.testing.assert_allclose(momenta, [0.95, 0.9, 0.85, 0.9, 0.95], rtol=1e-6)


def test_momentum_of_an_epoch_enters_the_update():
    optimizer, ones = make(OptimConfig(weight_decay=0.0), 10), jnp.ones(())
    assert optimizer.momentum(jnp.asarray(3)) == 0.9
    for momentum in (0.5, jnp.asarray(0.8)):
        params, state = optimizer.update(ones, optimizer.init(ones), ones, 0.1, momentum)
        params, _ = optimizer.update(ones, state, params, 0.1, momentum)
        np.testing.assert_allclose(params, 1 - 0.1 - 0.1 * (1 + momentum), rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup": 1}, "warmup=1: schedule='one_cycle' needs at least 2 epochs"),
        ({"warmup": 2, "momentum": 0.97}, "momentum=0.97: schedule='one_cycle' needs one"),
        ({"warmup": 2, "momentum": 0.0}, "momentum=0.0: schedule='one_cycle' needs one"),
    ],
)
def test_bad_one_cycle(values, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(schedule="one_cycle", **values)
    late = OptimConfig(schedule="one_cycle", warmup=10)
    assert late.misfits(10) == ["warmup=10: must be less than the 10 epochs of the run"]


@pytest.mark.parametrize("nesterov", [False, True])
def test_update_is_torchs_sgd(nesterov):
    config = OptimConfig(momentum=0.9, weight_decay=2e-4, nesterov=nesterov)
    optimizer, rate = make(config, 10), 0.1
    params, buffer = np.array([1.0, -2.0]), 0.0
    ours = jnp.asarray(params, jnp.float32)
    state = optimizer.init(ours)
    for step in range(4):
        gradient = np.array([0.3, 0.1]) * (step + 1)
        ours, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, ours, rate)
        coupled = gradient + 2e-4 * params
        buffer = 0.9 * buffer + coupled
        params = params - rate * (coupled + 0.9 * buffer if nesterov else buffer)
    np.testing.assert_allclose(ours, params, rtol=1e-5)


def test_traced_epoch():
    optimizer = make(STUDENT, 300)
    traced, plain = jax.jit(optimizer.lr)(jnp.asarray(225)), optimizer.lr(jnp.asarray(225))
    np.testing.assert_allclose(traced, plain, rtol=1e-6)


def test_cyclic_is_torchs_scheduler_step_by_step():
    """CyclicLR(0, 0.2, 6 up, 6 down), which also moves the momentum from 0.9 to 0.8 and back."""
    config = OptimConfig(lr=0.2, schedule="cyclic", weight_decay=0.0)
    optimizer = make(config, 4, steps_per_epoch=3)
    params, ours, buffer = 1.0, jnp.ones(()), 0.0
    state = optimizer.init(ours)
    for step in range(12):
        height = min(step, 12 - step) / 6
        rate = optimizer.lr(jnp.asarray(step // 3 + 1), state)
        np.testing.assert_allclose(rate, 0.2 * height, atol=1e-7)
        momentum = optimizer.momentum(jnp.asarray(step // 3 + 1), state)
        ours, state = optimizer.update(jnp.float32(0.3 + step), state, ours, rate, momentum)
        buffer = (0.9 - 0.1 * height) * buffer + 0.3 + step
        params -= 0.2 * height * buffer
        np.testing.assert_allclose(ours, params, rtol=1e-5)
    # Without a state, as where no update is at hand, the rate in the middle of the epoch.
    middle = [float(optimizer.lr(jnp.asarray(e))) for e in (1, 2, 3, 4)]
    np.testing.assert_allclose(middle, [0.05, 0.15, 0.15, 0.05], rtol=1e-6)


def test_cyclic_refuses_what_it_cannot_lower():
    with pytest.raises(ValueError, match="momentum=0.05.*cyclic"):
        OptimConfig(schedule="cyclic", momentum=0.05)
    with pytest.raises(ValueError, match="steps_per_epoch=0"):
        make(OptimConfig(schedule="cyclic"), 4, 0)


def adamw(params, grads, lr, betas, decay, steps):
    """torch.optim.AdamW by hand: the same gradients at every step."""
    params = {n: p.astype(np.float64) for n, p in params.items()}
    first, second = ({n: 0.0 for n in params} for _ in range(2))
    for t in range(1, steps + 1):
        for n, g in grads.items():
            first[n] = betas[0] * first[n] + (1 - betas[0]) * g
            second[n] = betas[1] * second[n] + (1 - betas[1]) * g**2
            corrected = np.sqrt(second[n] / (1 - betas[1] ** t)) + 1e-8
            decayed = (1 - lr * decay) if np.ndim(params[n]) > 1 else 1.0
            params[n] = decayed * params[n] - lr * first[n] / (1 - betas[0] ** t) / corrected
    return params


def test_adamw_is_that_of_torch_with_no_decay_of_vectors():
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}
    params = {n: p.astype(np.float32) for n, p in params.items()}
    grads = {n: rng.normal(size=p.shape).astype(np.float32) for n, p in params.items()}
    config = OptimConfig(optimizer="adamw", lr=0.01, weight_decay=0.05, momentum=0.8, beta2=0.99)
    optimizer, found = make(config, 10), params
    state = optimizer.init(params)
    for _ in range(5):
        found, state = optimizer.update(grads, state, found, optimizer.lr(1))
    expected = adamw(params, grads, 0.01, (0.8, 0.99), 0.05, 5)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)
    assert not np.allclose(
        expected["kernel"], adamw(params, grads, 0.01, (0.8, 0.99), 0, 5)["kernel"]
    )


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_a_long_gradient_is_scaled_down(scale):
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    grads = jax.tree.map(lambda p: scale * jnp.ones_like(p), params)
    optimizer = make(OptimConfig(clip_norm=1.0, weight_decay=0.0), 1)
    moved, _ = optimizer.update(grads, optimizer.init(params), params, 1.0)
    assert moved["b"][0] == pytest.approx(-min(scale, 1 / np.sqrt(7)), rel=1e-6)


def test_cosine_ends_at_its_last_rate():
    optimizer = make(OptimConfig(lr=1e-3, schedule="cosine", last_lr=5e-6), 1000)
    assert float(optimizer.lr(1)) == pytest.approx(1e-3)
    assert float(optimizer.lr(501)) == pytest.approx((1e-3 + 5e-6) / 2)
    assert float(optimizer.lr(1000)) == pytest.approx(5e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "adamw", "nesterov": True}, "nesterov=True is of optimizer='sgd'"),
        ({"optimizer": "adamw", "schedule": "cyclic"}, "changes the momentum of optimizer='sgd'"),
        ({"beta2": 0.99}, "beta2=0.99: is of optimizer='adamw'"),
        ({"last_lr": 0.01}, "last_lr=0.01: schedule='constant' does not end there"),
        ({"last_lr": 0.2, "schedule": "cosine"}, "last_lr=0.2: must be less than lr=0.1"),
        ({"optimizer": "adam"}, "optimizer='adam': choose one of 'sgd', 'adamw'"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0: must be at least 0"),
    ],
)
def test_optimisers_that_do_not_exist(values, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**values)
