"""A method of a user's own: its registration takes the place of a name."""

import dataclasses

import pytest

from ard_jax import attacks, methods, models, optim

NET = models.create("small_cnn", 3, (8, 8, 1))
MINE = dataclasses.replace(methods._METHODS["rslad"], name="mine")


def parts(teachers):
    sgd = optim.make(optim.OptimConfig(), 1)
    return methods.Parts(NET, sgd, attacks.make("rslad_train", eps=0.1), teachers)


def test_a_registration_is_created_like_a_method_of_the_library():
    made = methods.create(MINE, parts({"robust": NET}), adv_weight=0.5)
    assert (made.name, made.teachers) == ("mine", ("robust",))
    assert methods.make_config(MINE, {"adv_weight": 0.5}).adv_weight == 0.5
    assert methods.updates_per_step(MINE, {}) == 1 and not methods.length_matters(MINE, {})
    assert "mine" not in methods.names()


def test_mistakes_name_it():
    with pytest.raises(ValueError, match="adv_weight.*method 'mine' needs a robust teacher"):
        methods.create(MINE, parts({}), adv_weight=2.0)
    igdm = methods.Igdm(weight=1.0)
    plain = dataclasses.replace(MINE, igdm=None)
    assert methods.igdm_problems(plain, igdm)[0].startswith(
        "igdm.weight=1.0: method 'mine' takes no"
    )
    none = dataclasses.replace(MINE, attack="")
    assert "method 'mine' has no attack" in methods.ramp_problems(none, None, 2, None)[0]
