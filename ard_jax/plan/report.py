"""The plan as text for a terminal."""

from typing import Any

_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float, unit: str = "") -> str:
    """Three significant digits with a decimal prefix: 44700000 -> "44.7 M"."""
    for size, prefix in _UNITS:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Three significant digits in a unit of its size: 0.0031 -> "3.1 ms"."""
    units = ((2 * 86400, 86400, "days"), (7200, 3600, "hours"), (120, 60, "minutes"), (1, 1, "s"))
    for least, size, name in units:
        if seconds >= least:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds * 1e3:.3g} ms"


def table(rows: list[list[str]]) -> str:
    """Columns of equal width, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            c.rjust(w) if i else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def text(plan: dict[str, Any]) -> str:
    """Everything, each number with where it is from."""
    fleet = plan["devices"]
    head = (
        f"Plan of {plan['experiment']} on {fleet['name']}: {fleet['explanation']}\n"
        f"Global batch {plan['batch_size']} = {fleet['devices']} x {plan['batch_per_device']} images; "
        f"networks compute in {plan['precision']}; state replicated, batch split (data parallel)."
    )
    parts = [
        head,
        _networks(plan),
        _phases(plan),
        _memory(plan),
        _collectives(plan),
        _assumed(plan),
    ]
    return "\n\n".join(parts)


def _networks(plan: dict[str, Any]) -> str:
    rows = [["network", "model", "parameters", "BN statistics", "forward FLOPs/image", "trained"]]
    for n in plan["networks"]:
        numbers = [number(n[k]) for k in ("parameters", "statistics", "forward_flops")]
        rows.append([n["role"], n["model"], *numbers, "yes" if n["trained"] else "no"])
    return "NETWORKS (counted)\n" + table(rows)


def _phases(plan: dict[str, Any]) -> str:
    rows = [
        [
            "phase",
            "method",
            "steps",
            "FLOPs/step",
            "in attack",
            "compute",
            "exchange",
            "step",
            "all",
        ]
    ]
    for p in plan["phases"]:
        t, times = p["step_time"], ["?"] * 4
        if t:
            seconds = (t["compute"], t["communication"], t["total"], p["hours"] * 3600)
            times = [duration(s) for s in seconds]
        flops = number(p["flops_per_step"])
        rows.append(
            [p["title"], p["method"], f"{p['steps']:,}", flops, f"{p['loop_share']:.0%}", *times]
        )
    note = "FLOPs of all devices counted in the traced step (convolutions and matrix products); times ASSUMED"
    text = f"TRAINING ({note})\n{table(rows)}"
    if any(r["title"] != "student" for r in plan["phases"]):
        text += "\n  A teacher that is already trained, or a checkpoint, costs nothing."
    if plan["phases"][-1]["step_time"] is None:
        text += (
            "\n  No times: peak numbers are not known. Name the kind of the devices (--devices=h100-8), or "
            "give --assume=flops=...,bandwidth=...,link=..."
        )
    return text + "\n  Evaluation, AutoAttack and compilation are not in it."


def _memory(plan: dict[str, Any]) -> str:
    m = plan["memory"]
    how = (
        "compiled for CPU"
        if m["compiled"]
        else "estimated in the order of the program, about +-50 %"
    )
    rows = [[name, number(size, "B")] for name, size in m["parts"].items()]
    rows.append([f"activations, gradients, work space ({how})", number(m["step"], "B")])
    rows.append(["sum", number(m["total"], "B")])
    available = plan["assumed"]["memory"]
    if available is not None:
        rows.append(["available to a program", number(available, "B")])
    text = "MEMORY PER DEVICE, student phase (state counted)\n" + table(rows)
    if m["fits"] is False:
        text += f"\n  DOES NOT FIT. {m['advice']}"
    return text


def _collectives(plan: dict[str, Any]) -> str:
    c = plan["collectives"]
    rows = [
        ["gradients of what is trained", number(c["gradients"], "B")],
        ["BatchNorm statistics", number(c["statistics"], "B")],
    ]
    if c["compiled"] is not None:
        for kind, found in c["compiled"].items():
            what = f"{kind} in the compiled step, {found['count']} of them ({found['small']} on vectors)"
            rows.append([what, number(found["bytes"], "B")])
        if not c["compiled"]:
            rows.append(["collectives in the compiled step", "none"])
    title = "EXCHANGE PER STEP AND DEVICE, student phase"
    return f"{title}\n" + ("  none: one device" if plan["devices"]["devices"] == 1 else table(rows))


def _assumed(plan: dict[str, Any]) -> str:
    a = plan["assumed"]
    peaks = [
        f"{name} {number(a[key], unit)}"
        for name, key, unit in (
            ("peak", "flops", "FLOP/s"), ("memory", "bandwidth", "B/s"), ("link", "link", "B/s"),
        ) if a[key] is not None
    ]  # fmt: skip
    source = f" ({plan['source']})" if plan["source"] else ""
    first = f"  peak numbers per device: {', '.join(peaks)}{source}\n" if peaks else ""
    return (
        "ASSUMED, not measured (change with --assume=name=number,...)\n"
        f"{first}"
        f"  reached: utilisation {a['utilisation']:g} of the peak, bandwidth_share {a['bandwidth_share']:g}, "
        f"link_share {a['link_share']:g}; kernel {a['kernel']:g} s at least, latency {a['latency']:g} s per "
        "collective; no overlap of compute and exchange"
    )
