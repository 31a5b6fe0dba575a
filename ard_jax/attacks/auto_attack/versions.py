"""What AutoAttack's versions consist of, and the names under which evaluations run them."""

import dataclasses
from collections.abc import Iterable

from ard_jax.losses import checks

_MOST_TARGETS = 9


@dataclasses.dataclass(frozen=True)
class Member:
    """One attack of an AutoAttack version; hashable.

    Attributes:
      name: "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t" or "square".
      kind: the module that runs it: "apgd", "fab" or "square".
      loss: of APGD.
      targeted: one run for each of the most likely wrong classes, nine or all that there are.
      steps: iterations of one run.
      restarts: runs, each on the images that are still robust.
      eot: predictions that APGD averages per gradient; above 1 predict takes a key.
      queries: Square's budget.
    """

    name: str
    kind: str
    loss: str = ""
    targeted: bool = False
    steps: int = 100
    restarts: int = 1
    eot: int = 1
    queries: int = 0

    @property
    def white_box(self) -> bool:
        """Whether it takes gradients."""
        return self.kind != "square"

    @property
    def min_classes(self) -> int:
        """Fewest classes for which its loss is defined."""
        return {"dlr": 3, "targeted_dlr": 4}.get(self.loss, 2)

    def rounds(self, num_classes: int) -> int:
        """Runs on one image that is never broken."""
        return num_targets(num_classes) if self.targeted else self.restarts

    def cost(self, num_classes: int) -> int:
        """Forward passes per image of one round, a backward pass counted as two."""
        if self.kind == "square":
            return self.queries + 1
        if self.kind == "apgd":
            return 3 * self.eot * (self.steps + 1)
        backward = 2 if self.targeted else 2 * num_classes
        return self.steps * (2 + backward)


MEMBERS = {
    member.name: member
    for member in (
        Member("apgd-ce", "apgd", loss="cross_entropy"),
        Member("apgd-dlr", "apgd", loss="dlr"),
        Member("apgd-t", "apgd", loss="targeted_dlr", targeted=True),
        Member("fab", "fab"),
        Member("fab-t", "fab", targeted=True),
        Member("square", "square", queries=5000),
    )
}
_RESTARTED = ("apgd-ce", "apgd-dlr", "fab")
VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "fast": ("apgd-ce", "apgd-t"),
    "custom": (),
}


def num_targets(num_classes: int) -> int:
    """Target classes of a targeted attack: nine, or all wrong classes where there are fewer."""
    return min(_MOST_TARGETS, num_classes - 1)


def members(
    version: str, names: tuple[str, ...] | None = None, *, steps: int = 100, queries: int = 5000
) -> tuple[Member, ...]:
    """The attacks of a version, in order.

    Args:
      version: one of `VERSIONS`; "plus" has five restarts, "rand" averages 20 gradients.
      names: of "custom": names in `MEMBERS`, run in this order; for other versions None.
      steps: iterations of APGD and FAB.
      queries: Square's budget.

    Raises:
      ValueError: unknown version or attack, or names that do not go with the version.
    """
    checks.choice(version, "AutoAttack version", tuple(VERSIONS))
    checks.count(steps, "steps", 1)
    checks.count(queries, "queries", 1)
    if names and version != "custom":
        raise ValueError(f"attacks={names!r}: of version='custom', not {version!r}")
    if version == "custom" and not names:
        raise ValueError(f"version='custom' needs attacks, some of {', '.join(MEMBERS)}")
    found = []
    for name in tuple(names or VERSIONS[version]):
        if isinstance(name, str):
            name = name.replace("_", "-")  # as `attacks.make` has them
        checks.choice(name, "AutoAttack member", tuple(MEMBERS))
        restarts = 5 if version == "plus" and name in _RESTARTED else 1
        member = dataclasses.replace(
            MEMBERS[name], steps=steps, restarts=restarts, eot=20 if version == "rand" else 1
        )
        found.append(dataclasses.replace(member, queries=queries if name == "square" else 0))
    if len({member.name for member in found}) < len(found):
        raise ValueError(f"attacks={names!r}: each may be named once")
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Suite:
    """An entry of `config.eval.attacks` that runs members of AutoAttack.

    Attributes:
      label: how reports call it.
      version: of `members`.
      attacks: of version "custom", in this order.
      queries: Square's budget; papers also use 100.
      steps: iterations of APGD and FAB; anything but 100 is not AutoAttack.
    """

    label: str
    version: str = "custom"
    attacks: Iterable[str] = ()
    queries: int = 5000
    steps: int = 100

    def __post_init__(self):
        """Takes one name for a tuple of one."""
        if isinstance(self.attacks, str):
            object.__setattr__(self, "attacks", (self.attacks,))
        if not isinstance(self.attacks, Iterable | None):
            raise ValueError(f"attacks={self.attacks!r}: give some of {', '.join(MEMBERS)}")

    @property
    def members(self) -> tuple[Member, ...]:
        """Its attacks."""
        names = tuple(self.attacks or ()) or None
        return members(self.version, names, steps=self.steps, queries=self.queries)


# Only "autoattack" and "autoattack_plus" may be published as AutoAttack.
SUITES = {
    "autoattack": Suite("AutoAttack", "standard"),
    "autoattack_plus": Suite("AutoAttack plus", "plus"),
    "autoattack_fast": Suite("AutoAttack fast (upper bound)", "fast"),
    "apgd_ce": Suite("APGD-CE", attacks=("apgd-ce",)),
    "apgd_dlr": Suite("APGD-DLR", attacks=("apgd-dlr",)),
    "apgd_t": Suite("APGD-T", attacks=("apgd-t",)),
    "fab": Suite("FAB", attacks=("fab",)),
    "fab_t": Suite("FAB-T", attacks=("fab-t",)),
    "square100": Suite("Square, 100 queries", attacks=("square",), queries=100),
    "square5000": Suite("Square, 5000 queries", attacks=("square",)),
}
