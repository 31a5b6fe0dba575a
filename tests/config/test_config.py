"""Configurations: every file loads, every mistake is reported, all of them at once."""

import dataclasses
import functools
import hashlib
import importlib
import json
import re
from pathlib import Path
from typing import get_args

import pytest
from experiments import tiny

from ard_jax import data, methods
from ard_jax.attacks import threat_model
from ard_jax.config import build, parse, reference, schema
from ard_jax.config.comparison import from_config
from ard_jax.configs import protocol
from ard_jax.data import augment, lazy_dataset
from ard_jax.io import options

NAN = float("nan")
REPOSITORY = Path(__file__).parents[2]
_RELEASED = (
    "absld", "adaiad", "adr_trades", "dgad", "dkl", "iad1", "mail", "mail_mart", "mail_trades",
)  # fmt: skip
_VARIANTS = [f"{name}:{variant}" for name in _RELEASED for variant in ("paper", "released")]
_OF_RATE = [f"{name}:{variant}" for name in ("ard", "iad2") for variant in ("paper", "released")]
_CPU = [f"{name}:cpu" for name in methods.names()]
_IGDM = [f"{name}:igdm" for name in methods.IGDM]
# What stands behind the colon of each file.
FILES = {
    "digits": (*methods.names(), *_VARIANTS, *_IGDM),
    "cifar10": (*methods.names(), *_VARIANTS, *_OF_RATE, *_CPU, *_IGDM),
    "cifar100": (*methods.names(), *_VARIANTS, *_OF_RATE, *_IGDM, "rslad:mobilenet_v2"),
    "tiny_imagenet": (*methods.names(), *_VARIANTS, *_OF_RATE, *_IGDM, "rslad:mobilenet_v2"),
    "imagenet": (
        *methods.names(),
        "rslad:igdm",
        "dgad:released",
        *(f"rslad:{net}" for net in protocol.STUDENTS),
    ),
    "imagenet100": ("sat", "ciard", "dard:vit_small"),
    "ciard_digits": ("", "natural", "sat"),
    "ciard_cifar10": ("", "mobilenet_v2", "cpu"),
    "ciard_cifar100": ("", "mobilenet_v2"),
    "ciard_tiny_imagenet": ("", "mobilenet_v2"),
    "ciard_dard_digits": ("",),
    "ciard_dard_cifar10": ("", "cpu"),
    "dard_digits": ("", "fixed", "paper_compat", "strong", "fused"),
    "dard_cifar10": ("", "fixed", "paper_compat", "strong", "wrn34_10", "cpu"),
    "dard_cifar100": ("", "fixed", "fused", "paper_compat", "strong", "wrn34_10"),
}
DATASETS = ("digits", "cifar10", "cifar100", "tiny_imagenet", "imagenet", "imagenet100")
COMPARISONS = {
    "compare_digits": ("", "all", "autoattack", "newer", "recipe", "search", "search_newer"),
    "compare_cifar10": ("", "cpu", "ciard", "ciard,epochs=30", "teacher_free"),
}


def test_every_config_file_is_tested():
    files = {p.stem for p in (REPOSITORY / "configs").glob("*.py")}
    assert files - {"__init__", "common", "protocol"} == set(FILES) | set(COMPARISONS)


@pytest.mark.parametrize(("name", "variant"), [(n, v) for n, vs in FILES.items() for v in vs])
def test_config_files_are_valid_and_survive_json(name, variant):
    experiment = parse.to_experiment(
        importlib.import_module(f"ard_jax.configs.{name}").get_config(variant)
    )
    assert parse.to_experiment(parse.to_dict(experiment)) == experiment
    # A config lists every option of its method, so that each can be overridden on the command line.
    defaults = methods.make_config(experiment.method.name, {})
    assert set(type(defaults).model_fields) == set(experiment.method.options)
    if name == "cifar10" and ":" not in variant:
        assert methods.make_config(experiment.method.name, experiment.method.options) == defaults


