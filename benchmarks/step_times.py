"""Times of several programs that take turns."""

import statistics
import time

median = statistics.median
LEAST = 0.2  # seconds of one turn at least: shorter programs run several times in it
MOST = 20  # runs of one turn
SLOW = 2.0  # seconds


def in_turns(calls, rounds, warm=2):
    """{name: [seconds of one run, in each round]}, A B C A B C; each call waits for its result.

    Args:
      calls: name -> function without arguments.
      rounds: turns of each.
      warm: runs before, which are not counted; one is enough for a program that takes seconds.
    """
    repeats = {}
    for name, call in calls.items():
        for _ in range(warm):
            started = time.perf_counter()
            call()
            elapsed = time.perf_counter() - started
            if elapsed > SLOW:
                break
        repeats[name] = min(MOST, max(1, int(LEAST / max(elapsed, 1e-9))))
    found = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            found[name].append((time.perf_counter() - started) / repeats[name])
    return found


def ratio(ours, theirs):
    """(their median over ours, smallest and largest of the rounds' own ratios)."""
    each = [t / o for o, t in zip(ours, theirs, strict=True)]
    return median(theirs) / median(ours), min(each), max(each)
