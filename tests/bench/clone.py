"""From a bare clone to the first stored image: only with `--clone`, as it installs packages."""

import subprocess
import time
from collections.abc import Generator
from pathlib import Path

from tests.bench.lab import Lab
from tests.bench.report import Row

ROOT = Path(__file__).resolve().parents[2]
FIRST, AGAIN = "bare clone to the first stored image", "./just demo again, to the stored image"
INSTALL_SECONDS = 600


def rows(lab: Lab) -> Generator[Row]:
    clone = lab.new_directory()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True, timeout=60)
    yield Row(FIRST, _demo(clone), "s", most=45)
    yield Row(AGAIN, _demo(clone), "s", most=5)


def not_measured() -> list[Row]:
    return [Row(what, note="only with --clone") for what in (FIRST, AGAIN)]


def _demo(clone: Path) -> float:
    began = time.monotonic()
    command = ["./just", "demo", "a cat on a roof"]
    subprocess.run(command, cwd=clone, check=True, timeout=INSTALL_SECONDS, stdout=subprocess.DEVNULL)
    return time.monotonic() - began