@pytest.mark.parametrize(("name", "variant"), [(n, v) for n, vs in COMPARISONS.items() for v in vs])
def test_comparisons_are_valid(name, variant):
    comparison = from_config(importlib.import_module(f"ard_jax.configs.{name}").get_config(variant))
    assert len(comparison.experiments) == len(comparison.methods) * len(comparison.seeds)


@pytest.mark.parametrize(("variant", "teachers"), [("icml26", 5), ("saad", 4)])
def test_published_tables_ask_for_their_teachers(variant, teachers):
    raw = importlib.import_module("ard_jax.configs.compare_cifar10").get_config(variant)
    with pytest.raises(parse.ConfigError) as caught:
        from_config(raw)
    for name, about in raw.teachers_about.items():
        assert f"config.teachers.{name} is missing: {about}; give" in str(caught.value)
    raw.teachers.update({name: f"/{name}" for name in raw.teachers})
    whole = from_config(raw)
    with_teacher = [m for m in whole.methods if "-" in m]
    assert len(with_teacher) == 2 * teachers and len(whole.methods) == 2 * teachers + 2
    assert {whole.settings[m]["epochs"] for m in whole.methods} == {200}
    assert whole.protocol["eval.autoattack_nets"] == "students"
    assert set(whole.published["rows"]) <= set(whole.methods)
    igdm = [whole.experiments[m, 0].igdm for m in whole.methods if m.startswith("igdm")]
    assert [(one.weight, one.variant) for one in igdm] == 2 * [(1.0, "saad")]
    raw.teachers.update(gowal=None)
    assert len(from_config(raw).methods) == teachers + 2


def test_papers_table_at_the_papers_length_and_shortened():
    get_config = importlib.import_module("ard_jax.configs.compare_cifar10").get_config
    whole, short = (from_config(get_config(v)) for v in ("ciard", "ciard,epochs=30"))
    assert whole.protocol["select_on"] == "test" and whole.protocol["data.holdout"] == 0
    epochs = {m: whole.settings[m]["epochs"] for m in whole.methods}
    assert epochs == {"sat": 200, "trades": 76, "rslad": 300, "mtard": 300, "ciard": 300, "dard": 50,
                      "ciard_dard": 300}  # fmt: skip
    assert {short.settings[m]["epochs"] for m in short.methods} == {30}
    ciard = short.experiments["ciard", 0]
    assert (ciard.method.options["itt_start"], ciard.robust_teacher_optim.start) == (5, 5)
    assert ciard.method.options["kl_scale"] == 10.0 and ciard.eval.every == 3
    assert whole.workdir != short.workdir and whole.published == short.published
    assert set(whole.published["rows"]) == set(whole.methods) - {"ciard_dard"}  # it is in no paper
    assert whole.published["rows"]["ciard"]["autoattack"] == 48.88
    for variant in ("ciard,epochs=0", "cpu,epochs=3", "ciard,epochs="):
        with pytest.raises(ValueError, match="no variant"):
            get_config(variant)


def test_digits_comparison_has_eight_methods_or_more_and_three_seeds():
    comparison = from_config(importlib.import_module("ard_jax.configs.compare_digits").get_config())
    assert len(comparison.methods) >= 8 and comparison.seeds == (0, 1, 2)


@pytest.mark.parametrize("name", [*FILES, *COMPARISONS])
def test_unknown_variant(name):
    with pytest.raises(ValueError, match="no variant 'nonsense'"):
        choice = "rslad:nonsense" if name in DATASETS else "nonsense"
        importlib.import_module(f"ard_jax.configs.{name}").get_config(choice)


