"""The progress display: a bar on a terminal, plain lines elsewhere."""

import contextlib
import math
import sys
import time
from collections import deque
from typing import Any

from tqdm import tqdm

_BAR_FORMAT = (
    "{desc}{percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
)


def _format_field(name: str, value: Any) -> str:
    """One field of the progress display: "accuracy=91.2%", "1,234 img/s", "loss=0.1234"."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{name}={value}"
    if name == "images_per_second":
        return f"{value:,.0f} img/s"
    if "accuracy" in name:
        return f"{name}={100 * value:.1f}%"
    return f"{name}={value}" if isinstance(value, int) else f"{name}={value:.4g}"


class Progress(contextlib.AbstractContextManager):
    """Shows how far a run is: a bar on a terminal, now and then a plain line elsewhere (CI logs).

    Both show step and total, the fields given to `update` (epoch, loss terms, accuracies, images
    per second) and the time left. Output goes to standard error.

    Args:
      total: number of steps of the whole run.
      initial: steps done before (a resumed run).
      description: name put in front.
      enabled: False shows nothing, messages included (all processes but the lead). None and True
        choose the bar on a terminal and plain lines elsewhere.
      plain_interval: seconds between plain lines.
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        description: str = "",
        enabled: bool | None = None,
        plain_interval: float = 10.0,
    ):
        """See the class."""
        self.total, self.step, self.description = int(total), int(initial), description
        self._enabled = enabled is None or enabled
        self._stream = sys.stderr
        self._interval, self._fields = plain_interval, {}
        now = time.monotonic()
        self._shown_at, self._shown_step = now, self.step
        self._fields_at, self._updates = -math.inf, 0
        self._marks: deque[tuple[float, int]] = deque([(now, self.step)], maxlen=1000)
        self._bar = None
        if self._enabled and self._stream.isatty():
            self._bar = tqdm(
                total=self.total,
                initial=self.step,
                desc=description or None,
                file=self._stream,
                dynamic_ncols=True,
                bar_format=_BAR_FORMAT,
            )

    def update(self, n: int = 1, fields: dict | None = None) -> None:
        """Counts `n` more steps; `fields` (name -> number or text) replace those shown before."""
        self.step += n
        if not self._enabled:
            return
        now = time.monotonic()
        if fields is not None:
            self._fields = fields
        if self._updates == 1:  # from the second on, leave out the first: it compiled
            self._marks.popleft()
        self._updates += 1
        self._marks.append((now, self.step))
        if self._bar is not None:
            if fields is not None and now - self._fields_at >= 0.2:
                self._fields_at = now
                self._bar.set_postfix_str(self._fields_text(), refresh=False)
            self._bar.update(n)
        elif now - self._shown_at >= self._interval or self.step >= self.total:
            self._print_line(now)

    def seconds_left(self) -> float | None:
        """Estimated seconds to the end from the speed of the last 1000 updates; None if unknown.

        After the first update, which compiles, it is not known.
        """
        if self.step >= self.total:
            return 0.0
        if self._updates < 2:
            return None
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (end - start) / (last - first) * (self.total - last) if last > first else None

    def message(self, text: str) -> None:
        """Prints a line above the bar without breaking it."""
        if self._enabled:
            tqdm.write(text, file=self._stream)  # a plain print where there is no bar
            self._stream.flush()

    def close(self) -> None:
        """Ends the display with the last state; may be called twice."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._fields_text(), refresh=True)
            self._bar.close()
            self._bar = None
        elif self._enabled and self.step != self._shown_step:
            self._print_line(time.monotonic())
        self._enabled = False

    def __exit__(self, *exc_info: Any) -> None:
        """Ends the display, also after an exception."""
        self.close()

    def _fields_text(self) -> str:
        return " ".join(_format_field(name, value) for name, value in self._fields.items())

    def _print_line(self, now: float) -> None:
        self._shown_at, self._shown_step = now, self.step
        head = f"{self.description}: " if self.description else ""
        left = self.seconds_left()
        eta = "?" if left is None else tqdm.format_interval(left)
        parts = (f"{head}{self.step}/{self.total}", self._fields_text(), f"ETA {eta}")
        print(" ".join(part for part in parts if part), file=self._stream, flush=True)
