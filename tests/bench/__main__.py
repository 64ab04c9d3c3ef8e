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

from tests.bench import deltas, images, machine, readers, report, startup, texts
from tests.bench.lab import Lab, running_lab
from tests.bench.report import Row

Bench = Callable[[Lab], Iterable[Row]]
BENCHES: dict[str, Bench] = {
    "deltas": deltas.rows,
    "images": images.rows,
    "texts": texts.rows,
    "startup": startup.rows,
    "growth": images.growth_rows,
    "readers": readers.rows,
    "hop": readers.hop_rows,
}


FILES = 16_384


def main() -> int:
    parser = argparse.ArgumentParser(prog="./just bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=BENCHES, help="these alone; docs/bench.md stays as it is")
    options = parser.parse_args()
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(files, min(most, FILES)), most))
    # So that what was started ends, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    described = machine.describe()
    machine.leave_the_first_core()
    began = time.monotonic()
    names = options.only or list(BENCHES)
    with tempfile.TemporaryDirectory(prefix="easel-bench-") as directory, running_lab(Path(directory)) as lab:
        found = measure(lab, names)
    if not options.only:
        scope = f"The whole took {time.monotonic() - began:.0f} s."
        report.PAGE.write_text(report.page(found, described, scope))
    return 0


def measure(lab: Lab, names: Sequence[str]) -> list[Row]:
    found: list[Row] = []
    for name in names:
        began = time.monotonic()
        try:
            for row in BENCHES[name](lab):
                found.append(row)
                print(row, flush=True)
        except Exception as error:
            traceback.print_exc()
            found.append(Row(f"{name} (not measured to its end)", error=f"{type(error).__name__}: {error}"[:200]))
        print(f"-- {name}: {time.monotonic() - began:.0f} s", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
