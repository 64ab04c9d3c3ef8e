"""From a bare clone to the first stored image: only with `--clone`, as it installs packages."""

import subprocess
import sys
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
    _download(clone, lab.new_directory())  # into pip's cache
    downloaded = _download(clone, lab.new_directory())
    yield Row(FIRST, _demo(clone), "s", downloaded, "pip download of the same packages, cached", most=45)
    yield Row(AGAIN, _demo(clone), "s", most=5)


def not_measured() -> list[Row]:
    return [Row(what, note="only with --clone") for what in (FIRST, AGAIN)]


def _download(clone: Path, directory: Path) -> float:
    began = time.monotonic()
    options = ["--quiet", "--no-deps", "--require-hashes", "--disable-pip-version-check"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        "-r",
        "requirements-demo.lock",
        "--dest",
        str(directory),
    ]
    subprocess.run(command, cwd=clone, check=True, timeout=INSTALL_SECONDS, capture_output=True)
    return time.monotonic() - began


def _demo(clone: Path) -> float:
    began = time.monotonic()
    command = ["./just", "demo", "a cat on a roof"]
    subprocess.run(command, cwd=clone, check=True, timeout=INSTALL_SECONDS, stdout=subprocess.DEVNULL)
    return time.monotonic() - began
