"""A method of a user's own, made known by `methods.register`."""

import dataclasses

import pytest

from ard_jax import attacks, methods, models, optim

_TABLES = ("_METHODS", "TEACHERS", "TRAINED_TEACHERS", "ATTACKS")


@pytest.fixture
def tables(monkeypatch):
    for name in _TABLES:
        monkeypatch.setattr(methods, name, dict(getattr(methods, name)))
    for name in ("ATTACKING", "IGDM"):
        monkeypatch.setattr(methods, name, getattr(methods, name))
    monkeypatch.setattr(methods, "_ADDED", set())


def test_a_registered_method_is_created_by_its_name(tables):
    mine = dataclasses.replace(methods._METHODS["rslad"], name="mine")
    methods.register(mine)
    methods.register(
        dataclasses.replace(mine, attack="trades_train")
    )  # a notebook's cell, run again
    assert "mine" in methods.names() and "mine" in methods.ATTACKING and "mine" in methods.IGDM
    assert (methods.TEACHERS["mine"], methods.ATTACKS["mine"]) == (("robust",), "trades_train")
    net = models.create("small_cnn", 3, (8, 8, 1))
    sgd = optim.make(optim.OptimConfig(), 1)
    parts = methods.Parts(net, sgd, attacks.make("rslad_train", eps=0.1), {"robust": net})
    assert methods.create("mine", parts, adv_weight=0.5).name == "mine"
    with pytest.raises(ValueError, match="adv_weight"):
        methods.create("mine", parts, adv_weight=2.0)


def test_the_methods_of_the_library_stay(tables):
    with pytest.raises(ValueError, match="'rslad' is one of the library's"):
        methods.register(methods._METHODS["rslad"])
    with pytest.raises(ValueError, match=r"give methods.Registration\(name"):
        methods.register("mine")