@pytest.mark.parametrize("dataset", DATASETS)
def test_unknown_method(dataset):
    get_config = importlib.import_module(f"ard_jax.configs.{dataset}").get_config
    with pytest.raises(ValueError, match=rf"{dataset}.py needs a method.*trades"):
        get_config()
    with pytest.raises(ValueError, match="knows no method 'rsald'.*Methods: rslad, .*trades"):
        get_config("rsald:cpu")


@pytest.mark.parametrize(
    ("choice", "name"),
    [("digits", "rslad_digits"), ("cifar10", "rslad_cifar10"), ("tiny_imagenet", "rslad_tiny_imagenet")],
)  # fmt: skip
def test_the_name_holds_method_and_data(choice, name):
    get_config = importlib.import_module(f"ard_jax.configs.{choice}").get_config
    assert get_config("rslad").name == name


def test_a_file_of_its_own_is_the_experiment_of_its_method():
    for file in ("ciard_cifar10", "dard_cifar100", "ciard_tiny_imagenet", "ciard_dard_digits"):
        method, dataset = next(
            (file.removesuffix(f"_{d}"), d) for d in DATASETS if file.endswith(d)
        )
        own = importlib.import_module(f"ard_jax.configs.{file}").get_config()
        assert (
            importlib.import_module(f"ard_jax.configs.{dataset}")
            .get_config(method)
            .eq_as_configdict(own)
        )


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_method_registered_later_needs_nothing_in_configs(dataset, monkeypatch):
    entry = dataclasses.replace(methods._METHODS["rslad"], attack="trades_train")
    monkeypatch.setitem(methods._METHODS, "newer", entry)
    monkeypatch.setitem(methods.TEACHERS, "newer", entry.teachers)
    monkeypatch.setitem(methods.TRAINED_TEACHERS, "newer", entry.trained_teachers)
    monkeypatch.setitem(methods.ATTACKS, "newer", entry.attack)
    raw = importlib.import_module(f"ard_jax.configs.{dataset}").get_config("newer")
    experiment = parse.to_experiment(raw)
    assert (experiment.name, experiment.method.name) == (f"newer_{dataset}", "newer")
    assert experiment.attack.name == "trades_train"
    assert experiment.teachers.robust is not None and experiment.teachers.clean is None
    assert set(experiment.method.options) == {"adv_weight", "kl_reduction", "kl_scale"}
    assert (
        importlib.import_module("ard_jax.configs.compare_digits").get_config("all").methods[-1]
        == "newer"
    )


