"""What the full-size suites found, as one table in `docs/proof.md`."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tests.bench import machine

PATH = Path(__file__).parent.parent / "docs" / "proof.md"
HEAD = """# What was tried, and what held

`./just prove` writes this table; `./just test` runs the same suites smaller. Last written: {machine}

| promise | suite | tried | kept | seed |
|---|---|---|---|---|
"""
ROW = re.compile(r"\| \d+ \|")


@dataclass(frozen=True)
class Proved:
    """One line: of `tried` cases `kept` held, both with their unit."""

    promise: int
    suite: str
    tried: str
    kept: str
    seed: str

    def __str__(self) -> str:
        return f"| {self.promise} | {self.suite} | {self.tried} | {self.kept} | {self.seed} |"


class Results:
    """Collects lines while the suites run."""

    def __init__(self) -> None:
        self.lines: list[Proved] = []
        # (promise, suite) -> how many of its tests passed, and how many there were.
        self._tests: dict[tuple[int, str], tuple[int, int]] = {}

    def __call__(self, promise: int, suite: str, *, tried: str, kept: str, seed: object = "-") -> None:
        """`promise` is its number, `suite` a few words that name the line."""
        line = Proved(promise, suite, tried, kept, str(seed))
        self.lines.append(line)
        print(line)  # noqa: T201 - pytest shows it with -s, and where a test fails

    def count(self, promise: int, suite: str, *, passed: bool) -> None:
        """One test of a suite whose line says how many it has."""
        before, of = self._tests.get((promise, suite), (0, 0))
        self._tests[promise, suite] = before + passed, of + 1

    def write(self) -> None:
        """Into the table, in place of what the same suites found before; only where all was run in full."""
        for (promise, suite), (passed, of) in self._tests.items():
            self.lines.append(Proved(promise, suite, f"{of} tests", f"{passed} passed", "-"))
        if not self.lines or "EASEL_PROVE" not in os.environ:
            return
        before = PATH.read_text().splitlines() if PATH.exists() else []
        known = [_parse(line) for line in before if ROW.match(line)]
        fresh = {(line.promise, line.suite) for line in self.lines}
        kept = [line for line in known if (line.promise, line.suite) not in fresh]
        lines = sorted([*kept, *self.lines], key=lambda line: (line.promise, line.suite))
        head = HEAD.format(machine=machine.describe())
        PATH.write_text(head + "".join(f"{line}\n" for line in lines))


def _parse(line: str) -> Proved:
    promise, suite, tried, kept, seed = (cell.strip() for cell in line.strip("|").split("|"))
    return Proved(int(promise), suite, tried, kept, seed)
