"""`--mode=import`: a published network becomes a checkpoint of ours.

File -> tensors -> architecture -> variables -> input normalisation -> checks -> checkpoint. Nothing is
written before all checks have passed.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ard_jax.config import build
from ard_jax.config.schema import Experiment
from ard_jax.data import Splits, base
from ard_jax.interop import catalogue, download, files, import_folder, recognise
from ard_jax.interop import normalization as find_normalization
from ard_jax.interop.catalogue import CatalogueError, Entry
from ard_jax.interop.normalization import NormalizationError
from ard_jax.io.cache_folder import cache_dir
from ard_jax.io.files import to_plain
from ard_jax.models import described


class ImportingError(ValueError):
    """A network that cannot be imported; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """The input normalisation and what was measured to find it.

    Attributes:
      normalization: as `models.create` takes it.
      how: how it was found, for people.
      accuracies: candidate -> clean accuracy on training images, in [0, 1]; empty without data.
      test: {"data": name, "clean": accuracy in [0, 1], "images": number} on test images; empty without.
    """

    normalization: Any
    how: str
    accuracies: dict[str, float] = dataclasses.field(default_factory=dict)
    test: dict[str, Any] = dataclasses.field(default_factory=dict)


def run(
    *,
    source: str = "file",
    file: str = "",
    out: str = "",
    model: str = "",
    normalization: str = "",
    experiment: Experiment | None = None,
    key: str = "",
    download: bool = False,
    force: bool = False,
) -> Path:
    """Imports a network.

    Args:
      source: name in the catalogue, or "file" for any other file.
      file: path of the file; "" to look for the catalogue's file name in the usual folders.
      out: folder that is made; give it as config.teachers.X.checkpoint afterwards.
      model: name for `models.create`; "" to recognise the architecture.
      normalization: a name, or JSON {"mean": [...], "std": [...]}; "" to find it.
      experiment: its data measures normalisation and accuracy; None for no data.
      key: which of several networks in the file, e.g. "ema"; "" when there is one.
      download: fetch the catalogue's file when it is not found.
      force: import although checksum or accuracy are not the catalogue's, and replace an earlier import
        in `out` (which is moved aside, not deleted).

    Returns:
      `out`.

    Raises:
      ValueError: anything that does not fit, see the module's steps; nothing is written then.
    """
    entry = None if source == "file" else catalogue.get(source)
    folder = import_folder.check(out, force)
    given = find_normalization.parse(normalization) if normalization else None
    path = locate(entry, file, download)
    if entry:
        _tell(lambda: catalogue.check_sha256(entry, files.sha256_of(path), path), force)
    contents = files.read(path, key=key)
    splits = build.load_data(experiment.data) if experiment else None
    told = _own_description(contents.metadata)
    shape = _image_shape(splits, entry, told, contents.tensors)
    found = _recognise(contents.tensors, model, entry, told, splits, shape)
    _print_found(contents, found)
    _check_classes(path, found, entry, splits)
    if (
        told
        and splits
        and (problem := base.class_mismatch(told["class_names"], splits.train.class_names))
    ):
        raise ImportingError(f"{path} does not fit {splits.train.name}: {problem}")
    variables = recognise.convert(contents.tensors, found, image_shape=shape)
    description = _describe(found, shape, splits, told)
    own = _own_normalization(found, entry, told, description)
    if splits and experiment is not None:
        decision = _measure(description, variables, experiment, splits, own, given)
        _check_accuracy(entry, decision, force)
    else:
        decision = _without_data(own, given)
    print(f"Normalisation: {decision.normalization} ({decision.how})", flush=True)
    description["normalization"] = to_plain(decision.normalization)
    described.from_description(
        description
    )  # a normalisation that does not fit is told before anything is written
    origin = import_folder.describe_origin(contents, found, entry, decision, variables)
    meta = {"step": 0, "epoch": 0, "config": {"net": description}, "origin": origin}
    import_folder.write(folder, variables, meta)
    print(f"Imported into {folder}. As a teacher: --config.teachers.robust.checkpoint={folder}")
    return folder


