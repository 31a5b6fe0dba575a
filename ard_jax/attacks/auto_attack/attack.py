"""AutoAttack (Croce and Hein 2020, arXiv 2003.01690) on any JAX function from images to logits."""

import dataclasses
import inspect
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from ard_jax.attacks import threat_model
from ard_jax.attacks.attack import Attack, create
from ard_jax.attacks.auto_attack import diagnostics as checks
from ard_jax.attacks.auto_attack.cascade import Cascade, Session
from ard_jax.attacks.auto_attack.engine import Engine
from ard_jax.attacks.auto_attack.store import Store, fingerprint
from ard_jax.attacks.auto_attack.versions import Member, Suite
from ard_jax.attacks.checked_predict import changing_constants, traced_shape
from ard_jax.convolutions.rewrite import fast_on_cpu
from ard_jax.losses import checks as array_checks

_REPEATS = 5  # predictions on the first batch that must agree
_FORMAT = 1  # of the stored batches


@dataclasses.dataclass(frozen=True, eq=False)
class AutoAttackResult:
    """What AutoAttack found on N images.

    Attributes:
      images: [N,H,W,C] float32, the adversarial image; the clean one where none was found.
      robust: [N] bool, right on the clean image and on everything that was tried: the worst case.
      clean: [N] bool, right on the clean image.
      stages: attack name -> [N] bool, `robust` after that attack, in order.
      broken_by: [N] text, the attack that broke the image; "" where robust or wrong when clean.
      predicted: [N] int32, the class of `images`.
      queries: [N] int32, Square's evaluations, of those it broke the queries to success; 0 where it
        did not run.
      warnings: reasons to doubt the number, for people; `autoattack` gives them as Python warnings too.
      version: "standard", "plus", "rand", "fast" or "custom".
      attacks: the names of the attacks, in order.
      eps: radius in pixel units.
      norm: "linf" or "l2".
      identity: of settings, images, labels and network; names the folder of stored batches.
      reduced: fewer steps or queries than AutoAttack's.
      programs: compiled for this run.
      padding: share of the rows of all program runs that were padding.
    """

    images: np.ndarray
    robust: np.ndarray
    clean: np.ndarray
    stages: dict[str, np.ndarray]
    broken_by: np.ndarray
    predicted: np.ndarray
    queries: np.ndarray
    warnings: list[str]
    version: str
    attacks: tuple[str, ...]
    eps: float
    norm: str
    identity: str
    reduced: bool = False
    programs: int = 0
    padding: float = 0.0

    @property
    def accuracy(self) -> float:
        """Robust accuracy."""
        return float(self.robust.mean())

    @property
    def upper_bound(self) -> bool:
        """True for all but the published versions: the number may not be called AutoAttack's."""
        return self.reduced or self.version not in ("standard", "plus", "rand")

    def broken_counts(self) -> dict[str, int]:
        """Attack name -> images that it broke."""
        return {name: int((self.broken_by == name).sum()) for name in self.attacks}

    def square_curve(self, budgets: Iterable[int] = ()) -> dict[str, Any]:
        """Accuracy after a number of Square's queries, {"queries": [...], "accuracy": [...]}.

        Images that earlier attacks broke count as wrong from the start, so only Square alone gives
        the black-box curve.

        Args:
          budgets: numbers of queries; () for 0, 1, 2, 5, 10, ... up to what was used.

        Raises:
          ValueError: a number of queries that is none.
        """
        by_square = self.broken_by == "square"
        alive = self.robust | by_square
        most = int(self.queries.max(initial=1))
        given: Any = (budgets,) if isinstance(budgets, int | str) else budgets
        budgets = [array_checks.count(n, "budgets", 0) for n in given] or _budgets(most)
        left = [float((alive & ~(by_square & (self.queries <= n))).mean()) for n in budgets]
        return {"queries": budgets, "accuracy": left}

    def summary(self) -> str:
        """A few lines for a terminal."""
        name = {"custom": "attacks", "fast": "AutoAttack fast"}.get(
            self.version, f"AutoAttack {self.version}"
        )
        bound = " (an upper bound of the robust accuracy)" if self.upper_bound else ""
        lines = [f"{name}, {self.norm} eps {self.eps:.4g}, {len(self.robust)} images{bound}"]
        lines.append(f"  clean     {self.clean.mean():8.2%}")
        lines += [f"  {stage:<9} {flags.mean():8.2%}" for stage, flags in self.stages.items()]
        return "\n".join(lines + [f"  ! {text}" for text in self.warnings])


def _budgets(most: int) -> list[int]:
    found = [0] + [d * 10**p for p in range(6) for d in (1, 2, 5) if d * 10**p < most]
    return [*found, most]


