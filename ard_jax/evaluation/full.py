"""The evaluation that ends a run, and `--mode=evaluate`: its record, example results and report."""

import dataclasses
import datetime
import logging
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ard_jax import __version__, models
from ard_jax.attacks.auto_attack.versions import SUITES
from ard_jax.config.build import EvaluationSettings
from ard_jax.data import ArrayDataset
from ard_jax.evaluation import autoattack, diagnostics, noise, teacher_quality
from ard_jax.evaluation.accuracies import ExampleResults, summarize
from ard_jax.evaluation.evaluator import Evaluator
from ard_jax.io.files import write_arrays_atomic, write_text_atomic
from ard_jax.io.metric_writer import METRICS_FILE, MetricWriter, read_metrics
from ard_jax.io.progress import Progress
from ard_jax.models import ModelBundle
from ard_jax.reporting import record, run_page, tables
from ard_jax.runtime import sharding
from ard_jax.runtime.distributed import is_lead, tell


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluatedNetwork:
    """A network to be evaluated.

    Attributes:
      title: row of the tables, "student (best)".
      role: "student", "teacher", or "source" of transferred attacks alone.
      bundle: the network.
      variables: its variables, replicated.
      evaluator: its compiled programs, shared by all variables of one architecture and role.
      step: update at which it was saved; None for an original teacher.
      epoch: likewise.
      sweep: whether to measure accuracy over a range of eps; among students that of the best checkpoint.
      source: the name under which its adversarial images are transferred to the students, for example a
        teacher's role; "" for a network whose images are not.
      selected_by: what chose its checkpoint, for the record.
    """

    title: str
    role: str
    bundle: ModelBundle
    variables: Any
    evaluator: Evaluator
    step: int | None = None
    epoch: int | None = None
    sweep: bool = False
    source: str = ""
    selected_by: record.Selection | None = None


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What the record tells of a run beside its measurements; teachers: role -> where it came from."""

    teachers: dict[str, record.Teacher] = dataclasses.field(default_factory=dict)
    timing: record.Timing | None = None
    checkpoint: str = ""


def evaluate_and_save(
    settings: EvaluationSettings,
    dataset: ArrayDataset,
    networks: list[EvaluatedNetwork],
    facts: RunFacts,
    folder: Path,
    state_dir: Path | None,
    mirrors: Callable[[], MetricWriter] | None = None,
) -> Path:
    """Evaluates as `evaluate_all` does, prints the table, and saves it with example images to `folder`.

    What `mirrors` makes gets the accuracies, as "test/NETWORK/ATTACK", and the images too.

    Returns:
      The report's path.
    """
    evaluation, results = evaluate_all(settings, dataset, networks, facts, state_dir)
    try:
        tell(run_page.summary_table(evaluation))  # seen even if the disk is full by now
    finally:  # and saved even if nobody can read it
        grid = None
        if settings.eval.grid:
            grid = example_images(settings, dataset, networks[0], results[networks[0].title])
        path = save(folder, evaluation, results, grid)
    if mirrors is not None:
        with mirrors() as writer:
            _mirror(writer, evaluation, grid)
    if state_dir is not None:
        autoattack.forget_state(state_dir, results.values())
    return path


def _mirror(
    writer: MetricWriter, evaluation: record.Evaluation, grid: dict[str, np.ndarray] | None
) -> None:
    step = 0
    for title, net in evaluation.nets.items():
        values = {"clean": net.clean} | {name: a.accuracy for name, a in net.attacks.items()}
        step = net.step or step
        writer.mirror({"kind": "test", "net": title, "step": step} | values)
    if grid:  # clean images above the attacked ones
        rows = [np.concatenate(list(grid[name]), axis=1) for name in ("clean", "adversarial")]
        writer.image("examples", np.round(255 * np.concatenate(rows)).astype(np.uint8), step)


def evaluate_all(
    settings: EvaluationSettings,
    dataset: ArrayDataset,
    networks: list[EvaluatedNetwork],
    facts: RunFacts | None = None,
    state_dir: Path | None = None,
) -> tuple[record.Evaluation, dict[str, ExampleResults]]:
    """Evaluates every network under every attack; students also on the images that fooled each source.

    Args:
      settings: what to measure.
      dataset: test images.
      networks: in the order of the tables.
      facts: what else the record tells.
      state_dir: folder that keeps AutoAttack's finished batches, for a second start.

    Returns:
      (record, {title: example results}).
    """
    first = _first_equal(networks)
    different = [n for n in networks if first[n.title] is n]
    results, sweeps = _run_attacks(settings, dataset, different)
    suites = _run_suites(settings, dataset, different, results, state_dir)
    if settings.eval.transfer:
        _transfer(settings, different, results)
    nets, warnings, names = {}, [], [*settings.attacks, *settings.suites]
    for network in different:
        title = network.title
        nets[title] = summarize(
            results[title], dataset.num_classes, names, eps_sweep=sweeps.get(title),
            noise=noise.noise_accuracy(
                network.evaluator, network.variables, dataset, settings.eps, settings.norm
            ),
            autoattack=suites.get(title, {}),
        )  # fmt: skip
        warnings += diagnostics.warnings(title, results[title], nets[title], settings.attacks)
    nets = {n.title: _net_record(n, nets[first[n.title].title]) for n in networks}
    notes = [*_notes(settings, networks, first, suites), *_worst_case_notes(nets)]
    facts = _with_quality(settings, dataset, different, facts or RunFacts())
    evaluation = _record(settings, dataset, networks, nets, facts, suites)
    evaluation = dataclasses.replace(evaluation, warnings=tuple(warnings), notes=tuple(notes))
    shown = {
        n.title: dataclasses.replace(results[first[n.title].title], others={}) for n in networks
    }
    return evaluation, shown


def _first_equal(networks: list[EvaluatedNetwork]) -> dict[str, EvaluatedNetwork]:
    """Returns, by title, the first network that has the same arrays; mostly the network itself."""
    found: dict[str, EvaluatedNetwork] = {}
    for network in sorted(networks, key=lambda n: not n.source):
        equal = (other for other in found.values() if _is_equal(other, network))
        found[network.title] = next(equal, network)
    return found


def _is_equal(a: EvaluatedNetwork, b: EvaluatedNetwork) -> bool:
    # The comparison runs on the devices: a process reads its answer, not the arrays.
    if a.evaluator is not b.evaluator or a.role != b.role:
        return False
    leaves = zip(*map(jax.tree.leaves, (a.variables, b.variables)), strict=True)
    return all(bool(jnp.array_equal(x, y)) for x, y in leaves)


def _students(networks: list[EvaluatedNetwork]) -> list[EvaluatedNetwork]:
    return [n for n in networks if n.role == "student"]


def _run_attacks(
    settings: EvaluationSettings, dataset: ArrayDataset, networks: list[EvaluatedNetwork]
) -> tuple[dict[str, ExampleResults], dict[str, record.Sweep]]:
    """Returns title -> results of all attacks but AutoAttack, and title -> accuracy over radii."""
    results, sweeps = {}, {}
    students = {n.title: (n.evaluator, n.variables) for n in _students(networks)}
    lead = None if is_lead() else False
    progress = Progress(len(networks), description="final evaluation", enabled=lead)
    # Sources first: their attacks' images are given to the students as they are made.
    for network in sorted(networks, key=lambda n: not n.source):
        title, watched = network.title, settings.eval.transfer and network.source
        progress.message(f"evaluating {title} on {len(dataset)} images")
        results[title] = network.evaluator.run(
            network.variables,
            dataset,
            settings.attacks | (settings.transfer if watched else {}),
            watch=students if watched else {},
            progress=lambda text, title=title: progress.update(0, {title: text}),
        )
        if network.sweep and settings.sweep:
            sweeps[title] = _sweep(settings, network, dataset)
        progress.update(1)
    progress.close()
    return results, sweeps


def _sweep(
    settings: EvaluationSettings, network: EvaluatedNetwork, dataset: ArrayDataset
) -> record.Sweep:
    """Accuracy over radii, all through one compiled program; radius 0 is clean accuracy."""
    specs = {str(eps): spec for eps, spec in settings.sweep.items() if spec is not None}
    results = network.evaluator.run(network.variables, dataset, specs)
    names = ["clean" if spec is None else str(eps) for eps, spec in settings.sweep.items()]
    attack = next((spec.name for spec in specs.values()), "")
    accuracy = tuple(map(results.accuracy, names))
    return record.Sweep(attack=attack, eps=tuple(settings.sweep), accuracy=accuracy)


def _num_attacked(settings: EvaluationSettings, dataset: ArrayDataset) -> int:
    """Number of images that AutoAttack gets, the first ones."""
    return min(settings.eval.autoattack_examples or len(dataset), len(dataset))


def _run_suites(
    settings: EvaluationSettings,
    dataset: ArrayDataset,
    networks: list[EvaluatedNetwork],
    results: dict[str, ExampleResults],
    state_dir: Path | None,
) -> dict[str, dict[str, record.AutoAttackRecord]]:
    """AutoAttack and its like into `results`; returns network -> suite -> record."""
    part = dataset.subset(np.arange(_num_attacked(settings, dataset)))
    found: dict[str, dict[str, record.AutoAttackRecord]] = {}
    wanted = {
        "all": [n for n in networks if n.role != "source"],
        "students": _students(networks),
        "best": [n for n in _students(networks) if n.sweep],
    }[settings.eval.autoattack_nets]
    for network in wanted:
        for name in settings.suites:
            ran = autoattack.run_suite(
                network.evaluator, network.variables, part, name, eps=settings.eps,
                norm=settings.norm, state_dir=state_dir, title=network.title,
            )  # fmt: skip
            if ran is not None:
                autoattack.add_result(results[network.title], name, ran[0])
                found.setdefault(network.title, {})[name] = ran[1]
    return found


def _with_quality(
    settings: EvaluationSettings,
    dataset: ArrayDataset,
    networks: list[EvaluatedNetwork],
    facts: RunFacts,
) -> RunFacts:
    """The facts with what each original teacher says, and the robust one judged; the student is the first."""
    students = {n.title: (n.evaluator, n.variables) for n in _students(networks)[:1]}
    teachers = dict(facts.teachers)
    for network in (n for n in networks if n.source in teachers and n.step is None):
        quality = teacher_quality.measure(
            network.evaluator, network.variables, dataset, settings.select, students
        )
        if network.source == "robust":  # a clean one is no robust teacher, on purpose
            quality = teacher_quality.judge(quality)
        teachers[network.source] = dataclasses.replace(teachers[network.source], quality=quality)
    return dataclasses.replace(facts, teachers=teachers)


def _transfer_name(attack: str, network: EvaluatedNetwork) -> str:
    return f"transfer_{attack}_{network.source}"


def _transfer(
    settings: EvaluationSettings,
    networks: list[EvaluatedNetwork],
    results: dict[str, ExampleResults],
) -> None:
    """Moves what the students said to each source's images into the students' own results."""
    for source in (n for n in networks if n.source):
        own = results[source.title]
        for attack in settings.transfer:
            name = _transfer_name(attack, source)
            for student in _students(networks):
                seen = own.others[student.title]
                results[student.title].correct[name] = seen.correct[attack]
                results[student.title].predicted[name] = seen.predicted[attack]
            if attack not in settings.attacks:
                del own.correct[attack], own.predicted[attack]


def _net_record(network: EvaluatedNetwork, net: record.NetworkResult) -> record.NetworkResult:
    return dataclasses.replace(
        net,
        role=network.role,
        model=network.bundle.name,
        num_params=models.num_params(network.bundle),
        step=network.step,
        epoch=network.epoch,
        selected_by=network.selected_by,
    )


def _notes(
    settings: EvaluationSettings,
    networks: list[EvaluatedNetwork],
    first: dict[str, EvaluatedNetwork],
    suites: dict[str, Any],
) -> list[str]:
    """Returns the notes on rows that are copies, and on networks that AutoAttack did not attack."""
    notes = [
        f"{n.title} is the same network as {first[n.title].title}: evaluated once."
        for n in networks
        if first[n.title] is not n
    ]
    left = [n.title for n in networks if n.role != "source" and first[n.title].title not in suites]
    if suites and left:
        labels = ", ".join(SUITES[name].label for name in settings.suites)
        notes.append(
            f"{labels} not run on {', '.join(left)} (config.eval.autoattack_nets="
            f"{settings.eval.autoattack_nets!r}), whose worst case is over the other attacks; "
            "--config.eval.autoattack_nets=students attacks the last checkpoint too, =all every network."
        )
    return notes


def _worst_case_notes(nets: dict[str, record.NetworkResult]) -> list[str]:
    """Returns the note on worst cases that are of a part of the images."""
    counts = {title: n.worst_case.num_examples for title, n in nets.items() if n.worst_case}
    return [
        f"Worst case of {', '.join(t for t, n in counts.items() if n == count)}: of the first {count} "
        "images, which every attack got (config.eval.autoattack_examples)."
        for count in dict.fromkeys(counts.values())
        if count
    ]


def spec_record(spec: Any, label: str = "") -> record.Attack:
    """An `attacks.Attack` as the record holds it."""
    return record.Attack.from_json(dataclasses.asdict(spec) | {"label": label or spec.label})


def _attack_records(
    settings: EvaluationSettings,
    dataset: ArrayDataset,
    networks: list[EvaluatedNetwork],
    suites: dict[str, Any],
) -> dict[str, record.Attack]:
    found = {name: spec_record(spec) for name, spec in settings.attacks.items()}
    count = _num_attacked(settings, dataset)
    for name in (name for by_name in suites.values() for name in by_name):
        found[name] = autoattack.attack_record(
            name, settings.eps, settings.norm, settings.eval.seed, count % len(dataset)
        )
    for source in (n for n in networks if n.source and settings.eval.transfer):
        for attack, spec in settings.transfer.items():
            label = f"{spec.label} through {source.title}"
            found[_transfer_name(attack, source)] = spec_record(spec, label)
    return found


def dataset_record(dataset: ArrayDataset) -> record.Dataset:
    """Which images these are, as the record holds it."""
    return record.Dataset(
        name=dataset.name,
        split=dataset.split,
        num_examples=len(dataset),
        num_classes=dataset.num_classes,
        class_names=tuple(dataset.class_names),
        image_shape=tuple(dataset.image_shape),
    )


def _record(
    settings: EvaluationSettings,
    dataset: ArrayDataset,
    networks: list[EvaluatedNetwork],
    nets: dict[str, Any],
    facts: RunFacts,
    suites: dict[str, Any],
) -> record.Evaluation:
    teachers = dict(facts.teachers)
    for title, role in ((n.title, n.source) for n in networks if n.source in teachers):
        net = nets[title]
        accuracy = {"clean": net.clean} | {n: a.accuracy for n, a in net.attacks.items()}
        teachers[role] = dataclasses.replace(teachers[role], accuracy=accuracy)
    versions = {m.__name__: m.__version__ for m in (jax, flax, optax, np)}
    versions |= {"ard_jax": __version__, "python": platform.python_version()}
    device, count = jax.devices()[0], jax.device_count()
    return record.Evaluation(
        name=settings.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seed=settings.seed,
        dataset=dataset_record(dataset),
        eps=settings.eps,
        norm=settings.norm,
        select_on=settings.select_on,
        command=" ".join(["python", "-m", "ard_jax.main", *sys.argv[1:]]),
        versions=versions
        | {"backend": jax.default_backend(), "devices": f"{count} x {device.device_kind}"},
        config=settings.config,
        attacks=_attack_records(settings, dataset, networks, suites),
        teachers=teachers,
        nets=nets,
        timing=facts.timing,
        checkpoint=facts.checkpoint,
    )


def example_images(
    settings: EvaluationSettings,
    dataset: ArrayDataset,
    network: EvaluatedNetwork,
    results: ExampleResults,
) -> dict[str, Any]:
    """The first test examples, clean and attacked, and what the network says, for the report's grid."""
    evaluator = network.evaluator
    count = min(settings.eval.grid, len(dataset), evaluator.batch_size)
    batch, _ = next(iter(evaluator.batches(dataset)))
    adversarial = evaluator.attack(settings.select, network.variables, batch)
    predicted = evaluator.predict(network.variables, adversarial)

    def confidence(variables: Any, images: jax.Array) -> jax.Array:
        logits = evaluator.apply(variables, images).astype(jnp.float32)
        return jnp.max(jax.nn.softmax(logits), axis=-1)

    sure = {
        f"confidence_{name}": evaluator.measure("confidence", confidence, network.variables, of)
        for name, of in (("clean", batch["image"]), ("adversarial", adversarial))
    }
    return {
        "clean": sharding.gather(batch["image"])[:count],
        "adversarial": sharding.gather(adversarial)[:count],
        "labels": np.asarray(dataset.labels)[:count],
        "predicted_clean": results.predicted["clean"][:count],
        "predicted_adversarial": predicted[:count],
        **{name: values[:count] for name, values in sure.items()},
        "caption": f"{network.title}, {settings.select.label}.",
    }


