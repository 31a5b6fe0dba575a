"""What every method promises: who changes, which passes move the statistics, one trace, randomness.

The networks are linear, and their "running statistics" write down the train-mode passes: each pass appends
one binary digit to a number that starts at 1, a 1 for the clean batch and a 0 for any other images.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import attacks, methods, optim
from ard_jax.methods import base
from ard_jax.models.bundle import ModelBundle

SHAPE, CLASSES, SIZE = (4, 4, 1), 5, 12
STEPS = 3  # of the attack
CLEAN = np.random.default_rng(0).uniform(0.3, 0.7, (SIZE, *SHAPE)).astype(np.float32)
LABELS = np.arange(SIZE, dtype=np.int32) % CLASSES
LATE = 60  # an epoch in which CIARD trains its teacher and IAD-II introspects


def bundle(classes=CLASSES):
    def init(key):
        kernel = 0.3 * jax.random.normal(key, (int(np.prod(SHAPE)), classes))
        return {"params": {"kernel": kernel}, "batch_stats": {"trace": jnp.ones(())}}

    def apply(variables, images, train):
        logits = images.reshape(images.shape[0], -1) @ variables["params"]["kernel"]
        if not train:
            return logits, variables["batch_stats"]
        same = images.shape == CLEAN.shape and jnp.all(images == CLEAN)
        clean = jnp.asarray(same, jnp.float32)
        return logits, {"trace": 2 * variables["batch_stats"]["trace"] + clean}

    return ModelBundle("linear", classes, SHAPE, "none", init, apply)


def passes(state_of_network):
    """The train-mode passes since the start, such as "x' x"."""
    digits = f"{int(state_of_network.batch_stats['trace']):b}"[1:]
    return " ".join("x" if d == "1" else "x'" for d in digits)


# Method -> attack, and the train-mode passes of the student after the attack, in order.
STUDENT_PASSES = {
    "absld": ("rslad_train", "x' x"),
    "adaad": ("adaad_train", "x x'"),
    "adaiad": ("adaad_train", "x x'"),
    "adr": ("adr_train", "x'"),
    "adr_trades": ("adr_trades_train", "x'"),  # both at once
    "ard": ("ard_train", "x' x"),
    "b_mtard": ("ciard_train", "x' x"),
    "ciard": ("ciard_train", "x x'"),
    "ciard_dard": ("dpgd", "x x'"),
    "consistency_at": ("sat_train", "x'"),
    "dard": ("dpgd", "x x'"),
    "dgad": ("adaad_train", "x x'"),
    "dkl": ("dkl_train", "x' x"),
    "fair_rslad": ("rslad_train", "x' x"),
    "fat": ("fat_train", "x'"),
    "fgsm_rs": ("fgsm_rs_train", "x'"),
    "free": ("fgsm", "x x' x' x' x' x' x' x'"),  # d is 0 in its first replay
    "gairat": ("gairat_train", "x'"),
    "hat": ("hat_train", "x x' x'"),
    "hat_at": ("sat_train", "x x' x'"),
    "iad1": ("ard_train", "x' x"),
    "iad2": ("ard_train", "x' x"),
    "icml26": ("sat_train", "x' x"),
    "icml26_at": ("sat_train", "x' x"),
    "kd": (None, "x"),
    "lbgat": ("trades_train", "x' x"),
    "mail": ("mart_train", "x'"),
    "mail_mart": ("mart_train", "x x'"),
    "mail_trades": ("trades_train", "x x'"),
    "mart": ("mart_train", "x x'"),
    "mtard": ("ciard_train", "x' x"),
    "n_fgsm": ("n_fgsm_train", "x'"),
    "natural": (None, "x"),
    "peeraid": ("rslad_train", None),
    "rslad": ("rslad_train", "x' x"),
    "saad": ("saad_train", "x' x' x"),  # the second is x - d
    "sat": ("sat_train", "x'"),
    "score": ("score_train", "x x'"),
    "trades": ("trades_train", None),
}
# Of TRADES and PeerAiD, None: they apply the update of a pass twice by the formula of exponential averages,
# which means nothing for a counter. test_baselines.py and test_partners.py hold their statistics against
# real passes.
SOFT_LABELS = ("adr", "adr_trades")  # which give an attack labels where it takes a teacher's logits
TEACHER_PASSES = {"ciard": {"robust": "x'"}, "ciard_dard": {"robust": "x x'"},
                  "lbgat": {"guide": "x"}, "peeraid": {"peer": "x'"}}  # fmt: skip
CLEAN_FIRST = ("ciard", "ciard_dard")  # their S(x) comes before the attack
NAMES = sorted(STUDENT_PASSES)


def make_parts(name, start=None, **fields):
    attack, net = STUDENT_PASSES[name][0], bundle()
    changed = {"steps": 1 if name == "free" else STEPS}
    changed |= {} if start is None else {"start": start}
    if start is not None and attack == "fat_train":  # its noise is not of its start
        changed["sigma"] = 0.0
    optimiser = optim.make(optim.OptimConfig(lr=0.1), 300)
    return methods.Parts(
        student=net,
        student_optim=optimiser,
        attack=attack and attacks.make(attack, eps=0.1, step_size=0.025, **changed),
        teachers={role: bundle() for role in methods.TEACHERS[name]},
        teacher_optims=dict.fromkeys(
            set(methods.TRAINED_TEACHERS[name]) - set(base.PARTNERS),
            optim.make(optim.OptimConfig(lr=0.01, momentum=0.1), 300),
        ),
        epochs=300,
        steps_per_epoch=2,
        batch_size=SIZE,
        **fields,
    )


def begin(method, parts):
    keys = iter(jax.random.split(jax.random.key(7), 3))
    student = parts.student.init(next(keys))
    return method.init(
        student, {role: net.init(next(keys)) for role, net in parts.teachers.items()}
    )


def batch(method, epoch):
    soft = jax.random.normal(jax.random.key(2), (SIZE, CLASSES))
    fields = {"image": jnp.asarray(CLEAN), "label": jnp.asarray(LABELS)}
    if method.views == 2:
        fields["view"] = jnp.asarray(CLEAN[:, ::-1])
    return fields | {"epoch": jnp.asarray(epoch, jnp.int32)} | dict.fromkeys(method.columns, soft)


@functools.cache
def compiled(name, options=(), **fields):
    """(method, state at the start, jitted step, list with one entry per trace)."""
    parts, traces = make_parts(name, **fields), []
    method = methods.create(name, parts, **dict(options))

    def step(state, batch, key):
        traces.append(name)
        return method.step(state, batch, key)

    return method, begin(method, parts), jax.jit(step), traces


def after_one_step(name, epoch=LATE, seed=0, options=(), **fields):
    method, state, step, _ = compiled(name, options, **fields)
    return state, step(state, batch(method, epoch), jax.random.key(seed))[0]


def equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(bool(jnp.array_equal(x, y)) for x, y in pairs)


def test_every_method_is_in_the_table():
    assert methods.names() == NAMES
    assert {n for n in NAMES if STUDENT_PASSES[n][0]} == set(methods.ATTACKING)


@pytest.mark.parametrize("name", NAMES)
def test_teachers_change_if_and_only_if_the_method_says_so(name):
    method = compiled(name)[0]
    old, new = after_one_step(name)
    assert method.name == name and method.teachers == tuple(old.teachers)
    assert method.trained_teachers == methods.TRAINED_TEACHERS[name]
    for role in method.teachers:
        trained = role in method.trained_teachers
        assert equal(old.teachers[role].params, new.teachers[role].params) != trained
        assert passes(new.teachers[role]) == TEACHER_PASSES.get(name, {}).get(role, "")
    assert not equal(old.student.params, new.student.params)


@pytest.mark.parametrize("name", ["ciard", "ciard_dard"])
def test_trained_teachers_keep_their_weights_before_their_epoch(name):
    old, new = after_one_step(name, epoch=50)
    assert equal(old.teachers["robust"].params, new.teachers["robust"].params)
    assert passes(new.teachers["robust"]) == TEACHER_PASSES[name]["robust"]


PASSES = [(name, (), LATE, order) for name, (_, order) in STUDENT_PASSES.items() if order]
PASSES += [
    ("iad2", (), 40, "x'"),
    ("iad2", (("reliability", "off"),), LATE, "x'"),
    ("dard", (("objective", "fused"),), LATE, "x'"),
    ("dard", (("labels", "offline"),), LATE, "x x'"),
    ("dard", (("labels", "online"),), LATE, "x x'"),
    ("ciard", (("forward_order", "adversarial_first"),), LATE, "x' x"),
    ("icml26", (("objective", "iad"),), LATE - 1, "x' x"),
    ("icml26", (("objective", "iad"),), LATE, "x' x x"),
    ("free", (("replays", 2),), LATE, "x x'"),
]


@pytest.mark.parametrize(("name", "options", "epoch", "order"), PASSES)
def test_student_statistics_move_with_these_passes(name, options, epoch, order):
    """In this number and order; the attack, in eval mode, moves none."""
    assert passes(after_one_step(name, epoch, options=options)[1].student) == order


# Gradient matching: beta of the point x + beta d, variant -> the passes of the base and its own.
MATCHING = [
    ("adaad", 1.0, "paper", "x x' x'"),
    ("adaiad", 1.0, "paper", "x x' x'"),
    ("ard", 1.0, "paper", "x' x x'"),
    ("iad1", 1.0, "paper", "x' x x'"),
    ("rslad", 1.0, "paper", "x' x x'"),
    ("rslad", 0.5, "paper", "x' x x' x'"),
    ("adaad", 1.0, "released", "x' x x' x'"),
    ("ard", 1.0, "released", "x' x x'"),
    ("rslad", 1.0, "released", "x' x' x x'"),
    ("adaad", 1.0, "saad", "x' x'"),
    ("icml26", 1.0, "saad", "x' x' x"),
]


@pytest.mark.parametrize(("name", "beta", "variant", "order"), MATCHING)
def test_passes_with_gradient_matching(name, beta, variant, order):
    matching = methods.Igdm(weight=1.0, beta=beta, variant=variant)
    assert passes(after_one_step(name, igdm=matching)[1].student) == order


def test_every_method_that_takes_gradient_matching_is_in_the_table():
    assert set(methods.IGDM) == {name for name, *_ in MATCHING}


def test_clean_forward_of_the_teacher_is_seen_in_its_statistics():
    _, new = after_one_step("ciard", options=(("r_clean_forward", "keep"),))
    assert passes(new.teachers["robust"]) == "x x'"


# Attacks with and without a start, a teacher, labels and a pass of their own before them.
@pytest.mark.parametrize("name", ["adaad", "adr_trades", "hat", "mart", "rslad", "saad", "sat"])
def test_train_mode_attack_keeps_its_passes(name):
    """One for every attack step, before the others. The first is at x when there is no start."""
    attack, order = STUDENT_PASSES[name]
    first = "x" if attacks.make(attack).start == "none" else "x'"
    _, kept = after_one_step(name, attack_bn="train", attack_bn_stats="keep")
    before = ["x"] if name == "adr_trades" else []  # the target of its attack
    assert passes(kept.student) == " ".join([*before, first, *["x'"] * (STEPS - 1), order])


@pytest.mark.parametrize("name", ["ard", "score", "fair_rslad", "ciard"])
def test_train_mode_attack_can_discard_its_passes(name):
    _, new = after_one_step(name, attack_bn="train", attack_bn_stats="discard")
    assert passes(new.student) == STUDENT_PASSES[name][1]


@pytest.mark.parametrize("name", CLEAN_FIRST)
def test_attack_statistics_cannot_be_kept_where_a_clean_pass_comes_first(name):
    with pytest.raises(ValueError, match="bn_stats='discard'"):
        methods.create(name, make_parts(name, attack_bn="train", attack_bn_stats="keep"))


@pytest.mark.parametrize("name", NAMES)
def test_one_step_is_traced_once(name):
    """Whatever epoch, step, key and state: schedules and switches of epoch are inside the program."""
    method, state, step, traces = compiled(name)
    for i, epoch in enumerate((1, 1, 2, LATE, 216, 300)):
        state, metrics = step(state, batch(method, epoch), jax.random.key(i))
        state = state.replace(step=state.step + 1)
    assert len(traces) == 1
    assert all(m.shape == () and m.dtype == jnp.float32 for m in metrics.values())
    assert all(bool(jnp.isfinite(m)) for m in metrics.values())


def depends_on_the_key(name, **fields):
    first, again, other = (after_one_step(name, seed=seed, **fields)[1] for seed in (1, 1, 2))
    assert equal(first, again)
    return not equal(first, other)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_random_through_the_start_of_its_attack_only(name):
    # The attack's few steps of eps/4 do not reach the border of the ball, where all starts would end.
    attack = STUDENT_PASSES[name][0]
    start = attacks.make(attack).start if attack else "none"
    assert depends_on_the_key(name) == (start != "none")


@pytest.mark.parametrize("name", ["ciard", "fat", "sat", "trades"])
def test_without_a_start_a_step_is_not_random(name):
    assert not depends_on_the_key(name, start="none")


@pytest.mark.parametrize("name", ["adaad", "hat"])
def test_with_a_random_start_a_step_is_random(name):
    assert depends_on_the_key(name, start="uniform")


# Bad construction: one ValueError with everything that is wrong, before any network runs.


def untouchable(classes=CLASSES):
    def fail(*_):
        raise AssertionError("a network was used")

    return ModelBundle("untouchable", classes, SHAPE, "none", fail, fail)


def refused(name, options=None, **fields):
    parts = make_parts(name)
    fields = {"student": untouchable(), "teachers": parts.teachers} | fields
    values = {f: getattr(parts, f) for f in parts.__dataclass_fields__} | fields
    with pytest.raises(ValueError) as error:
        methods.create(name, methods.Parts(**values), **(options or {}))
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_teachers(name):
    message = refused(name, teachers={"third": untouchable(7)})
    assert "takes no third teacher" in message
    assert f"the third teacher has 7 classes, the student {CLASSES}" in message
    for role in methods.TEACHERS[name]:
        assert f"needs a {role} teacher" in message


@pytest.mark.parametrize("name", methods.ATTACKING)
def test_wrong_attack(name):
    assert "needs an attack" in refused(name, attack=None)
    if not {"robust", "peer"} & {*methods.TEACHERS[name]}:
        for attack in ("rslad_train", "adaad_train")[name in SOFT_LABELS :]:
            message = refused(name, attack=attacks.make(attack))
            assert repr(attack) in message and "needs a robust teacher" in message


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("kd", {"temperature": 0.0, "alpha": -0.1}, ["temperature=0.0", "alpha=-0.1"]),
        ("ard", {"temperature": 0.0, "kl_scale": -1.0}, ["temperature=0.0", "kl_scale=-1.0"]),
        ("iad2", {"temperature": -1.0, "alpha1": -0.5}, ["temperature=-1.0", "alpha1=-0.5"]),
        ("mtard", {"weight_rate": -1.0, "kl_scale": -1.0}, ["weight_rate=-1.0", "kl_scale=-1.0"]),
        ("b_mtard", {"temp_rate": -1.0}, ["temp_rate=-1.0"]),
        ("ciard", {"push_t": 0.0, "push_lambda": -1.0}, ["push_t=0.0", "push_lambda=-1.0"]),
        ("dard", {"temperature": 0.0, "a": -1.0}, ["temperature=0.0", "a=-1.0"]),
        ("ciard_dard", {"temperature": 0.0, "clean_weight": -1.0}, ["temperature=0.0", "clean_weight"]),
        ("absld", {"temp_low": 0.0, "adv_weight": -1.0}, ["temp_low=0.0", "adv_weight=-1.0"]),
        ("adaiad", {"temperature": 0.0, "begin_epoch": -1}, ["temperature=0.0", "begin_epoch=-1"]),
        ("fair_rslad", {"beta": -1.0, "low": 3.0}, ["beta=-1.0", "low=3.0 must not exceed high=2.5"]),
        ("iad1", {"alpha": 2.0, "beta": -0.1}, ["alpha=2.0", "beta=-0.1"]),
        ("iad2", {"alpha1": 0.7, "alpha2": 0.6}, ["alpha1=0.7 and alpha2=0.6"]),
        ("hat", {"h": 0.5, "gamma": -1.0}, ["h=0.5", "gamma=-1.0"]),
        ("gairat", {"lambda_value": 11.0, "begin_epoch": 0}, ["lambda_value=11.0", "begin_epoch=0"]),
        ("mail", {"slope": 0.0, "bias": -11.0}, ["slope=0.0", "bias=-11.0"]),
        ("dgad", {"beta": -1.0, "full_batch": -1}, ["beta=-1.0", "full_batch=-1"]),
        ("mtard", {"decay_epochs": (3, 2)}, ["decay_epochs=(3, 2): epochs must increase"]),
        ("adr", {"decay": 1.0, "share_first": 2.0}, ["decay=1.0", "share_first=2.0"]),
        ("saad", {"entropy_order": 0.0, "beta": -1.0}, ["entropy_order=0.0", "beta=-1.0"]),
        ("dkl", {"alpha": -1.0, "gamma": -1.0}, ["alpha=-1.0", "gamma=-1.0"]),
        ("fat", {"tau_epochs": (3, 2)}, ["tau_epochs=(3, 2): epochs must increase"]),
    ],
)  # fmt: skip
def test_bad_values_teachers_and_attack_are_listed_together(name, options, expected):
    attack = None if name != "kd" else make_parts(name).attack
    message = refused(name, options, teachers={"robust": untouchable(7)}, attack=attack)
    expected = [*expected, f"the robust teacher has 7 classes, the student {CLASSES}"]
    expected += ["needs a clean teacher"] if "clean" in methods.TEACHERS[name] else []
    expected += ["needs an attack"] if name != "kd" else []
    assert all(part in message for part in expected), message


@pytest.mark.parametrize("name", NAMES)
def test_every_option_refuses_what_is_no_number_and_no_choice(name):
    options = dict.fromkeys(type(methods.make_config(name, {})).model_fields, float("nan"))
    if options:
        message = refused(name, options)
        assert all(f"method.{option}=nan: " in message for option in options)


def test_unknown_option_names_the_known_ones():
    with pytest.raises(ValueError, match="method.rate does not exist; method has weight_rate"):
        methods.create("mtard", make_parts("mtard"), rate=1.0)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in methods.IGDM])
def test_gradient_matching_is_refused_where_no_paper_has_it(name):
    message = refused(name, igdm=methods.Igdm(weight=0.5))
    assert f"igdm.weight=0.5: method {name!r} takes no gradient matching" in message
    assert ", ".join(methods.IGDM) in message


def test_variants_of_gradient_matching_that_a_method_does_not_have():
    message = refused("adaiad", igdm=methods.Igdm(weight=0.5, variant="released"))
    assert "igdm.variant='released'" in message and "choose 'paper'" in message
    message = refused("adaad", {"alpha": 0.5}, igdm=methods.Igdm(weight=0.5, variant="saad"))
    assert "alpha=0.5" in message and "use alpha=1" in message
