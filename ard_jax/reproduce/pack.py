"""Carrying the work to another machine: files of a bounded size with checksums, and back.

A pack is a tar archive cut into parts, with a manifest. It is read without unpickling anything, and what
is damaged, missing or strange is refused by name before a file is written.
"""

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

from ard_jax.reproduce.parts import PART_BYTES, PART_NAME, Joined, Writer
from ard_jax.writers import write_text_atomic

MANIFEST = "manifest.json"
# Never carried: TensorBoard, locks, files and checkpoints that were being written.
_LEFT = re.compile(
    r"(^|/)(\.lock$|events\.out\.tfevents|[^/]*\.tmp(\.npz)?$)|orbax-checkpoint-tmp|^measuring/"
)
_STEP = re.compile(r"(?P<run>.+)/(?P<kind>best|last)/(?P<step>\d+)/")
_TEACHERS, _TRAINING = "teachers/", "teachers/training/"


class PackError(ValueError):
    """A pack that cannot be made or put back; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """Files that go together, or not at all.

    Attributes:
      what: for people.
      rank: 0 without which nothing can go on, 1 work in progress, 2 finished networks.
      files: relative to the folder, sorted.
      size: bytes.
    """

    what: str
    rank: int
    files: tuple[str, ...]
    size: int


def units(folder: Path) -> list[Unit]:
    """What there is to carry, the most important first.

    Of each run the newest of last/ and of best/ is carried, and of a finished one, which is only
    looked at, best/ alone; of a teacher that is trained its network in teachers/<role>.
    """
    groups: dict[tuple[int, str], list[str]] = {}
    newest = _newest(folder)
    for name in _files(folder):
        match = _STEP.match(name)
        role = name.removeprefix(_TRAINING).split("-")[0]
        if name.startswith(_TRAINING) and (folder / _TEACHERS / role).is_dir():
            continue  # its network is in teachers/<role>
        if match is None or (name.startswith(_TEACHERS) and not name.startswith(_TRAINING)):
            in_progress = "/autoattack/" in name
            key = (
                (1, "AutoAttack in progress") if in_progress else (0, "results, schedule, teachers")
            )
            groups.setdefault(key, []).append(name)
            continue
        run, kind, step = match["run"], match["kind"], int(match["step"])
        finished = (folder / run / "evaluation.json").is_file()
        if step != newest[run, kind] or (finished and kind == "last"):
            continue
        key = (2, f"{run}: best network") if finished else (1, f"{run}: training in progress")
        groups.setdefault(key, []).append(name)
    found = [
        Unit(what, rank, tuple(files), sum(_carried_size(folder / f) for f in files))
        for (rank, what), files in groups.items()
    ]
    return sorted(found, key=lambda unit: (unit.rank, unit.size, unit.what))


def _files(folder: Path) -> list[str]:
    """Plain files below the folder, in order; symbolic links are not followed."""
    found = []
    for root, names, files in os.walk(folder):
        names[:] = [n for n in names if not (n.endswith(".tmp") or (Path(root) / n).is_symlink())]
        for name in files:
            path = Path(root) / name
            text = path.relative_to(folder).as_posix()
            if path.is_file() and not path.is_symlink() and not _LEFT.search(text):
                found.append(text)
    return sorted(found)


def _newest(folder: Path) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for name in _files(folder):
        if match := _STEP.match(name):
            key = match["run"], match["kind"]
            found[key] = max(found.get(key, -1), int(match["step"]))
    return found


def _carried_size(path: Path) -> int:
    """With tar's header and padding, and room for a long name."""
    return 3 * 512 + -(-path.stat().st_size // 512) * 512


def pack(folder: Path, out: Path, limit: int = 0, part_bytes: int = PART_BYTES) -> dict[str, Any]:
    """Writes parts and manifest into `out`, replacing an earlier pack there.

    Args:
      folder: of the work; nothing may be running in it.
      out: new, empty, or an earlier pack.
      limit: bytes of all parts together, 0 for none; what does not fit is left out, the least
        important first, and told.
      part_bytes: of one part at most.

    Returns:
      The manifest: "parts" [{"name", "bytes", "sha256"}], "files", "left_out" [{"what", "bytes"}].

    Raises:
      PackError: there is no work in `folder`, `out` holds something else, or `limit` is too small.
    """
    if not (folder / "schedule.json").is_file():
        raise PackError(f"{folder} holds no work to pack: it has no schedule.json")
    if out.resolve().is_relative_to(folder.resolve()):
        raise PackError(f"--pack={out} lies in the folder that is packed; choose another place")
    _clear(out)
    taken, left, used = [], [], 20 * 512  # the archive's end
    for unit in units(folder):
        if limit and used + unit.size > limit:
            if unit.rank == 0:
                raise PackError(
                    f"{unit.what} take {unit.size:,} bytes, more than the limit of {limit:,}"
                )
            left.append({"what": unit.what, "bytes": unit.size})
            continue
        taken += unit.files
        used += unit.size
    parts = Writer(out, part_bytes)
    with tarfile.open(fileobj=parts, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(taken):
            archive.add(folder / name, arcname=name, recursive=False)
    parts.finish()
    manifest = {"schema": 1, "parts": parts.done, "files": len(taken), "left_out": left}
    write_text_atomic(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _clear(out: Path) -> None:
    """Removes an earlier pack; refuses a folder with anything else."""
    out.mkdir(parents=True, exist_ok=True)
    strange = [
        p.name for p in out.iterdir() if p.name != MANIFEST and not PART_NAME.fullmatch(p.name)
    ]
    if strange:
        raise PackError(
            f"--pack={out} holds other files ({sorted(strange)[0]}); give an empty folder"
        )
    for path in out.iterdir():
        path.unlink()


def unpack(source: Path, folder: Path) -> int:
    """Puts a pack's files into `folder`, replacing those of the same name. Returns their number.

    Checkpoints of runs in the pack take the place of older ones, so that the newest is that of the pack.

    Raises:
      PackError: naming every part that is missing or damaged, or a manifest that is none; nothing is
        written then. Or `folder` holds another work.
    """
    parts = _checked(source)
    with _open(source, parts) as archive:
        schedule = archive.extractfile("schedule.json").read()
    here = folder / "schedule.json"
    if here.is_file() and here.read_bytes() != schedule:
        raise PackError(f"{folder} holds a work with another schedule; unpack into another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with _open(source, parts) as archive:
        names = [_safe_name(member, folder) for member in archive.getmembers()]
        for stale in {f"{m['run']}/{m['kind']}" for m in map(_STEP.match, names) if m}:
            shutil.rmtree(folder / stale, ignore_errors=True)
        archive.extractall(folder, filter="data")
    return len(names)


def _safe_name(member: tarfile.TarInfo, folder: Path) -> str:
    """Of a plain file below the folder."""
    try:
        name = tarfile.data_filter(member, str(folder)).name
    except tarfile.FilterError as error:
        raise PackError(f"the pack holds a file that is not the work's: {error}") from error
    if not member.isfile():
        raise PackError(f"the pack holds {member.name!r}, which is no plain file")
    return name


def _checked(source: Path) -> list[Path]:
    """The parts, all of them whole."""
    try:
        manifest = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
        listed = [(str(p["name"]), int(p["bytes"]), str(p["sha256"])) for p in manifest["parts"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackError(f"{source / MANIFEST} is missing or damaged: {error!r}") from error
    problems = []
    for name, size, digest in listed:
        path = source / name
        if not PART_NAME.fullmatch(name):
            problems.append(f"{name!r} is no name of a part")
        elif not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != size:
            problems.append(f"{name} is damaged: {path.stat().st_size} bytes, not {size}")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            problems.append(f"{name} is damaged: another checksum")
    if not listed:
        problems.append("it lists no parts")
    if problems:
        raise PackError(f"the pack in {source} cannot be used: {'; '.join(problems)}")
    return [source / name for name, _, _ in listed]


def _open(source: Path, parts: list[Path]) -> tarfile.TarFile:
    try:
        archive = tarfile.open(fileobj=io.BufferedReader(Joined(parts)), mode="r:")
        archive.getmember("schedule.json")
    except (tarfile.TarError, KeyError) as error:
        raise PackError(f"the pack in {source} holds no work: {error}") from error
    return archive