def _teacher_metrics(evaluation: record.Evaluation) -> dict[str, list[dict]]:
    """Role -> records of the training that made a teacher, of those whose run's folder is there."""
    found = {}
    for role, teacher in evaluation.teachers.items():
        folder = Path(teacher.folder)  # of the run, of its best/, or of a step of that
        near = (folder, folder.parent, folder.parent.parent) if teacher.folder else ()
        path = next((p / METRICS_FILE for p in near if (p / METRICS_FILE).is_file()), None)
        try:
            found[role] = read_metrics(path) if path else []
        except (OSError, ValueError) as error:  # of another run: no reason to fail here
            logging.warning("The report lacks the training of the %s teacher: %s", role, error)
    return {role: records for role, records in found.items() if records}


def save(
    folder: Path,
    evaluation: record.Evaluation,
    results: dict[str, ExampleResults],
    images: dict[str, Any] | None,
) -> Path:
    """Writes evaluation.json, evaluation_flags.npz, evaluation.csv, .md and report.html.

    The .npz holds "labels", and for each network and attack "<network>/<attack>/correct" and
    "/predicted"; of AutoAttack also "/broken_by" (text), "/queries" (Square's) and, for each stage,
    "/after/<attack>". It may be of the first images only. With config.eval.save_images the images that
    AutoAttack found are "<network>/<attack>" of evaluation_images.npz. evaluation.json comes last:
    where it is, the others are complete.

    Of several processes the lead writes.

    Returns:
      The report's path.
    """
    path = folder / run_page.REPORT_FILE
    if not is_lead():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    for title, result in results.items():
        arrays |= {"labels": result.labels} | result.arrays(title)
    write_arrays_atomic(folder / "evaluation_flags.npz", arrays)
    if evaluation.config["eval"].get("save_images"):
        found = {f"{n}/{a}": s.images for n, r in results.items() for a, s in r.suites.items()}
        write_arrays_atomic(folder / "evaluation_images.npz", found)
    write_text_atomic(folder / "evaluation.csv", run_page.csv_text(evaluation))
    table = tables.markdown(run_page.result_table(evaluation))
    write_text_atomic(folder / "evaluation.md", table)
    metrics, of_teachers = read_metrics(folder / METRICS_FILE), _teacher_metrics(evaluation)
    page = run_page.render(evaluation, metrics, images, arrays, of_teachers)
    write_text_atomic(path, page)
    write_text_atomic(folder / record.EVALUATION_FILE, evaluation.text())
    return path