def autoattack(
    predict: Callable[..., jax.Array],
    images: Any,
    labels: Any,
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    seed: int = 0,
    batch_size: int = 250,
    mesh: Any = None,
    state_dir: str | os.PathLike | None = None,
    progress: bool | None = None,
    **options: Any,
) -> AutoAttackResult:
    """Robust accuracy under AutoAttack, with the images that break the network.

    standard: APGD-CE, APGD-T (nine targets), FAB-T (nine targets), Square (5,000 queries), each on
    the images that the ones before left robust. plus: also APGD-DLR and untargeted FAB, five
    restarts. rand: APGD-CE and APGD-DLR with gradients averaged over 20 predictions. fast: APGD-CE
    and APGD-T; its robust accuracy is an UPPER BOUND of AutoAttack's and may not be called
    AutoAttack. custom: `attacks`, in that order; one of them alone is the result of that attack.

    Follows fra31/auto-attack (commit a392200), with these differences: random numbers are drawn per
    image from its position (there per batch), so that results depend neither on the batch size nor
    on the devices, up to rounding; Square's windows depend on the query only and are the same in all
    batches; every target class goes over all images before the next one.

    Args:
      predict: images [B,H,W,C] float32 in [0,1] -> logits [B,K]; pure, in evaluation mode. It is
        compiled for a few batch sizes. On CPU stock convolutions, whose gradients are slow in a loop,
        are rewritten (`convolutions.rewrite`). With version "rand" it may take (images, key).
      images: [N,H,W,C] float, in [0,1].
      labels: [N] int, the true classes.
      eps: radius in pixel units: 8/255, not 8.
      norm: "linf" or "l2".
      seed: of all random numbers.
      batch_size: images per compiled batch.
      mesh: devices (`sharding.make_mesh`); None for all.
      state_dir: folder that keeps finished batches: a second call with the same arguments continues.
      progress: show a progress bar; None where there is a terminal, and plain lines elsewhere.
      **options: fields of `versions.Suite`: version ("standard"), attacks (of version "custom":
        "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"), steps (100), queries (5,000).

    Returns:
      AutoAttackResult; `warnings` says why its number might be too high.

    Raises:
      ValueError: images outside [0,1] or not float, labels that are no class, NaN logits, an eps of 0
        or not below 1, a wrong output shape, too few classes for DLR, an unknown name.
    """
    threat_model.check_static(eps, "eps")
    suite = create(Suite, "autoattack", {"version": "standard"} | options, label="AutoAttack")
    images = checks.check_inputs(images, labels)[0]
    chosen, version = suite.members, suite.version
    array_checks.count(seed, "seed", 0, array_checks.MOST_SEED)
    names = ", ".join(member.name for member in chosen)
    if suite.queries != Suite.queries and "square" not in names:
        raise ValueError(f"queries={suite.queries}: of Square, but {version!r} runs {names}")
    if progress is not None:
        array_checks.flag(progress, "progress")
    takes_key = version == "rand" and _takes_key(predict)
    keys = (jax.random.key(0),) if takes_key else ()
    traced_shape(predict, jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32), *keys)
    engine = Engine(
        "predict",
        lambda _, x, *key: fast_on_cpu(predict, x, *key)(x, *key),
        mesh=mesh,
        batch_size=min(array_checks.count(batch_size, "batch_size", 1), len(images)),
        takes_key=takes_key,
    )
    found = run(
        engine, (), images, labels, chosen, version=version, eps=eps, norm=norm, seed=seed,
        session=Session(state_dir, progress),
    )  # fmt: skip
    if not takes_key:
        found.warnings.extend(_keyless_warnings(predict, images[:1], version))
    for text in found.warnings:
        warnings.warn(text, stacklevel=2)
    return found


