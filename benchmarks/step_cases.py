"""What is measured: a method on networks, as the product builds it, and the arrays of its first step."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import attacks, methods, models, optim
from ard_jax.cli import plan
from ard_jax.convolutions.canonical_conv import exported_convolutions
from ard_jax.runtime import sharding
from ard_jax.training import train_step as steps

EPS = 8 / 255
STUDENT_SGD = optim.OptimConfig(lr=0.1, momentum=0.9, weight_decay=2e-4)
TEACHER_SGD = optim.OptimConfig(lr=1e-4, momentum=0.1, weight_decay=2e-4)
PRECISIONS = {"float32": "float32", "f32": "float32", "bf16": "bfloat16", "bfloat16": "bfloat16"}


class Work(NamedTuple):
    """The passes of a step beside its attack.

    Attributes:
      attack: name of the method's inner attack, "" for none.
      student: train-mode passes forward and back to the weights.
      frozen: roles of eval-mode teacher passes, one for each.
      trained: roles of teachers with a train-mode pass, its gradient and an update.
    """

    attack: str
    student: int
    frozen: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()


WORK = {
    "natural": Work("", 1),
    "sat": Work("sat_train", 1),
    "trades": Work("trades_train", 2),
    "rslad": Work("rslad_train", 2, ("robust",)),
    "mtard": Work("ciard_train", 2, ("robust", "clean")),
    "ciard": Work("ciard_train", 2, ("clean", "clean"), ("robust",)),
    "dard": Work("dpgd", 2, ("robust", "robust")),
}
# Methods whose steps are counted alone, with no contender beside them -> attack.
COUNTED = {
    "adaad": "adaad_train",
    "saad": "saad_train",
    "dgad": "adaad_train",
    "adr": "adr_train",
    "adr_trades": "adr_trades_train",
    "lbgat": "trades_train",
    "peeraid": "rslad_train",
    "hat": "hat_train",
    "dkl": "dkl_train",
    "free": "fgsm",
}
# Which of a case's teachers has the network of a partner.
_PARTNERS = {"guide": "clean", "peer": "robust"}
# CIARD trains its robust teacher in five sixths of its epochs; these steps are of those.
_OPTIONS = {"ciard": {"itt_start": 1}}
# BatchNorm in the attack, where it is not eval.
_MODES = dict.fromkeys(("adr", "adr_trades"), {"attack_bn": "train", "attack_bn_stats": "keep"})


def network(text: str) -> tuple[str, dict[str, Any]]:
    """(model, options) of "resnet18", "mobilenetv2", "wrn_34_10", "small_resnet" or "small_resnet/8-16".

    Raises:
      ValueError: not of that form, or unknown.
    """
    name, _, widths = text.partition("/")
    name = {"mobilenetv2": "mobilenet_v2"}.get(name, name)
    models.check_name(name)
    if name != "small_resnet":
        if widths:
            raise ValueError(f"network {text!r}: only small_resnet takes widths")
        return name, {}
    try:
        return name, {"widths": tuple(int(w) for w in (widths or "16-32-64").split("-"))}
    except ValueError:
        raise ValueError(f"network {text!r}: give widths as small_resnet/16-32-64") from None


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
      method: one of WORK or COUNTED.
      student, robust, clean: networks, see `network`; the teachers count where the method has them.
      batch: images per step.
      steps: of the attack.
      precision: "float32" or "bfloat16".
      classes: of all networks.
      size: height and width of the images.
      igdm: weight of gradient matching.
    """

    method: str
    student: str = "small_resnet"
    robust: str = "small_resnet"
    clean: str = "small_resnet"
    batch: int = 128
    steps: int = 10
    precision: str = "float32"
    classes: int = 10
    size: int = 32
    igdm: float = 0.0

    def __post_init__(self):
        """Checks names and numbers.

        Raises:
          ValueError: names the value and what to give.
        """
        if self.method not in (*WORK, *COUNTED):
            raise ValueError(f"--method={self.method}: choose among {', '.join(WORK)}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"--precision={self.precision}: choose float32 or bf16")
        if self.batch < 2 or self.steps < 1:
            raise ValueError(f"batch={self.batch}, attack steps={self.steps}: at least 2 and 1")
        for role in self.roles:
            network(self.network_of(role))

    def network_of(self, role: str) -> str:
        """The network of the student, a teacher or a partner, see `network`."""
        return getattr(self, _PARTNERS.get(role, role))

    @property
    def attack(self) -> str:
        """Name of the method's inner attack, "" for none."""
        return WORK[self.method].attack if self.method in WORK else COUNTED[self.method]

    @property
    def roles(self) -> tuple[str, ...]:
        """The student and the teachers of the method."""
        return ("student", *methods.TEACHERS[self.method])

    def describe(self) -> str:
        """For people."""
        nets = ", ".join(f"{role} {self.network_of(role)}" for role in self.roles)
        attack = f", {self.steps} attack steps" if self.attack else ""
        shape = f"{self.size}x{self.size}x3, {self.classes} classes"
        return f"{self.method}: {nets}; batch {self.batch} of {shape}{attack}, {self.precision}"


@dataclasses.dataclass(frozen=True)
class Built:
    """A case as the product runs it.

    Attributes:
      case: of which it is made.
      nets: role -> network.
      parts: networks, attack and optimisers.
      method: the method on them.
    """

    case: Case
    nets: dict[str, Any]
    parts: methods.Parts
    method: methods.Method

    def _init(self) -> dict[str, Any]:
        return {
            role: net.init(jax.random.key(i)) for i, (role, net) in enumerate(self.nets.items())
        }

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        """Role -> {"params", "batch_stats"}: the weights that every contender starts from."""
        return jax.jit(self._init)()

    def _state(self, variables: dict[str, Any]) -> Any:
        teachers = {role: variables[role] for role in self.case.roles[1:]}
        return self.method.init(variables["student"], teachers)

    def state(self) -> Any:
        """A fresh RunState, of arrays that a step may consume."""
        state = sharding.put_replicated(self.mesh, self._state(self.variables))
        return jax.tree.map(jnp.copy, state)

    @property
    def mesh(self) -> Any:
        """The devices that the product would take: on a CPU its cores, if `sharding.use_cores` was called."""
        return sharding.make_mesh(0 if sharding.has_cores() else 1, [self.case.batch])

    def program(self, devices: int = 1) -> Any:
        """The product's train step: (state, {"image" uint8, "label"}, root key) -> (state, metrics)."""
        config = steps.StepConfig(seed=0, steps_per_epoch=390, augment="crop_flip", pad=4)
        return steps.program(self.method, config, sharding.make_mesh(devices))

    def shapes(self) -> tuple[Any, dict[str, Any], Any]:
        """The arguments of `program` as shapes; nothing is allocated."""
        batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in arrays(self.case).items()}
        state = jax.eval_shape(lambda: self._state(self._init()))
        return state, batch, jax.eval_shape(lambda: jax.random.key(0))