def test_paper_values():
    """reference: eminentgu/CIARD, HEAD 93a9a2d."""
    e = parse.to_experiment(importlib.import_module("ard_jax.configs.ciard_cifar10").get_config())
    assert (e.epochs, e.batch_size, e.eps, e.student.model) == (300, 128, 8 / 255, "resnet18")
    assert (e.student_optim.lr, e.student_optim.momentum, e.student_optim.weight_decay) == (
        0.1,
        0.9,
        2e-4,
    )
    r = e.robust_teacher_optim
    assert (r.lr, r.momentum, r.weight_decay, r.start) == (1e-4, 0.1, 2e-4, 50)
    assert e.teachers.robust.net.model == "wrn_34_10" and e.teachers.clean.net.model == "resnet56"
    assert (e.select_on, e.eval.select_attack, e.eval.dense_from) == ("test", "pgd_trades", 250)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("eps", 8.0, "config.eps=8.0: .*8/255"),
        ("select_on", "train", "config.select_on='train': choose one of 'validation', 'test'"),
        ("name", "../other", "config.name='../other'"),
        ("swa_start", 99, "config.swa_start=99: must be at most config.epochs=2"),
        ("data__holdout", 0.0, "no validation images"),
        ("data__holdout", 1.0, "config.data.holdout=1.0: a share below 1, or a whole number"),
        ("data__name", "mnist", "config.data.name='mnist': choose one of 'digits'"),
        ("data__pad", 8, "config.data.pad=8: must be less than the images' 8 pixels"),
        ("student__model", "resnet19", "config.student: unknown model 'resnet19'"),
        ("student__kwargs", {"depth": 3}, r"has no option depth.*config.student.kwargs=\{\} leaves"),
        ("student__kwargs", {"widths": (0,)}, "config.student: .*widths"),
        ("student__normalization", "mnist", "config.student: .*mnist"),
        ("student_optim__lr", -0.1, "config.student_optim.lr=-0.1: must be greater than 0$"),
        ("student_optim__weight_decay", NAN, "weight_decay=nan: must be a finite number"),
        ("student_optim__warmup", 3, "config.student_optim.warmup=3: must be less than the 2 epochs"),
        ("student_optim__boundaries", ("a",), r"boundaries\[0\]='a': expected an integer"),
        ("student_optim__boundaries", (2, 1), r"boundaries=\(2, 1\): epochs must increase"),
        ("attack__name", "pdg", "config.attack.name='pdg'"),
        ("attack__step_size", 100.0, "config.attack.step_size=100.0: must be at most 1"),
        ("attack__bn_stats", "keep", "config.attack: .*cannot keep the running statistics"),
        ("method__push_scale", "decimal", "config.method.push_scale='decimal': choose one of 'decade'"),
        ("eval__attacks", ("pgd_sta",), "config.eval.attacks: 'pgd_sta'"),
        ("eval__attacks", ("dpgd_per_sample",), "DPGD alone can stall"),
        ("eval__select_attack", "autoattack", "config.eval.select_attack='autoattack'"),
        ("eval__eps_sweep", (1.0, 8.0), r"eps_sweep=\(1.0, 8.0\): \[8.0\] times config.eps=0.2"),
        ("eval__eps_sweep", (NAN,), r"eps_sweep\[0\]=nan: must be a finite number"),
        ("eval__step_sizes", {"foo": 0.1}, "config.eval.step_sizes: 'foo'"),
        ("eval__teachers", False, "transfer needs the teachers"),
        ("teachers__robust__min_clean", 80.0, "config.teachers.robust.min_clean=80.0: must be at most 1"),
        ("teachers__clean__recipe__method", "ciard", "config.teachers.clean.recipe.method='ciard'"),
        ("teachers__clean", None, "clean is None, but method 'ciard' needs a clean teacher"),
    ],
)  # fmt: skip
def test_bad_values(tmp_path, name, value, message):
    with pytest.raises(parse.ConfigError, match=message) as caught:
        parse.to_experiment(tiny(tmp_path, **{name: value}))
    assert str(caught.value).count("\n  - ") == 1


OUT_OF_RANGE = {
    "epochs": (0, 10**12), "batch_size": (0,), "seed": (-1, 2**32), "ema_decay": (1.0,),
    "awp__gamma": (1e9,), "awp__start": (0,), "data__pad": (-1,), "data__prefetch": (0,),
    "student_optim__lr": (1e30,), "student_optim__decay": (-1.0,), "student_optim__momentum": (1.0,),
    "attack__steps": (-1,), "eval__every": (0,), "eval__seed": (-1,), "eval__max_selection_examples": (-5,),
    "run__devices": (-1,), "run__log_every": (0,), "run__save_every": (0,),
    "run__distributed_timeout": (0.0,), "method__push_t": (0.0,),
    "method__itt_every": (0,), "method__clean_weight": (-1.0,),
    "teachers__robust__recipe__epochs": (0,), "teachers__clean__recipe__seed": (-1,),
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in OUT_OF_RANGE.items() for v in vs])
def test_values_out_of_range(tmp_path, name, value):
    with pytest.raises(parse.ConfigError) as caught:
        parse.to_experiment(tiny(tmp_path, **{name: value}))
    (line,) = str(caught.value).split("\n  - ")[1:]
    assert line.startswith(f"config.{name.replace('__', '.')}={value!r}: must be ")


