"""Did the step become dearer? Counts, not seconds, against a stored baseline.

    python -m benchmarks.counts             # exit status 1 and a table of what changed
    python -m benchmarks.counts --update    # writes benchmarks/counts.json anew, for a change that is meant

Counted for each method on small networks: FLOPs of the traced step as on an accelerator, those of the attack
and the bytes that its operations read and write (`ard_jax.cli.plan.cost`); convolutions, matrix
products and temporary memory of the program that XLA makes of it for CPU; what two simulated devices send
each other; and how often a run of two epochs traces each of its programs. None of it depends on the number
of cores or on what else the machine does. Under another version of JAX than the baseline's, FLOPs are
compared within 2 %, traces exactly, and what XLA decides not at all.
"""

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path

BASELINE = Path(__file__).with_name("counts.json")
TINY = {"student": "small_resnet/4-8", "robust": "small_resnet/5-7", "clean": "small_resnet/6-8"}
# What is compared whatever the version of JAX -> by which part it may differ under another one, which
# writes elementwise functions and random numbers in other operations.
ALWAYS = {"FLOPs": 0.02, "FLOPs of the attack": 0.02, "traces": 0.0}


def cases():
    """Name -> Case."""
    from benchmarks.step_cases import COUNTED, WORK, Case

    small = {"batch": 8, "size": 16}
    found = {method: Case(method, steps=2, **small, **TINY) for method in (*WORK, *COUNTED)}
    found["adaad, igdm"] = Case("adaad", steps=2, igdm=1.0, **small, **TINY)
    found["ciard, 10 attack steps"] = Case("ciard", steps=10, **small, **TINY)
    for student in ("resnet18", "mobilenetv2"):
        found[f"ciard, {student}"] = Case("ciard", steps=2, **small, **TINY | {"student": student})
    found["sat, bfloat16"] = Case("sat", steps=2, precision="bfloat16", **small, **TINY)
    return found


def operations(case):
    """Counts of the traced step."""
    from benchmarks.step_cases import counted

    count = counted(case)
    return {
        "FLOPs": int(count.flops),
        "FLOPs of the attack": int(count.loop_flops),
        "bytes read and written": int(count.accessed),
    }


def compiled(case, devices=1):
    """The program that XLA makes for CPU."""
    from benchmarks.step_cases import build

    built = build(case)
    return built.program(devices).lower(*built.shapes()).compile()


def convolutions(text):
    """Convolution instructions in a program's text, library calls too; those of loops once."""
    own = re.findall(r"= \S+ convolution\(", text)
    return len(own) + len(re.findall(r'custom_call_target="[^"]*conv[^"]*"', text))


def traces():
    """Program -> how often a small run of two epochs, teachers and evaluation included, traces it."""
    from ard_jax.cli import train
    from ard_jax.config import parse
    from ard_jax.configs import ciard_digits
    from ard_jax.runtime import compilation

    compilation.TRACES.clear()
    with tempfile.TemporaryDirectory() as folder:
        raw = ciard_digits.get_config()
        raw.update(workdir=f"{folder}/run", epochs=2, batch_size=256)
        raw.attack.steps = 1
        raw.student.kwargs.update(widths=(4,), blocks=1)
        raw.teachers.cache = f"{folder}/teachers"
        for role in ("robust", "clean"):
            teacher = raw.teachers[role]
            teacher.min_clean = 0.0
            teacher.net.kwargs.update(widths=(4,), blocks=1)
            teacher.recipe.update(epochs=1, batch_size=256)
            teacher.recipe.attack.steps = 1
        raw.eval.update(attacks=("fgsm",), every=1, eps_sweep=(), transfer=False, batch_size=128)
        raw.eval.update(max_examples=128, max_selection_examples=128, select_attack="fgsm")
        raw.run.update(devices=1, tensorboard=False, compilation_cache="off")
        silent = io.StringIO()
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            train.run(parse.to_experiment(raw))
    found = {}
    for name, times in sorted(compilation.TRACES.items()):
        name = re.sub(r" attack [0-9a-f]{8}$", " attack", name)  # a checksum of its settings
        found[name] = max(times, found.get(name, 0))
    return found


def count_all(progress=lambda text: None):
    """{group: {what: number}}."""
    from benchmarks.collectives import collectives

    found = {}
    for name, case in cases().items():
        progress(name)
        found[name] = operations(case)
        if case.student == TINY["student"]:
            program = compiled(case)
            text = program.as_text()
            found[name]["convolutions, compiled"] = convolutions(text)
            found[name]["products, compiled"] = len(re.findall(r"= \S+ dot\(", text))
            temporary = program.memory_analysis().temp_size_in_bytes
            found[name]["temporary, compiled, bytes"] = temporary
    progress("two devices")
    sent = collectives(compiled(cases()["ciard"], devices=2).as_text())
    found["ciard, 2 devices"] = {
        f"{kind}, {what}": n for kind, each in sent.items() for what, n in sorted(each.items())
    }
    progress("run of two epochs")
    found["traces"] = traces()
    return found


def differences(baseline, found, every=True):
    """[(group, what, before, now)] where a number is another, new or gone.

    Args:
      baseline: {group: {what: number}}.
      found: the same, now.
      every: False: only what hardly depends on the version of JAX, see ALWAYS.
    """
    rows = []
    for group in sorted(set(baseline) | set(found)):
        before, now = baseline.get(group, {}), found.get(group, {})
        for what in sorted(set(before) | set(now)):
            one, other = before.get(what), now.get(what)
            allowed = 0.0 if every else ALWAYS.get(what, ALWAYS.get(group))
            if allowed is None or one == other:
                continue
            if None in (one, other) or abs(other - one) > allowed * one:
                rows.append((group, what, one, other))
    return rows


def show(rows):
    """Prints the differences as a table."""
    print("| where | what | baseline | now | change |\n|---|---|---|---|---|")
    for group, what, before, now in rows:
        change = f"{now / before - 1:+.2%}" if before and now is not None else ""
        cells = ["" if n is None else f"{n:,}" for n in (before, now)]
        print(f"| {group} | {what} | {cells[0]} | {cells[1]} | {change} |")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write a new baseline")
    args = parser.parse_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.pop("XLA_FLAGS", None)  # they could change what is counted
    import jax

    jax.config.update("jax_num_cpu_devices", 2)
    # Of machine code alone: the operations of the compiled programs are the same, in half the time.
    jax.config.update("jax_disable_most_optimizations", True)
    found = count_all(lambda text: print(f"counting: {text}", file=sys.stderr, flush=True))
    if args.update:
        record = {"jax": jax.__version__, "counts": found}
        BASELINE.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{BASELINE} is written; commit it with the change that it belongs to")
        return 0
    baseline = json.loads(BASELINE.read_text())
    same = baseline["jax"] == jax.__version__
    if not same:
        print(f"The baseline is of jax {baseline['jax']}, this is {jax.__version__}: compared are "
              "FLOPs, within 2 %, and traces.")  # fmt: skip
    rows = differences(baseline["counts"], found, every=same)
    if not rows:
        print(f"All {sum(map(len, found.values()))} counts are as in {BASELINE.name}.")
        return 0
    show(rows)
    print(
        "\nCounts changed. If that is meant: python -m benchmarks.counts --update, and commit it."
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
