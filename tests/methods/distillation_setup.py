"""Small networks, one batch and a few steps for the tests of distillation methods."""

import functools

import jax
from small_networks import batch, networks

from ard_jax import attacks, methods, optim

ATTACKS = {
    "mtard": "ciard_train", "b_mtard": "ciard_train", "fair_rslad": "rslad_train",
    "absld": "rslad_train", "adaad": "adaad_train", "adaiad": "adaad_train", "saad": "saad_train",
    "adr": "adr_train", "adr_trades": "adr_trades_train", "rslad": "rslad_train",
}  # fmt: skip


def parts(name, steps_per_epoch=3, attack_steps=2):
    student, *teachers = networks()
    nets = dict(zip(("robust", "clean"), teachers, strict=True))
    return methods.Parts(
        student=student,
        student_optim=optim.make(optim.OptimConfig(lr=0.3 if name != "adaiad" else 0.05), 300),
        attack=attacks.make(ATTACKS[name], eps=0.1, steps=attack_steps),
        teachers={role: nets[role] for role in methods.TEACHERS[name]},
        epochs=300,
        steps_per_epoch=steps_per_epoch,
    )


def start(method, p):
    # Sharper than at the start, so that soft labels differ from image to image.
    def teacher(net, seed):
        variables = net.init(jax.random.key(seed))
        params = variables["params"] | {
            "fc": jax.tree.map(lambda w: 8.0 * w, variables["params"]["fc"])
        }
        return variables | {"params": params}

    teachers = {role: teacher(net, 5 + i) for i, (role, net) in enumerate(p.teachers.items())}
    return method.init(p.student.init(jax.random.key(0)), teachers)


@functools.cache
def compiled(name, **options):
    """(parts, method, jitted step); every test that wants the same program shares it."""
    p = parts(name)
    method = methods.create(name, p, **options)
    return p, method, jax.jit(method.step)


def run(name, steps, epochs=None, state=None, **options):
    """States and metrics of some steps on one batch."""
    p, method, step = compiled(name, **options)
    state = state or start(method, p)
    states, metrics = [state], []
    for i in range(steps):
        state, values = step(state, batch(epochs[i] if epochs else 1), jax.random.key(i))
        state = state.replace(step=state.step + 1)
        states.append(state)
        metrics.append({k: float(v) for k, v in jax.device_get(values).items()})
    return states, metrics