def locate(entry: Entry | None, file: str, fetch: bool) -> Path:
    """Path of the file to import: the given one, else the catalogue's where it lies or after download.

    Raises:
      ImportingError: it is nowhere.
      DownloadError: see `download.fetch`.
    """
    if file:
        if fetch:
            raise ImportingError(
                f"--download with --file={file}: the file is here; leave one of them out"
            )
        if not Path(file).is_file():
            fix = ": it is a web address; download it first" if "://" in file else ""
            raise ImportingError(f"--file={file} is not a file{fix}")
        return Path(file)
    if entry is None:
        raise ImportingError(
            "--file is missing: give the file to import, or a name of --source=list as --source"
        )
    if not entry.file:
        raise ImportingError(
            f"the file name of {entry.name} is not known: get it ({catalogue.where(entry)}) and give "
            "--file=PATH"
        )
    cache = cache_dir() / "teachers"
    folders = [Path(), Path("teachers"), Path("checkpoints"), cache]
    if path := download.find_local(entry.file, folders):
        print(f"Found {path}", flush=True)
        return path
    if fetch and entry.url:
        return download.fetch(entry.url, cache / entry.file, sha256=entry.sha256 or "")
    looked = ", ".join(str(f.absolute()) for f in folders)
    how = (
        f"add --download to get it from {entry.url}"
        if entry.url
        else f"get it by hand from {catalogue.where(entry)}"
    )
    raise ImportingError(f"{entry.file} is not in {looked}; {how}, or give --file=PATH")


