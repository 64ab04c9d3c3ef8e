"""The rows of the bench and the page that they are written to."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "bench.md"


@dataclass(frozen=True)
class Row:
    """One figure, beside another that was measured in the same run, and the goal for it.

    `ratio` is figure / beside. A goal limits the ratio or the figure, from above or from below; a row without one is
    only told. `note` or `error` stands in place of the figure, an error as a missed goal.
    """

    what: str
    figure: float = 0.0
    unit: str = ""
    beside: float | None = None
    beside_what: str = ""
    ratio_most: float | None = None
    ratio_least: float | None = None
    most: float | None = None
    least: float | None = None
    note: str = ""
    error: str = ""

    @property
    def ratio(self) -> float | None:
        return self.figure / self.beside if self.beside else None

    @property
    def goal(self) -> str:
        limits = [
            (self.ratio_most, "<= {}x"),
            (self.ratio_least, ">= {}x"),
            (self.most, f"<= {{}} {self.unit}"),
            (self.least, f">= {{}} {self.unit}"),
        ]
        return ", ".join(form.format(short(limit)).strip() for limit, form in limits if limit is not None)

    @property
    def met(self) -> bool | None:
        if self.error or self.note:
            return False if self.error else None
        found = [
            *(self.ratio is not None and self.ratio <= limit for limit in (self.ratio_most,) if limit is not None),
            *(self.ratio is not None and self.ratio >= limit for limit in (self.ratio_least,) if limit is not None),
            *(self.figure <= limit for limit in (self.most,) if limit is not None),
            *(self.figure >= limit for limit in (self.least,) if limit is not None),
        ]
        return all(found) if found else None

    def __str__(self) -> str:
        ratio = f"**{self.ratio:.2f}x**" if self.ratio is not None else ""
        figure = self.error or self.note or f"{short(self.figure)} {self.unit}".strip()
        beside = f"{short(self.beside)} ({self.beside_what})" if self.beside is not None else ""
        met = {True: "yes", False: "**no**", None: ""}[self.met]
        return f"| {self.what} | {ratio} | {figure} | {beside} | {self.goal} | {met} |"


def short(number: float) -> str:
    """Three digits that count."""
    if abs(number) >= 100 or float(number).is_integer():
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


HEAD = """# What it costs

`./just bench` measures a real `easel serve` and writes this page. Each figure stands beside one that was measured
in the same run, so read the ratios: the times are those of one machine. A figure is the median of five, but for
what is measured once: memory, what PostgreSQL and Redis use, and the clone; thumbnails are a mean of five.
Processor time is that of the measured process alone, which has a core for itself; provider, PostgreSQL, Redis,
object storage and clients share the others. {scope}

{machine}

| what | ratio | Easel | beside | goal | met |
|---|---|---|---|---|---|
"""

TAIL = """
What stands beside Easel (`tests/bench/baselines.py`, `tests/bench/turns.py`):

- naive proxy: FastAPI, the `openai` SDK and a `StreamingResponse`; it keeps nothing, and a cut stream is lost;
- Agents SDK proxy: the same around `Runner.run_streamed`;
- raw: a proxy (or an ASGI app) that hands bytes on unread;
- floor: reads the socket, cuts the base64 out, decodes it with pybase64, hashes it, makes one PUT; no JSON, no rows;
- plain `openai`, plain Agents SDK: iterate over the events of the stream and do nothing with them.

How some are meant:

- A stall of the loop is the third longest time that it kept others waiting, of both: a virtual machine stands still
  by itself now and then.
- Memory grows in one process that has drawn before, as a worker has: with one turn, then eight, then 32.
- Statements are counted without what begins, limits and ends a transaction; round trips with it. What runs beside
  turns or after them, for many at once, is left out: sweeps, copies of images, and the end of readers' streams, one
  transaction for all that end within 50 ms. The counted agent of a text turn has no tools; one that may draw has
  the id of its response committed at once, which is a statement and a transaction more.

![p99 of a text delta by streams on one core](bench-streams.svg)

![Processor time of a turn by the images that its conversation holds](bench-images.svg)

What these figures mean for 100, 10,000 and a million runs at a time: [scale.md](scale.md).
"""


def page(rows: Iterable[Row], machine: str, scope: str) -> str:
    return HEAD.format(machine=machine, scope=scope).replace(" \n", "\n") + "".join(f"{row}\n" for row in rows) + TAIL
