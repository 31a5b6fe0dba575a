"""The host's side of AutoAttack: who is still robust, what is next, and what is already on disk."""

import dataclasses
import os
import time
from typing import Any

import jax
import numpy as np

from ard_jax import rng
from ard_jax.attacks.auto_attack.engine import Engine
from ard_jax.attacks.auto_attack.square import SquareState
from ard_jax.attacks.auto_attack.store import Store
from ard_jax.attacks.auto_attack.versions import Member
from ard_jax.attacks.threat_model import ThreatModel
from ard_jax.io.progress import Progress
from ard_jax.runtime import preemption

_CHUNK = 250  # queries between two compactions of Square
_SAVE_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class Session:
    """Where a run of AutoAttack keeps what it has done, and what it shows of it.

    Attributes:
      state_dir: folder that keeps finished batches: a second call with the same arguments continues.
      progress: show a progress bar; None where there is a terminal, and plain lines elsewhere.
      title: of the progress bar.
    """

    state_dir: str | os.PathLike | None = None
    progress: bool | None = None
    title: str = "AutoAttack"


class Cascade:
    """One AutoAttack run over N images: every member on the images that are robust so far.

    Attributes:
      robust: [N] bool.
      images: [N,H,W,C] float32, the image that broke each one; the clean image otherwise.
      predicted: [N] int32, the class of `images`.
      broken_by: [N] text, the member that broke the image; "" where none did.
      queries: [N] int32, Square's evaluations on the image; 0 where Square did not run.
      stages: member name -> [N] bool, `robust` after it.
      unfair: candidates that were thrown away: NaN, or outside the ball or the range.
      undefined: images on which the network says NaN; they count as broken.
    """

    def __init__(
        self, engine: Engine, variables: Any, images: np.ndarray, labels: np.ndarray,
        logits: np.ndarray, *, members: tuple[Member, ...], threat: ThreatModel, key: jax.Array,
        store: Store, session: Session,
    ):  # fmt: skip
        """Starts with what is right on the clean images."""
        self._engine, self._variables, self._store = engine, variables, store
        self._clean_images, self._labels, self._logits = images, labels, logits
        self._members, self._threat, self._key = members, threat, key
        self._session, self._done = session, 0
        self.predicted = _classes(logits)
        self.robust = self.predicted == labels
        self.images, self.queries = images.copy(), np.zeros(len(images), np.int32)
        longest = max(len(member.name) for member in members)
        self.broken_by = np.full(len(images), "", f"<U{longest}")
        self.stages: dict[str, np.ndarray] = {}
        self.unfair = self.undefined = 0
        # From the most likely class down; equal logits in the order of torch's ascending sort.
        self._ranking = np.argsort(logits, axis=1, kind="stable")[:, ::-1]

    def run(self) -> None:
        """Runs all members."""
        for position, member in enumerate(self._members):
            key = rng.stream(self._key, member.name)
            with self._bar(position) as bar:
                if member.kind == "square":
                    self._square(member, key, bar)
                else:
                    self._gradients(member, key, bar)
            self.stages[member.name] = self.robust.copy()
            accuracy = {name: float(flags.mean()) for name, flags in self.stages.items()}
            self._store.note(stages=accuracy)

    def _bar(self, position: int) -> Progress:
        """The display from this member on: what is left if no further image breaks."""
        classes, alive = self._logits.shape[1], int(self.robust.sum())
        left = sum(alive * self._rounds(m) * m.cost(classes) for m in self._members[position:])
        where = f"{self._members[position].name} ({position + 1}/{len(self._members)})"
        title = f"{self._session.title}: {where}"
        show = self._session.progress if jax.process_index() == 0 else False
        return Progress(self._done + left, self._done, title, enabled=show)

    def _advance(self, bar: Progress, cost: int) -> None:
        self._done += cost
        bar.update(cost, {"robust accuracy": f"{100 * self.robust.mean():.2f}%"})

    def _rounds(self, member: Member) -> int:
        # FAB runs its restarts itself: the nearest image of all of them counts.
        return 1 if member.name == "fab" else member.rounds(self._logits.shape[1])

    def _batches(self) -> list[np.ndarray]:
        rows, size = np.flatnonzero(self.robust), self._engine.batch_size
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _rows(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        labels, index = self._labels[rows], rows.astype(np.int32)
        return {"images": self._clean_images[rows], "labels": labels, "index": index}

    def _gradients(self, member: Member, key: jax.Array, bar: Progress) -> None:
        cost = member.cost(self._logits.shape[1])
        if member.name == "fab":
            cost *= member.restarts
        for number in range(self._rounds(member)):
            targets = {}
            for batch, rows in enumerate(self._batches()):
                unit = f"{member.name}-{number}-{batch}"
                result = self._store.load(unit, rows)
                if result is None:
                    if member.targeted:
                        targets = {"targets": self._ranking[rows, number + 1].astype(np.int32)}
                    found = self._engine.gradient_attack(
                        member, self._threat, self._variables, self._rows(rows) | targets,
                        jax.random.fold_in(key, number),
                    )  # fmt: skip
                    result = self._verified(rows, found)
                    self._store.save(unit, rows, result)
                self._apply(member, rows, result)
                self._advance(bar, cost * len(rows))
                preemption.check("AutoAttack; what it has done is kept")

    def _verified(self, rows: np.ndarray, found: Any) -> dict[str, Any]:
        """What the network says to the candidates, by the program that counts for everybody."""
        clean = self._clean_images[rows]
        fair = _within(found, clean, self._threat)
        found = np.where(fair[:, None, None, None], found, clean)
        logits = self._engine.logits(self._variables, found, self._key)
        predicted = _classes(logits)
        broken = (predicted != self._labels[rows]) & fair
        arrays = {"broken": broken, "images": found[broken], "predicted": predicted[broken]}
        return arrays | {
            "unfair": np.sum(~fair),
            "undefined": np.isnan(logits[broken]).any(1).sum(),
        }

    def _apply(self, member: Member, rows: np.ndarray, result: dict[str, Any]) -> None:
        broken = rows[result["broken"]]
        self.unfair += int(result["unfair"])
        self.undefined += int(result["undefined"])
        self.robust[broken] = False
        self.images[broken], self.predicted[broken] = result["images"], result["predicted"]
        self.broken_by[broken] = member.name

    def _square(self, member: Member, key: jax.Array, bar: Progress) -> None:
        for batch, rows in enumerate(self._batches()):
            unit, whole = f"{member.name}-0-{batch}", len(rows) * (member.queries + 1)
            result, before = self._store.load(unit, rows), self._done
            if result is None:
                state = self._searched(member, rows, key, unit, bar)
                result = self._verified(rows, state.images) | {"queries": state.queries}
                self._store.save(unit, rows, result)
                self._store.remove(f"{unit}-partial")
            self.queries[rows] = result["queries"]
            self._apply(member, rows, result)
            self._advance(bar, before + whole - self._done)  # with what this batch has lost
            preemption.check("AutoAttack; what it has done is kept")

    def _searched(
        self, member: Member, rows: np.ndarray, key: jax.Array, unit: str, bar: Progress
    ) -> SquareState:
        """Square on one batch; the images still right are packed together every few hundred queries."""
        engine, batch = self._engine, self._rows(rows)
        saved, first = self._store.load(f"{unit}-partial", rows), 0
        if saved is None:
            state = engine.square_start(self._threat, self._variables, batch, key)
            state = SquareState(*(np.array(part) for part in state))  # writable
        else:
            first = int(saved.pop("first"))
            state = SquareState(**saved)
        self._advance(bar, len(rows) * (first + 1))
        saved_at = time.monotonic()
        while first < member.queries:
            count = min(_CHUNK, member.queries - first)
            active = np.flatnonzero(state.margin > 0)
            if not len(active):
                break
            after = engine.square_run(
                self._threat, self._variables, jax.tree.map(lambda a, i=active: a[i], state),
                {name: a[active] for name, a in batch.items()}, key,
                first=first, queries=count, budget=member.queries,
            )  # fmt: skip
            for part, new in zip(state, after, strict=True):
                part[active] = new
            first += count
            if first < member.queries:
                self._advance(bar, len(rows) * count)
            stop = preemption.requested()
            if stop or time.monotonic() - saved_at > _SAVE_SECONDS:
                self._store.save(f"{unit}-partial", rows, state._asdict() | {"first": first})
                saved_at = time.monotonic()
            if stop:
                preemption.check("AutoAttack; what it has done is kept")
        return state


def _classes(logits: np.ndarray) -> np.ndarray:
    """Predicted classes int32 [N]; -1, which is no label, where a logit is not finite."""
    return np.where(np.isfinite(logits).all(1), logits.argmax(1), -1).astype(np.int32)


def _within(found: np.ndarray, clean: np.ndarray, threat: ThreatModel) -> np.ndarray:
    """[n] bool: finite, in [0,1] and in the eps-ball, up to float32 rounding."""
    delta = np.abs(found - clean).reshape(len(found), -1).astype(np.float64)
    size = delta.max(1) if threat.norm == "linf" else np.sqrt(np.square(delta).sum(1))
    flat = found.reshape(len(found), -1)
    in_range = (flat.min(1) >= 0) & (flat.max(1) <= 1)  # False for NaN
    return in_range & (size <= threat.eps * (1 + 1e-5) + 1e-6)
