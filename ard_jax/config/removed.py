"""Options of earlier versions that are gone: what to use instead, and how old configurations are read."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple


class Removed(NamedTuple):
    """An option that is gone.

    Attributes:
      instead: what it gave, and what to use now; completes "was removed: ".
      off: values at which it did nothing, with which an old configuration is still taken; None for all.
    """

    instead: str
    off: tuple[Any, ...] | None = None


# End of the option's dotted path ("attack.x" is teachers.robust.recipe.attack.x too) -> what became of it.
REMOVED = {
    "attack.warm_start": Removed(
        "it cost the student 9 to 12 points under AutoAttack on the digits, as fewer steps alone do; use "
        "config.attack.steps and config.attack.step_size",
        off=(False,),
    ),
    "attack.warm_start_reset": Removed("it belonged to attack.warm_start; leave it out"),
    "teachers.views": Removed(
        "it saved 4 % of an epoch on the digits; leave it out: each image is augmented anew in every step, "
        "where the teachers are asked for their logits",
        off=(0,),
    ),
    "run.steps_per_dispatch": Removed(
        "results were the same and no gain was measured; leave it out: config.data.on_device=on keeps the "
        "training images on the device",
        off=(1,),
    ),
}


def find(path: str) -> Removed | None:
    """What became of the option at a dotted path; None if it was not removed."""
    parts = path.split(".")
    ends = (".".join(parts[i:]) for i in range(len(parts)))
    return next((REMOVED[end] for end in ends if end in REMOVED), None)


def split(raw: dict[str, Any], where: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits nested groups into (what is left of them, {dotted path: value} of the removed options)."""
    kept: dict[str, Any] = {}
    gone: dict[str, Any] = {}
    for name, value in raw.items():
        path = f"{where}.{name}" if where else str(name)
        if find(path):
            gone[path] = value
        elif isinstance(value, dict):
            kept[name], inner = split(value, path)
            gone |= inner
        else:
            kept[name] = value
    return kept, gone


def values_of_now(raw: dict[str, Any]) -> dict[str, Any]:
    """What a run recorded, with values that are written in another way now."""
    data = raw.get("data")
    if not isinstance(data, dict) or data.get("augment") != "cutmix":
        return raw
    mirrored = (
        data.get("flip", "on") == "on"
        or data.get("flip") == "auto"
        and data.get("name") != "digits"
    )
    return raw | {"data": data | {"augment": "crop_flip" if mirrored else "crop", "cutmix": 1.0}}


def problems(gone: dict[str, Any], saved: bool = False) -> list[str]:
    """One sentence for each removed option that is in use.

    Args:
      gone: from `split`.
      saved: whether a finished or interrupted run recorded them: the group "run" changed no result there.
    """
    return [
        f"config.{path}={value!r} was removed: {entry.instead}"
        for path, value in gone.items()
        if (entry := find(path)) and entry.off is not None and value not in entry.off
        if not (saved and path.startswith("run."))
    ]


def on_command_line(arguments: Iterable[str]) -> list[str]:
    """One sentence for each removed option that is set by a flag --config.PATH."""
    found = (re.match(r"--?(?:no)?config\.([\w.]+)", argument) for argument in arguments)
    paths = (match[1] for match in found if match)
    return [f"--config.{p} was removed: {entry.instead}" for p in paths if (entry := find(p))]
