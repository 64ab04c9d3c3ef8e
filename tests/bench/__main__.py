"""`python -m tests.bench`: measures, prints each row as it comes and writes `docs/bench.md`."""

import argparse
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.bench import clone, counts, deltas, images, lists, machine, memory, readers, report, startup, texts
from tests.bench.lab import Lab, running_lab
from tests.bench.report import Row

Bench = Callable[[Lab], Iterable[Row]]
BENCHES: dict[str, Bench] = {
    "deltas": deltas.rows,
    "images": images.rows,
    "texts": texts.rows,
    "startup": startup.rows,
    "growth": images.growth_rows,
    "lists": lists.rows,
    "readers": readers.rows,
    "memory": memory.rows,
    "hop": readers.hop_rows,
    "counts": counts.rows,
    "clone": clone.rows,
}


FILES = 16_384
ended_by = 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="./just bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=BENCHES, help="these alone; docs/bench.md stays as it is")
    parser.add_argument("--quick", action="store_true", help="what is counted alone; fails where a goal is missed")
    parser.add_argument("--clone", action="store_true", help="also from a bare clone to the first stored image")
    options = parser.parse_args()
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(files, min(most, FILES)), most))
    # So that what was started ends, too.
    signal.signal(signal.SIGTERM, _end)
    described = machine.describe()
    machine.leave_the_first_core()
    began = time.monotonic()
    names = (
        ["counts"] if options.quick else options.only or [name for name in BENCHES if name != "clone" or options.clone]
    )
    with tempfile.TemporaryDirectory(prefix="easel-bench-") as directory, running_lab(Path(directory)) as lab:
        found = measure(lab, names)
    if options.quick:
        return int(any(row.met is False for row in found))
    if not options.only:
        scope = f"The whole took {time.monotonic() - began:.0f} s."
        rows = found if options.clone else [*found, *clone.not_measured()]
        report.PAGE.write_text(report.page(rows, described, scope))
        for name, svg in lab.pictures.items():
            (report.DOCS / name).write_text(svg)
    return 0


def _end(number: int, _: object) -> None:
    # An event loop may swallow the exit; then it comes before the next bench.
    global ended_by  # noqa: PLW0603
    ended_by = number
    sys.exit(128 + number)


def measure(lab: Lab, names: Sequence[str]) -> list[Row]:
    found: list[Row] = []
    for name in names:
        if ended_by:
            sys.exit(128 + ended_by)
        began = time.monotonic()
        try:
            for row in BENCHES[name](lab):
                found.append(row)
                print(row, flush=True)  # noqa: T201
        except Exception as error:
            traceback.print_exc()
            found.append(Row(f"{name} (not measured to its end)", error=f"{type(error).__name__}: {error}"[:200]))
        print(f"-- {name}: {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201
    return found


if __name__ == "__main__":
    sys.exit(main())
