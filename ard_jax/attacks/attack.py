"""What an attack is: numbers, and one function from images to adversarial images."""

import abc
import dataclasses
import difflib
import warnings
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Self, TypeVar, cast

import jax
import numpy as np

from ard_jax.attacks import threat_model
from ard_jax.attacks.auto_attack import diagnostics
from ard_jax.attacks.checked_predict import check_function, look, traced_shape
from ard_jax.attacks.threat_model import ThreatModel
from ard_jax.convolutions.rewrite import fast_on_cpu
from ard_jax.losses import checks

Predict = Callable[..., Any]  # images -> logits, or (images, state) -> (logits, state)
_Record = TypeVar("_Record")


def create(kind: type[_Record], attack: str, options: dict[str, Any], /, **fixed: Any) -> _Record:
    """Returns a record of the attack, with `options` for fields that are not `fixed`.

    Raises:
      ValueError: an option that the record does not have, or a bad value.
    """
    fields = {f.name for f in dataclasses.fields(cast(Any, kind))} - set(fixed)
    if unknown := sorted(set(options) - fields):
        known = sorted(fields | ({"eps", "norm"} & set(fixed)))
        near = difflib.get_close_matches(unknown[0], known, 1, 0.5)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"attack {attack!r} has no parameter {', '.join(unknown)}; it has {', '.join(known)}{meant}"
        )
    return kind(**fixed, **options)


def part_of(whole: Any, kind: type[_Record], **changed: Any) -> _Record:
    """Returns a record of `kind` whose fields are those of the same name in `whole`."""
    names = [f.name for f in dataclasses.fields(cast(Any, kind))]
    return kind(**{name: getattr(whole, name) for name in names} | changed)