@pytest.mark.parametrize(("eps", "right"), [(0.0, False), (1.5, True), (8.0, True), (128.0, False)])
def test_l2_radius(tmp_path, eps, right):
    raw = tiny(tmp_path, norm="l2", eps=eps, eval__eps_sweep=())
    if right:
        assert parse.to_experiment(raw).eps == eps
        return
    with pytest.raises(parse.ConfigError, match=f"config.eps={eps}"):
        parse.to_experiment(raw)


def test_types_are_strict(tmp_path):
    raw = tiny(tmp_path).to_dict()
    raw |= {
        "epochs": True,
        "eps": "0.1",
        "awp": 3,
        "ema_decay": 0,
        "student_optim": {"boundaries": 5},
    }
    raw["eval"] |= {"eps_sweep": [0, 1.0], "transfer": 1}
    with pytest.raises(parse.ConfigError) as caught:
        parse.to_experiment(raw)
    assert str(caught.value).split("\n  - ")[1:] == [
        "config.epochs=True: expected an integer",
        "config.eps='0.1': expected a number",
        "config.awp=3: expected a group of values",
        "config.student_optim.boundaries=5: expected a tuple, such as (1, 2)",
        "config.eval.transfer=1: expected True or False",
    ]


def test_every_option_has_a_meaning_and_stands_in_the_config():
    """So that the command line can set it, whether or not a file names it."""
    records = [schema.Experiment, *(type(methods.make_config(n, {})) for n in methods.names())]
    assert all(f.description for record in records for f in record.model_fields.values())
    raw = importlib.import_module("ard_jax.configs.ciard_digits").get_config()
    for path, record in options.records(parse.to_experiment(raw), "config"):
        if path != "config.method":
            group = functools.reduce(lambda g, name: g[name], path.split(".")[1:], raw)
            assert set(type(record).model_fields) == set(group), path


@pytest.mark.parametrize(
    ("record", "name", "choices"),
    [
        (schema.Experiment, "norm", threat_model.NORMS),
        (schema.AttackConfig, "init", ("", *threat_model.STARTS)),
        (schema.DataConfig, "augment", augment.KINDS),
        (schema.DataConfig, "loader", lazy_dataset.LOADERS),
    ],
)
def test_choices_are_those_of_the_code(record, name, choices):
    assert set(get_args(record.model_fields[name].annotation)) == set(choices)


def test_the_data_sets_are_listed():
    text = schema.DataConfig.model_fields["name"].description
    assert re.findall(r"\w+", text.replace(" or ", " ")) == data.names()


def test_what_two_runs_must_agree_on(tmp_path):
    """These are written into checkpoints and into the names of the teachers' folders."""
    experiment = parse.to_experiment(tiny(tmp_path))
    splits = build.load_data(experiment.data)
    saved = build.comparable(experiment, {}, splits)
    assert not set(saved) & {"run", "workdir", "teachers", "bn_groups", "igdm"}
    assert set(saved["data"]) == {
        "name", "holdout", "split_seed", "augment", "pad", "last_batch"}  # fmt: skip
    assert set(saved["eval"]) == {
        "select_attack", "step_sizes", "every", "dense_from", "max_selection_examples", "seed"}  # fmt: skip
    results = parse.of_results(experiment)
    missing = {"loader", "workers", "prefetch", "on_device"}
    assert set(schema.DataConfig.model_fields) - set(results["data"]) == missing
    assert set(schema.Experiment.model_fields) - set(results) == {"workdir", "run"}
    digest = hashlib.sha256(json.dumps(saved, sort_keys=True).encode()).hexdigest()[:12]
    assert digest == "29637ab1f8a5"


def test_all_problems_at_once(tmp_path):
    with pytest.raises(parse.ConfigError) as caught:
        parse.to_experiment(
            tiny(tmp_path, eps=8.0, epochs=0, data__name="mnist", method__push_t=-1.0)
        )
    assert str(caught.value).count("\n  - ") == 4