def arrays(case: Case) -> dict[str, np.ndarray]:
    """Random images uint8 [B,H,W,3] and labels int32 [B]."""
    rng = np.random.default_rng(0)
    shape = (case.batch, case.size, case.size, 3)
    return {
        "image": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, case.classes, case.batch, np.int32),
    }


def build(case: Case) -> Built:
    """Networks and method; weights are made when they are first asked for."""
    nets = {}
    for role in case.roles:
        name, options = network(case.network_of(role))
        shape = (case.size, case.size, 3)
        nets[role] = models.create(name, case.classes, shape, dtype=case.precision, **options)
    length = {} if case.attack == "fgsm" else {"steps": case.steps}
    parts = methods.Parts(
        student=nets["student"],
        student_optim=optim.make(STUDENT_SGD, 300),
        attack=attacks.make(case.attack, eps=EPS, **length) if case.attack else None,
        teachers={role: nets[role] for role in case.roles[1:]},
        teacher_optims={"robust": optim.make(TEACHER_SGD, 300)}
        if "robust" in methods.TRAINED_TEACHERS[case.method]
        else {},
        epochs=300,
        steps_per_epoch=390,
        batch_size=case.batch,
        igdm=methods.Igdm(weight=case.igdm) if case.igdm else None,
        **_MODES.get(case.method, {}),
    )
    method = methods.create(case.method, parts, **_OPTIONS.get(case.method, {}))
    return Built(case, nets, parts, method)


def counted(case: Case) -> plan.Cost:
    """Work of the step by XLA's analysis, loops at their full length, convolutions as convolutions."""
    built = build(case)
    with exported_convolutions("stock"):
        return plan.cost(built.program().trace(*built.shapes()))
