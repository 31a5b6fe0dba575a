"""Which methods learn from soft labels, and which need labels that are one class, read in their steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval
from test_method_contracts import CLASSES, CLEAN, LABELS, NAMES, begin, make_parts

from ard_jax import attacks, methods

SOFT = np.full((len(LABELS), CLASSES), 1 / CLASSES, np.float32)
# Options under which there is a cross-entropy, where the default has none.
OPTIONS = {"ard": {"alpha": 0.5}, "iad1": {"alpha": 0.5}, "adaiad": {"alpha": 0.5}}
IN_PLACE = "adr_train"  # an attack on soft labels, for methods whose own looks at classes


def registered(name):
    config = methods.make_config(name, OPTIONS.get(name, {}))
    entry = methods._METHODS[name]
    return entry.cross_entropy(config), entry.needs_labels(config)


def reached(name, entry, trained=lambda state: state.student.params, attack=""):
    """Whether the trained parameters depend on an entry of the batch."""
    parts = make_parts(name, soft_labels=True)
    if attack and parts.attack is not None:
        parts = dataclasses.replace(parts, attack=attacks.make(attack, eps=0.1, steps=1))
    method = methods.create(name, parts, **OPTIONS.get(name, {}))
    batch = {"image": CLEAN, "label": LABELS, "epoch": jnp.int32(70), "soft_label": SOFT}
    batch |= {"view": CLEAN} if method.views == 2 else {}
    given = jax.tree.map(jnp.asarray, batch)
    state = jax.eval_shape(lambda: begin(method, parts))

    def step(given, state):
        return trained(method.step(state, given, jax.random.key(0))[0])

    closed = jax.make_jaxpr(step)(given, state)
    used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))[1]
    return dict(zip(sorted(given), used[: len(given)], strict=True))[entry]


def both(state):
    return state.student.params, [t.params for t in state.teachers.values()]


@pytest.mark.parametrize("name", NAMES)
def test_soft_labels_reach_the_methods_that_register_a_cross_entropy(name):
    assert reached(name, "soft_label", both) == registered(name)[0]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "fat"])  # which has no other attack
def test_classes_reach_the_methods_that_need_them(name):
    attack = "" if registered(name)[1] else IN_PLACE
    assert reached(name, "label", attack=attack) == bool(registered(name)[1])


@pytest.mark.parametrize(
    ("name", "attack", "smoothing", "mixing", "words"),
    [
        ("sat", "sat_train", 0.1, False, []),
        ("rslad", "rslad_train", 0.1, False, ["label_smoothing=0.1"]),
        ("sat", "sat_train", 0.0, True, ["attack 'sat_train' needs labels"]),
        ("sat", "adr_train", 0.1, True, []),
        ("trades", "trades_train", 0.1, True, []),
        ("mart", "mart_train", 0.1, True, ["label_smoothing", "margin", "attack 'mart_train'"]),
        ("consistency_at", "sat_train", 0.0, True, ["two views", "attack 'sat_train'"]),
        ("natural", None, 0.1, True, []),
    ],
)  # fmt: skip
def test_what_a_method_cannot_learn_from_is_told(name, attack, smoothing, mixing, words):
    config, attack = methods.make_config(name, {}), attack and attacks.make(attack)
    found = methods.label_problems(name, config, attack, smoothing, mixing)
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True)), found