def test_two_averages(tmp_path):
    with pytest.raises(parse.ConfigError, match="choose one average"):
        parse.to_experiment(tiny(tmp_path, ema_decay=0.9, swa_start=1))


@pytest.mark.parametrize(
    ("variant", "values", "lines"),
    [
        ("sat", {"average_bn": "copied"}, ["average_bn='copied' is of an average of the student"]),
        ("sat", {"attack__eps_ramp": 3}, ["attack.eps_ramp=3: must be at most config.epochs=2"]),
        ("sat", {"attack__eps_ramp": 2, "attack__name": "apgd_ce", "attack__steps": 0},
         ["attack: eps_ramp=2: attack 'apgd_ce' has a fixed radius"]),
        ("natural", {"attack__eps_ramp": 2}, ["attack: eps_ramp=2: method 'natural' has no attack"]),
        ("sat", {"data__cutmix": 1.0}, ["data.mixup or cutmix: attack 'pgd_sat' needs labels"]),
        ("sat", {"data__cutmix": 1.0, "attack__name": "adr_train", "label_smoothing": 0.1}, []),
        ("", {"data__cutmix": 1.0, "label_smoothing": 0.1},
         ["label_smoothing=0.1: method 'ciard' has no cross-entropy",
          "data.mixup or cutmix: method 'ciard' asks where the clean teacher is wrong",
          "data.mixup or cutmix: attack 'ciard_train' needs labels"]),
        ("sat", {"data__extra": "none.npz", "data__on_device": "on"},
         ["data.on_device='on' with config.data.extra='none.npz'"]),
        ("sat", {"ema_decay": 0.9, "swa_start": 1, "data__cutmix": 1.0, "label_smoothing": 1.0},
         ["label_smoothing=1.0: must be less than 1", "ema_decay and config.swa_start are both set",
          "data.mixup or cutmix: attack 'pgd_sat' needs labels"]),
    ],
)  # fmt: skip
def test_switches_of_the_recipe_that_cannot_be(tmp_path, variant, values, lines):
    """Told before any compute, all of them together."""
    raw = tiny(tmp_path, variant, **values)
    if not lines:
        assert build.has_soft_labels(parse.to_experiment(raw))
        return
    with pytest.raises(parse.ConfigError) as caught:
        parse.to_experiment(raw)
    found = str(caught.value).split("\n  - ")[1:]
    assert len(found) == len(lines)
    assert all(one.startswith(f"config.{line}") for one, line in zip(found, lines, strict=True)), (
        found
    )


@pytest.mark.parametrize("name", methods.names())
def test_every_method_takes_the_switches(name):
    raw = importlib.import_module("ard_jax.configs.cifar10").get_config(name)
    raw.data.update(augment="idbh_strong", extra="x.npz", extra_fraction=0.5)
    raw.update(swa_start=2, average_bn="recomputed")
    raw.awp.gamma = 0.005
    if name in methods.ATTACKING and name != "dkl":  # whose radius grows already
        raw.attack.eps_ramp = raw.epochs
    assert parse.to_experiment(raw).average_bn == "recomputed"


def test_the_recipe_leaves_teachers_alone(tmp_path):
    """They are those of the plain run, so that students with and without it can be compared."""
    plain = parse.to_experiment(tiny(tmp_path))
    switches = {"data__augment": "idbh_weak", "data__extra": "x.npz", "data__extra_fraction": 0.5,
                "swa_start": 1, "average_bn": "recomputed", "awp__gamma": 0.01,
                "attack__eps_ramp": 2}  # fmt: skip
    lifted = parse.to_experiment(tiny(tmp_path, **switches))
    then, now = (
        build.own_settings(build.teacher_experiment(e, "robust", e.teachers.robust))
        for e in (plain, lifted)
    )
    assert then == now and then["data"]["augment"] == "crop"
    ours = build.own_settings(lifted)
    assert (ours["average_bn"], ours["attack"]["eps_ramp"]) == ("recomputed", 2)
    assert (ours["data"]["augment"], ours["data"]["extra_fraction"]) == ("idbh_weak", 0.5)