def _own_description(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """What a file that --mode=export wrote says of its network; None for any other file."""
    try:
        told = json.loads(metadata["description"])
        return {
            "model": str(told["model"]),
            "kwargs": dict(told["kwargs"]),
            "normalization": told["normalization"],
            "image_shape": tuple(int(n) for n in told["image_shape"]),
            "class_names": [str(name) for name in told["class_names"]],
        }
    except (KeyError, TypeError, ValueError):
        return None


def _image_shape(
    splits: Splits | None,
    entry: Entry | None,
    told: dict[str, Any] | None,
    tensors: Mapping[str, np.ndarray],
) -> tuple[int, int, int]:
    if splits:
        return splits.train.image_shape
    if entry:
        return entry.image_shape
    if told:
        return told["image_shape"]
    side = recognise.image_side(tensors)
    return side, side, 3


def _own_normalization(
    found: recognise.Recognised,
    entry: Entry | None,
    told: dict[str, Any] | None,
    description: dict[str, Any],
) -> Any:
    """The source's own word on it, None where there is none."""
    if entry is not None and entry.normalization is not None:
        return entry.normalization
    if found.normalization is not None or told is None or told["model"] != found.model:
        return found.normalization
    # None in a description is the architecture's own.
    return described.from_description(
        description | {"normalization": told["normalization"]}
    ).normalization


def _recognise(
    tensors: Mapping[str, np.ndarray],
    model: str,
    entry: Entry | None,
    told: dict[str, Any] | None,
    splits: Splits | None,
    shape: tuple[int, int, int],
) -> recognise.Recognised:
    known = (entry.model, entry.kwargs) if entry else ("", None)
    if told and not entry:
        known = (told["model"], told["kwargs"])
    if model and model != known[0]:
        known = (model, None)
    try:
        found = recognise.recognise(tensors, model=known[0], kwargs=known[1], image_shape=shape)
        if told and known[1] is told["kwargs"]:
            found = dataclasses.replace(found, family="exported by ard_jax, as the file says")
        return found
    except ValueError as error:
        if splits or entry or told:
            raise
        raise ImportingError(
            f"{error} (Without --config the images are taken to be {shape}; give the --config of the data "
            "if they are not)"
        ) from error


def _print_found(contents: Any, found: Any) -> None:
    under = f", tensors under {contents.nested!r}" if contents.nested else ""
    print(f"{contents.path}: {contents.format}{under}, SHA-256 {contents.sha256}")
    options = "".join(f", {k}={v}" for k, v in found.kwargs.items())
    print(
        f"Architecture: {found.model}{options}, {found.num_classes} classes ({found.family}), "
        f"{len(contents.tensors)} tensors"
    )
    if left_out := [*found.ignored, *contents.skipped]:
        print(f"Left out, the network does not use them: {', '.join(left_out)}")


def _check_classes(path: Path, found: Any, entry: Entry | None, splits: Splits | None) -> None:
    """Number of classes against the data (or the catalogue), before anything is computed."""
    if splits and found.num_classes != splits.train.num_classes:
        raise ImportingError(
            f"{path} is a network for {found.num_classes} classes, but {splits.train.name} has "
            f"{splits.train.num_classes}; give the --config of the data it was trained on"
        )
    if entry and found.num_classes != entry.num_classes:
        raise ImportingError(
            f"{path} is a network for {found.num_classes} classes, but {entry.name} has "
            f"{entry.num_classes}: it is another file"
        )


def _describe(
    found: recognise.Recognised,
    shape: tuple[int, int, int],
    splits: Splits | None,
    told: dict[str, Any] | None,
) -> dict[str, Any]:
    """As `build.describe_network`; the classes are called by their numbers where nothing names them."""
    names = [str(i) for i in range(found.num_classes)]
    if splits:
        names = list(splits.train.class_names)
    elif told and len(told["class_names"]) == found.num_classes:
        names = told["class_names"]
    return {
        "model": found.model,
        "kwargs": to_plain(found.kwargs),
        "init": "torch",
        "normalization": "none",
        "precision": "float32",
        "num_classes": found.num_classes,
        "image_shape": list(shape),
        "class_names": names,
    }


def _measure(
    description: dict[str, Any],
    variables: Any,
    experiment: Experiment,
    splits: Splits,
    own: Any,
    given: Any,
) -> Decision:
    """The normalisation by measurement, and the clean accuracy with it on test images."""
    channels, classes = description["image_shape"][-1], description["num_classes"]
    tried = find_normalization.candidates(channels, own, given)
    tester = find_normalization.Tester(
        description, variables, experiment.eval, experiment.run.devices
    )
    images = find_normalization.sample(splits.train)
    correct = [tester.correct(c.normalization, images) for c in tried]
    if given is None:
        chosen, how = find_normalization.choose(tried, correct, channels, classes)
    else:
        chosen, how = tried[0], "given by --normalization"
    print(find_normalization.table(tried, correct), flush=True)
    if given is not None and (warning := find_normalization.check_given(tried, correct)):
        print(warning, flush=True)
    test = base.first(splits.test, experiment.eval.max_examples)
    clean = float(tester.correct(chosen.normalization, test).mean())
    print(f"Clean accuracy on {len(test)} test images: {clean:.2%}", flush=True)
    accuracies = {c.title: float(right.mean()) for c, right in zip(tried, correct, strict=True)}
    measured = {"data": experiment.data.name, "clean": clean, "images": len(test)}
    return Decision(chosen.normalization, how, accuracies, measured)


def _without_data(own: Any, given: Any) -> Decision:
    if given is not None:
        return Decision(given, "given by --normalization, not measured")
    if own is None:
        raise NormalizationError(
            "nothing says which input normalisation this network was trained with: add --config of its "
            "data (and --config.data.dir) to have it measured, or give --normalization=none, cifar10, "
            'cifar100, imagenet or \'{"mean": [...], "std": [...]}\''
        )
    return Decision(own, "the source's own, not measured: no --config with data was given")


def _check_accuracy(entry: Entry | None, decision: Decision, force: bool) -> None:
    test = decision.test
    if entry is None:
        return
    if entry.dataset != test["data"]:
        print(
            f"{entry.name} was published for {entry.dataset}, the data here are {test['data']}: its "
            "published accuracy is not compared"
        )
        return
    _tell(lambda: catalogue.check_clean(entry, test["clean"], test["images"]), force)


def _tell(check: Any, force: bool) -> None:
    """Prints what a check of the catalogue says; with --force a failed one only warns."""
    try:
        if said := check():
            print(said[0].upper() + said[1:], flush=True)
    except CatalogueError as error:
        if not force:
            raise
        print(f"WARNING (--force): {error}", flush=True)