class Attack(abc.ABC):
    """An attack with all its numbers; subclasses are frozen dataclasses, and hashable.

    Attributes:
      name: of the registry, or any other.
      label: how reports call it.
      eps: radius in pixel units ([0,1] images: 8/255 is 8 grey levels).
      norm: "linf" or "l2".
      pure: whether `run` is a pure function that jit takes; False for what the host does step by step.
      tileable: whether an image's result does not depend on the others, so that a batch may be attacked
        part by part (`cpu_tiling`); such an attack has `own_start`, and `run` takes `start`.
      takes_state: whether `run` takes a `state` that predict updates (train-mode BatchNorm in the attack).
      bounded: whether its images stay within eps, so that an evaluation may run it.
      targeted: whether it moves images towards a class, so that it may put a wrong answer right.
      keys_per_image: whether `run` and `own_start` also take keys [B], one for each image; without it random
        numbers, and so results, depend on how an evaluation cuts the images into batches.
      needs_labels: whether `run` looks at the labels.
      needs_teacher: "" nothing, "logits" `teacher_logits`, "network" `teacher`.
    """

    name: str
    label: str
    eps: float
    norm: str
    pure = True
    tileable = False
    takes_state = False
    bounded = True
    needs_labels = True
    needs_teacher = ""
    keys_per_image = False
    targeted = False
    __dataclass_fields__: ClassVar[dict[str, Any]]  # what every subclass has

    @property
    def program(self) -> Hashable:
        """Everything static: attacks with equal programs share one compiled function."""
        return self

    @property
    def numbers(self) -> dict[str, float]:
        """Arguments of `run` that a compiled program takes as traced values."""
        return {}

    @property
    def threat(self) -> ThreatModel:
        """What it declares that it does to an image.

        Raises:
          ValueError: it has no name, or no radius, norm or range of pixels that an attack can have.
        """
        name = getattr(self, "name", None)
        if not isinstance(name, str):
            raise ValueError(f"{type(self).__name__} has the name {name!r}; give it a text")
        values = {n: getattr(self, n, None) for n in ("eps", "norm")}
        clip = {n: getattr(self, n) for n in ("clip_min", "clip_max") if hasattr(self, n)}
        if getattr(self, "order", None) in threat_model.ORDERS:
            values["order"] = getattr(self, "order")  # noqa: B009 (of some)
        try:
            threat_model.check_static(values["eps"], "eps")
            return ThreatModel(**values, **clip)
        except ValueError as error:
            raise ValueError(f"attack {name!r}: {error}") from None

    def with_eps(self, eps: float) -> Self:
        """Returns the same attack at another radius."""
        return dataclasses.replace(self, eps=eps)

    def own_start(
        self, images: jax.Array, key: jax.Array | None, eps: float | jax.Array | None = None
    ) -> jax.Array:
        """Returns the first iterate [B,H,W,C] that `run` takes with this key.

        Raises:
          ValueError: the attack is not tileable, and so has none.
        """
        raise ValueError(f"attack {self.name!r} has no start of its own; only tileable attacks do")

    def __call__(
        self, predict: Predict, images: Any, labels: Any = None, key: Any = None, **rest: Any
    ):
        """Checks arguments and predict (`checked_predict`), runs the attack, checks what it returns.

        Arguments and results are those of `run`. Values are looked at where they can be read, outside of jit.

        Raises:
          ValueError: what `run` raises, or a result that is outside of what the attack declares.
        """
        check_function(predict)
        threat, logits, told = self.threat, None, []
        if rest.get("eps") is not None:
            threat = dataclasses.replace(threat, eps=rest["eps"])
        images, labels, key = threat_model.check_batch(images, labels, key, threat)
        stateless = rest.get("state") is None
        if stateless:
            logits, told = look(predict, images, clip=(threat.clip_min, threat.clip_max))
            predict = fast_on_cpu(predict, images) if self.pure else predict
        elif (
            not isinstance(pair := traced_shape(predict, images, rest["state"]), tuple)
            or len(pair) != 2
        ):
            raise ValueError(
                f"predict returned {type(pair).__name__}; with a state it must return (logits, state)"
            )
        result = self.run(predict, images, labels, key, **rest)
        found = result if stateless or not isinstance(result, tuple) else result[0]
        threat_model.check_like(found, images, self.name)
        # A network whose clean outputs are NaN has been told of, and makes NaN of its images.
        if (
            self.bounded
            and checks.is_concrete(found)
            and checks.is_concrete(images)
            and (logits is None or np.isfinite(logits).all())
        ):
            beyond = np.asarray(threat_model.excess(found, images, threat))
            threat_model.check_excess(beyond, threat, self.name)
            self._warn_of_radius(threat)
            if not told and rest.get("start") is None and threat.eps > 0:
                self._warn_if_unmoved(found, images, key, threat)
        return result

    def _warn_of_radius(self, threat: ThreatModel) -> None:
        width = threat.clip_max - threat.clip_min
        found = diagnostics.radius_warnings(threat.eps, threat.norm, width)
        if threat.eps == 0:
            found = ["eps=0, so no image can change; is 8/255 meant, where 8//255 is 0?"]
        for text in found:
            warnings.warn(f"attack {self.name!r}: {text}", stacklevel=3)

    def _warn_if_unmoved(
        self, found: jax.Array, images: jax.Array, key: Any, threat: ThreatModel
    ) -> None:
        start, why = images, "it does nothing, or found nothing and gives the clean images back"
        if self.tileable:
            start = threat.cut(self.own_start(images, key, threat.eps), images)
            why = "the gradient of predict is 0 (rounding, saturated or constant outputs, a cut graph?)"
        if np.array_equal(found, start):
            text = f"attack {self.name!r} moved no image from its start: {why}; its failure is no robustness"
            warnings.warn(text, stacklevel=3)

    @abc.abstractmethod
    def run(
        self,
        predict: Predict,
        images: jax.Array,
        labels: jax.Array | None,
        key: jax.Array | None = None,
        *,
        unroll: int | bool | None = None,
        teacher_logits: jax.Array | None = None,
        teacher: Callable[[jax.Array], jax.Array] | None = None,
        state: Any = None,
    ) -> Any:
        """Runs the attack.

        Args:
          predict: images -> logits [B,K], pure, eval mode; with a state (images, state) -> (logits, state).
          images: [B,H,W,C] float32 in [0,1].
          labels: [B] int.
          key: typed PRNG key, or keys [B] with `keys_per_image`; needed for random numbers.
          unroll: of a loop, see `loop.resolve_unroll`; attacks without such a loop ignore it.
          teacher_logits: [B,K], a constant; given where `needs_teacher` is "logits".
          teacher: images -> logits [B,K]; given where `needs_teacher` is "network".
          state: pytree that predict updates once a step; None where `takes_state` is False.

        Returns:
          [B,H,W,C] float32; with a state (that, the state after the last step).
        """