def test_parts_of_the_recipe_side_by_side():
    built = from_config(
        importlib.import_module("ard_jax.configs.compare_digits").get_config("recipe")
    )
    assert len(built.methods) == 12 and len(built.seeds) == 3
    differ = {
        name: {k for k, v in one.items() if v != built.settings[name.split("_")[0]].get(k)}
        for name, one in built.settings.items()
    }
    assert differ["sat"] == differ["rslad"] == set() and differ["sat_augment"] == {"data.augment"}
    assert differ["rslad_all"] == {
        "data.augment", "awp.gamma", "awp.start", "swa_start", "average_bn"}  # fmt: skip


def test_everything_wrong_with_a_method_at_once(tmp_path):
    """A teacher that it does not take, a zero temperature, a negative weight, an unusable attack."""
    raw = importlib.import_module("ard_jax.configs.dard_digits").get_config()
    raw.teachers.clean = tiny(tmp_path).teachers.clean
    raw.method.update(temperature=0.0, a=-0.5)
    raw.attack.options.update(lambda_schedule="up", dice="cake")
    with pytest.raises(parse.ConfigError) as caught:
        parse.to_experiment(raw)
    message = str(caught.value)
    for part in (
        "config.teachers.clean is given, but method 'dard' takes only robust", "temperature=0.0",
        "method.a=-0.5", "config.attack: attack 'dpgd'",
    ):  # fmt: skip
        assert part in message


def test_attack_that_needs_a_teacher_on_a_method_without_one(tmp_path):
    with pytest.raises(parse.ConfigError, match="rslad_train.*needs a robust teacher.*'sat' has"):
        parse.to_experiment(tiny(tmp_path, "sat", attack__name="rslad_train"))


def test_unknown_and_missing_keys(tmp_path):
    raw = tiny(tmp_path).to_dict()
    raw["lr"] = 0.1
    del raw["name"]
    with pytest.raises(parse.ConfigError, match="config.lr does not exist") as caught:
        parse.to_experiment(raw)
    assert "config.name is missing" in str(caught.value)


def test_configs_of_runs_made_before_autoattack_load(tmp_path):
    raw = tiny(tmp_path).to_dict()
    for name in ("autoattack_examples", "autoattack_nets", "save_images"):
        del raw["eval"][name]
    assert parse.to_experiment(raw).eval.autoattack_examples == 0


def test_unknown_method_option(tmp_path):
    raw = tiny(tmp_path).to_dict()
    raw["method"]["itt_begin"] = 3
    with pytest.raises(
        parse.ConfigError,
        match="config.method.itt_begin does not exist; .*itt_start",
    ):
        parse.to_experiment(raw)


def test_reference_has_every_value():
    table = reference.configuration() + reference.options("ciard")
    for row in (
        "| `lr` | 0 < float ≤ 100 | `0.1` | Base learning rate. |",
        "| `boundaries` | tuple of 1 ≤ int ≤ 1000000 | `()` |",
        "| `norm` | `'linf'`, `'l2'` | `'linf'` | Of the attack radius. |",
        "| `push_t` | 0 < float ≤ 1000000 | `5.0` |",
        "## config.teachers.robust.recipe.optim\n",
    ):
        assert row in table


def test_a_run_that_was_made_stays_readable():
    raw = importlib.import_module("ard_jax.configs.cifar10").get_config("rslad").to_dict()
    raw["epochs"] = 5  # the schedule's decays are later: refused for a new run
    with pytest.raises(parse.ConfigError, match="student_optim.boundaries"):
        parse.to_experiment(raw)
    assert parse.to_experiment(raw, saved=True).epochs == 5


