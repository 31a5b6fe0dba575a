"""Will this teacher help, as a table and lines: of a run's teachers, or of one that was looked at alone."""

from collections.abc import Mapping

from ard_jax.reporting.record import Evaluation, Quartiles, TeacherQuality
from ard_jax.reporting.tables import MISSING, Table, percent, percent_cell

NOTE = (
    "Mean, and in brackets the 25, 50 and 75 % points, over the images. Entropy in nats. First-order error: "
    "|z(x+d) - z(x) - Jd| / |z(x+d)| with d = x' - x and J the Jacobian at x of the logits z, which are "
    "taken less their mean; central: |z(x+d) - z(x-d) - 2Jd| / |z(x+d) - z(x-d)|, of what IGDM matches."
)


def qualities(evaluation: Evaluation) -> dict[str, TeacherQuality]:
    """Role -> what was measured, of the run's teachers."""
    return {f"{role} teacher": t.quality for role, t in evaluation.teachers.items() if t.quality}


def table(found: Mapping[str, TeacherQuality]) -> Table | None:
    """One row for each teacher and kind of images; None without teachers. A further number is a line here."""
    columns = [
        ("right, %", lambda view: percent_cell(view.accuracy)),
        ("confidence", lambda view: _spread(view.confidence)),
        ("entropy", lambda view: _spread(view.entropy)),
        ("first-order error", lambda view: _spread(view.first_order)),
        ("central error", lambda view: _spread(view.central)),
    ]
    rows = [
        [f"{title}, {name}" if title else name, *(cell(view) for _, cell in columns)]
        for title, quality in found.items()
        for name, view in quality.views.items()
    ]
    titles = ["images", *(title for title, _ in columns)]
    return Table(titles, rows, "What the teachers say") if rows else None


def _spread(value: Quartiles | None) -> str:
    if value is None:
        return MISSING
    mean, *points = (
        f"{v:.2f}" if v is not None else MISSING
        for v in (value.mean, value.low, value.median, value.high)
    )
    return f"{mean} ({' '.join(points)})"


def lines(title: str, quality: TeacherQuality, sources: bool = True) -> list[str]:
    """The judgement of a teacher; [] where there is none.

    Args:
      title: of the teacher.
      quality: of it.
      sources: also tell the thresholds, and who says so.
    """
    if not quality.verdict:
        return []
    found = [f"{title}: {quality.verdict} as a robust teacher"]
    for one in quality.findings:
        found.append(f"{one.question} {one.answer}: {one.evidence}")
        if sources:
            found[-1] += f" [{one.threshold}]"
    if quality.students:
        students = ", ".join(f"{t} {percent(a)} %" for t, a in quality.students.items())
        found.append(f"Reference students, right under {quality.attack}: {students}")
    return found
