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


def reached(name, attack=""):
    """Entries of the batch on which the student's update depends, and on which that of any network does."""
    parts = make_parts(name, soft_labels=True)
    if attack and parts.attack is not None:
        parts = dataclasses.replace(parts, attack=attacks.make(attack, eps=0.1, steps=1))
    method = methods.create(name, parts, **OPTIONS.get(name, {}))
    batch = {"image": CLEAN, "label": LABELS, "epoch": jnp.int32(70), "soft_label": SOFT}
    batch |= {"view": CLEAN} if method.views == 2 else {}
    given = jax.tree.map(jnp.asarray, batch)
    state = jax.eval_shape(lambda: begin(method, parts))

    def step(given, state):
        new = method.step(state, given, jax.random.key(0))[0]
        return new.student.params, [t.params for t in new.teachers.values()]

    closed, shapes = jax.make_jaxpr(step, return_shape=True)(given, state)
    of_student, of_others = (len(jax.tree.leaves(part)) for part in shapes)
    for others in (False, True):
        wanted = [True] * of_student + [others] * of_others
        used = partial_eval.dce_jaxpr(closed.jaxpr, wanted)[1]
        yield {n for n, one in zip(sorted(given), used[: len(given)], strict=True) if one}


@pytest.mark.parametrize("name", NAMES)
def test_labels_reach_what_is_registered(name):
    """Soft ones a cross-entropy, of any network that learns; classes only what needs them."""
    cross_entropy, needs = registered(name)
    of_student, of_all = reached(name, "" if needs or name == "fat" else IN_PLACE)
    assert ("soft_label" in of_all) == cross_entropy
    if name != "fat":  # which has no other attack
        assert ("label" in of_student) == bool(needs)


def test_a_batch_without_the_labels_that_were_promised_is_refused():
    parts = make_parts("sat", soft_labels=True)
    method = methods.create("sat", parts)
    batch = {"image": CLEAN, "label": LABELS, "epoch": jnp.int32(1)}
    with pytest.raises(ValueError, match="the batch lacks soft_label"):
        method.step(begin(method, parts), batch, jax.random.key(0))


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