def run(  # noqa: D417 (the other arguments are those of `autoattack`)
    engine: Engine,
    variables: Any,
    images: Any,
    labels: Any,
    chosen: tuple[Member, ...],
    *,
    version: str,
    eps: float,
    norm: str = "linf",
    seed: int = 0,
    session: Session = Session(),  # noqa: B008 (frozen)
) -> AutoAttackResult:
    """`autoattack` on an `Engine`, whose programs serve many variables, images and radii.

    Args:
      engine: of the network.
      variables: the network's.
      chosen: of `members`.
      version: name for the result.
      session: what is kept and shown.

    Returns:
      AutoAttackResult.

    Raises:
      ValueError: as `autoattack`.
    """
    images, labels = checks.check_inputs(images, labels)
    threat = checks.checked_threat(eps, norm, images.shape[1:])
    engine.check_shape(variables, images.shape[1:])
    before = engine.programs, engine.rows, engine.padded_rows
    key = jax.random.key(seed)
    logits = engine.logits(variables, images, key)
    checks.check_logits(logits, labels, chosen)
    settings = (_FORMAT, chosen, threat.eps, norm, seed, engine.batch_size)
    identity = fingerprint(settings, [images, labels, logits])
    about = {"version": version, "eps": threat.eps, "norm": norm, "images": len(images)}
    store = Store(session.state_dir, identity, about)
    told = checks.radius_warnings(eps, norm) + checks.image_warnings(images)
    told += checks.output_warnings(logits, chosen)
    told += checks.constant_warnings(images, logits) or _network_warnings(
        engine, variables, images, labels, logits, chosen, key
    )
    cascade = Cascade(
        engine, variables, images, labels, logits, members=chosen, threat=threat, key=key,
        store=store, session=session,
    )  # fmt: skip
    clean = cascade.robust.copy()
    told += checks.chance_warnings(clean, logits.shape[1])
    cascade.run()
    told += checks.candidate_warnings(cascade.unfair, cascade.undefined)
    accuracy = {"clean": float(clean.mean())}
    accuracy |= {name: float(flags.mean()) for name, flags in cascade.stages.items()}
    return AutoAttackResult(
        images=cascade.images,
        robust=cascade.robust,
        clean=clean,
        stages=cascade.stages,
        broken_by=cascade.broken_by,
        predicted=cascade.predicted,
        queries=cascade.queries,
        warnings=told + checks.stage_warnings(accuracy, chosen, len(labels)),
        version=version,
        attacks=tuple(member.name for member in chosen),
        eps=float(eps),
        norm=norm,
        identity=identity,
        reduced=any(m.steps < 100 or m.kind == "square" and m.queries < 5000 for m in chosen),
        programs=engine.programs - before[0],
        padding=(engine.padded_rows - before[2]) / max(engine.rows - before[1], 1),
    )


def _network_warnings(
    engine: Engine,
    variables: Any,
    images: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    chosen: tuple[Member, ...],
    key: jax.Array,
) -> list[str]:
    """Warnings that need more predictions, or gradients."""
    first = images[: engine.batch_size]
    found = []
    if all(member.eot == 1 for member in chosen):
        again = [engine.logits(variables, first, key) for _ in range(_REPEATS - 1)]
        found += checks.random_warnings([logits[: len(first)], *again])
        alone = engine.logits(variables, np.repeat(first[:1], len(first), 0), key)
        found = found or checks.batch_warnings(logits[:1], alone)
    right = np.flatnonzero(logits.argmax(1) == labels)
    if len(right) and any(member.white_box for member in chosen):
        gradients = engine.largest_gradients(variables, images[right], labels[right], key)
        found += checks.gradient_warnings(gradients)
    return found


def _takes_key(predict: Callable) -> bool:
    try:
        inspect.signature(predict).bind(None, None)
    except (TypeError, ValueError):  # one argument, or nothing is known
        return False
    return True


def _keyless_warnings(predict: Callable, image: np.ndarray, version: str) -> list[str]:
    """Warnings of a predict that takes no key: it draws by other means, or not at all."""
    found = changing_constants(predict, image)
    if version == "rand":
        found.append(
            "version='rand' is for randomised networks, but predict takes no key: APGD-T, FAB and Square are "
            "left out for nothing; use version='standard', or predict(images, key)"
        )
    return found


@dataclasses.dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack, or some of its members, under a name of the registry.

    Attributes:
      suite: which members, in which order.
      seed: of all random numbers.
    """

    name: str
    label: str
    eps: float
    norm: str
    suite: Suite
    seed: int = 0
    pure = False

    def __post_init__(self):
        """Checks every field; `autoattack` checks the radius of what it runs more narrowly."""
        if not isinstance(self.suite, Suite):
            raise ValueError(f"suite is {type(self.suite).__name__}; give one of attacks.SUITES")
        self.threat  # noqa: B018 (for its checks)
        array_checks.count(self.seed, "seed", 0, array_checks.MOST_SEED)

    def _warn_if_unmoved(self, *_: Any) -> None:
        """Nothing: images that stay as they are withstood it, and `autoattack` warns itself."""

    def run(self, predict: Callable, images: Any, labels: Any, key: Any = None, **_: Any) -> Any:
        """Returns adversarial images [N,H,W,C], the clean one where none was found; `key` is not used.

        Raises:
          ValueError: inside of jit, or what `autoattack` raises.
        """
        if isinstance(images, Tracer):
            raise ValueError(
                f"attack {self.name!r} decides on the host what to do next, so that no jitted step can take "
                "it; name it in config.eval.attacks, or train with 'apgd_ce'"
            )
        suite = self.suite
        found = autoattack(
            predict, images, labels, eps=self.eps, norm=self.norm, version=suite.version,
            attacks=suite.attacks, seed=self.seed, queries=suite.queries, steps=suite.steps,
        )  # fmt: skip
        return found.images
