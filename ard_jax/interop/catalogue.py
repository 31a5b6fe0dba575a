"""Known public teachers: where each is published, what it is, and what its publisher says of it.

The entries are in catalogue.json. Every number and checksum there was read at the place that its entry
names; what is not known is left out.
"""

import dataclasses
import difflib
import functools
import json
import math
import textwrap
from pathlib import Path
from typing import Any

WHOLE_TEST_SET = 10_000  # of every data set in the catalogue
TOLERANCE = 0.01  # clean accuracy: a file off by more is another file, or wrongly normalised


class CatalogueError(ValueError):
    """A teacher that is not in the catalogue, or a file that is not the one in it."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One published teacher.

    Attributes:
      name: what `--source` takes.
      role: "robust" or "clean".
      dataset: name for `data.load`.
      num_classes: number of classes.
      image_shape: (H, W, C).
      model: architecture for `models.create`.
      page: where it is described.
      kwargs: options of the architecture.
      normalization: as `models.create` takes it; None when the sources disagree.
      file: its published file name.
      url: where it can be downloaded without a browser.
      google_drive: id of the file there, where that is the only place.
      sha256: checksum in hex digits, or its first ones; None when unknown.
      sha256_from: who says so; a file name ends in the first digits by PyTorch's custom.
      clean: clean accuracy in percent, on the whole test set.
      robust: robust accuracy in percent under `attack`.
      attack: attack and radius of `robust`.
      numbers_from: where the accuracies were read.
      note: anything else worth knowing.
    """

    name: str
    role: str
    dataset: str
    num_classes: int
    image_shape: tuple[int, int, int]
    model: str
    page: str
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    normalization: Any = None
    file: str | None = None
    url: str | None = None
    google_drive: str | None = None
    sha256: str | None = None
    sha256_from: str | None = None
    clean: float | None = None
    robust: float | None = None
    attack: str | None = None
    numbers_from: str = ""
    note: str = ""


@functools.cache
def entries() -> dict[str, Entry]:
    """Entries by name, in the order of the file."""
    raw = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
    return {e["name"]: Entry(**e | {"image_shape": tuple(e["image_shape"])}) for e in raw}


def get(name: str) -> Entry:
    """The entry of this name.

    Raises:
      CatalogueError: there is none; the message names the nearest.
    """
    known = entries()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise CatalogueError(
            f"--source={name} is not in the catalogue; {hint}--source=list prints it, and --source=file "
            "--file=PATH imports any other file"
        )
    return known[name]


def table() -> str:
    """The catalogue for people."""
    lines = [
        f"{'name':40} {'data':9} {'architecture':16} {'clean %':>7} {'robust %':>8}  attack",
        "-" * 108,
    ]
    for e in entries().values():
        clean, robust = (f"{v:.2f}" if v is not None else "-" for v in (e.clean, e.robust))
        lines.append(
            f"{e.name:40} {e.dataset:9} {e.model:16} {clean:>7} {robust:>8}  {e.attack or '-'}"
        )
        lines.append(f"    {e.file or 'file name not known'}, {where(e)}")
        lines.append(f"    SHA-256 {_checksum(e)}; normalisation {_normalization(e)}")
        lines.append(f"    accuracies: {e.numbers_from}")
        lines += textwrap.wrap(e.note, 104, initial_indent="    ", subsequent_indent="    ")
    lines.append(
        "\nImport one: python -m ard_jax.main --mode=import --source=NAME --out=teachers/NAME "
        "--config=configs/ciard_cifar10.py [--file=PATH | --download]"
    )
    return "\n".join(lines)


def _checksum(e: Entry) -> str:
    if not e.sha256:
        return "not known"
    return f"{e.sha256}{'' if len(e.sha256) == 64 else '...'} (from {e.sha256_from})"


def _normalization(e: Entry) -> str:
    if e.normalization is None:
        return "not known"
    if isinstance(e.normalization, str):
        return e.normalization
    return f"mean {e.normalization['mean']} std {e.normalization['std']}"


def where(entry: Entry) -> str:
    """Where to get the file, for people."""
    if entry.url:
        return entry.url
    if entry.google_drive:
        return f"https://drive.google.com/file/d/{entry.google_drive} (linked from {entry.page})"
    return f"linked from {entry.page}"


def check_sha256(entry: Entry, sha256: str, path: Path) -> str:
    """What a comparison of checksums says, "" when the entry has none.

    A checksum that is itself second-hand only warns: it may be wrong, and the accuracy tells as well.

    Raises:
      CatalogueError: `sha256` of the file `path` is another.
    """
    if not entry.sha256:
        return ""
    if not sha256.startswith(entry.sha256):
        if (entry.sha256_from or "").startswith("second-hand"):
            return (
                f"WARNING: the SHA-256 checksum of {path} is {sha256}, the catalogue has "
                f"{_checksum(entry)}"
            )
        raise CatalogueError(
            f"{path} is not the file of {entry.name}: its SHA-256 checksum is {sha256}, the catalogue has "
            f"{_checksum(entry)}. Get it again from {where(entry)}, import it as --source=file, or add "
            "--force if this is meant"
        )
    return f"SHA-256 matches the catalogue's {_checksum(entry)}"


def check_clean(entry: Entry, accuracy: float, count: int) -> str:
    """What a comparison with the published clean accuracy says, "" when the entry has none.

    On fewer images than the whole test set two standard errors of the sample are allowed besides.

    Args:
      entry: the published network.
      accuracy: measured clean accuracy in [0, 1].
      count: number of test images it was measured on.

    Raises:
      CatalogueError: it is off by more than `TOLERANCE`.
    """
    if entry.clean is None:
        return ""
    published = entry.clean / 100
    allowed, sample = TOLERANCE, ""
    if count < WHOLE_TEST_SET:
        error = math.sqrt(published * (1 - published) / count)
        allowed += 2 * error
        sample = f" plus twice the standard error {error:.2%} of {count} images"
    said = f"published {entry.clean:.2f}%, measured now {accuracy:.2%} on {count} test images"
    if abs(accuracy - published) > allowed:
        raise CatalogueError(
            f"{entry.name}: clean accuracy {said}: more than {TOLERANCE:.0%}{sample} apart. The usual "
            "causes are another normalisation (--normalization), another file or another data set; "
            "--force imports it all the same"
        )
    return f"clean accuracy {said}: within {TOLERANCE:.0%}{sample}"