def test_gradient_matching(tmp_path):
    """Its weight by data set, what a longer run would change, and teachers and methods that it refuses."""
    get_config = {d: importlib.import_module(f"ard_jax.configs.{d}").get_config for d in DATASETS}
    weights = {d: get_config[d]("adaad:igdm").igdm.weight for d in DATASETS}
    assert weights == {"digits": 1.0, "cifar10": 1.0, "cifar100": 10.0} | dict.fromkeys(
        ("tiny_imagenet", "imagenet", "imagenet100"), 10.0
    )
    with pytest.raises(ValueError, match="no variant 'igdm'"):
        get_config["digits"]("trades:igdm")
    raw = get_config["digits"]("rslad:igdm")
    experiment = parse.to_experiment(raw)
    saved = build.comparable(experiment, {}, build.load_data(experiment.data))
    assert saved["igdm"]["weight"] == 1.0
    assert (
        build.teacher_experiment(experiment, "robust", experiment.teachers.robust).igdm.weight == 0
    )
    raw.student_optim.schedule = "constant"
    assert "ramp_epochs=0" in build.extension_problem(parse.to_experiment(raw), 3)
    raw.igdm.ramp_epochs = 200
    assert build.extension_problem(parse.to_experiment(raw), 3) == ""
    raw.teachers.robust.recipe.method = "natural"
    raw.igdm.variant = "saad"
    with pytest.raises(parse.ConfigError) as caught:
        parse.to_experiment(raw)
    first, second = str(caught.value).split("\n  - ")[1:]
    assert first.startswith("config.igdm.variant='saad': there is no such code with method 'rslad'")
    assert second.startswith("config.teachers.robust.recipe.method='natural': gradient matching")
    with pytest.raises(parse.ConfigError, match="config.igdm.weight=0.5: method 'sat' takes no"):
        parse.to_experiment(tiny(tmp_path, "sat", igdm__weight=0.5))


def test_constants_of_the_data_sets():
    get_config = {d: importlib.import_module(f"ard_jax.configs.{d}").get_config for d in DATASETS}
    names = ("temperature_first", "temperature_last", "share_first", "share_last")
    found = {d: tuple(get_config[d]("adr").method[n] for n in names) for d in DATASETS}
    assert found == {
        "digits": (2.5, 2.0, 0.7, 0.95), "cifar10": (2.5, 2.0, 0.7, 0.95),
        "cifar100": (1.5, 1.0, 0.7, 0.95),
        **dict.fromkeys(("tiny_imagenet", "imagenet", "imagenet100"), (2.0, 1.5, 0.5, 0.9)),
    }  # fmt: skip
    assert get_config["cifar10"]("adr").student_optim.nesterov
    assert get_config["cifar100"]("saad").method.igdm_weight == 10.0


def test_only_what_every_step_trains_can_have_a_cyclic_rate(tmp_path):
    with pytest.raises(parse.ConfigError, match="config.robust_teacher_optim.schedule='cyclic'"):
        parse.to_experiment(tiny(tmp_path, robust_teacher_optim__schedule="cyclic"))
    experiment = parse.to_experiment(tiny(tmp_path, "sat", student_optim__schedule="cyclic"))
    assert "from epoch 1 on" in build.extension_problem(experiment, 1)


@pytest.mark.parametrize(
    ("name", "attack", "words"),
    [("fat", "sat_train", "stops each on its own"), ("dkl", "apgd_ce", "eps_ramp=False")],
)
def test_attack_that_a_method_cannot_do_its_work_with(name, attack, words):
    raw = importlib.import_module("ard_jax.configs.digits").get_config(name)
    raw.attack.name, raw.epochs = attack, 0
    with pytest.raises(
        parse.ConfigError, match=rf"config.attack: attack '{attack}'.*{words}"
    ) as error:
        parse.to_experiment(raw)
    assert "config.epochs=0" in str(error.value)  # told together
