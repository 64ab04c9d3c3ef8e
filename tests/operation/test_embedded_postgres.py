"""What an operator reads where the embedded PostgreSQL cannot start."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from app import embedded_postgres
from app.embedded_postgres import require_user, running_postgres
from app.settings import SettingsError
from tests.tables import rows

HOLD = [
    sys.executable,
    "-c",
    """
import time
from pathlib import Path
from app.embedded_postgres import running_postgres
from app.exits import end_by_exception

end_by_exception()
with running_postgres(Path("data").resolve()):
    print("serving", flush=True)
    time.sleep(60)
""",
]
IMPORT_SECONDS = 0.5


def test_without_useradd_root_reads_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A machine whose root has never made the server's user, and has no way to.
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", _no_user)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(embedded_postgres, "SYSTEM_FOLDERS", ())
    with pytest.raises(SettingsError, match=r"`useradd`.* is not on PATH: install it .* or set DATABASE_URL"):
        _start(tmp_path / "postgres")


def test_useradd_is_found_where_the_path_of_cron_does_not_lead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "sbin"
    folder.mkdir()
    (folder / "useradd").write_text("#!/bin/sh\n")
    (folder / "useradd").chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", _no_user)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded_postgres, "SYSTEM_FOLDERS", (str(folder),))
    require_user()
    assert shutil.which("useradd") == str(folder / "useradd")


@pytest.fixture
def data() -> Generator[Path]:
    """A data directory that the server's user can reach."""
    with tempfile.TemporaryDirectory(prefix="easel-home-") as folder:
        yield Path(folder) / "data"


@pytest.mark.slow
def test_a_folder_with_a_space_is_one_like_any_other() -> None:
    with tempfile.TemporaryDirectory(prefix="easel space's ") as folder, running_postgres(Path(folder) / "data") as url:
        assert rows(url, "SELECT 1") == [(1,)]


def test_a_process_that_is_killed_does_not_keep_the_server_running(data: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other, running_postgres(data):
        holders = data / embedded_postgres.HOLDERS
        holders.write_text(json.dumps([other.pid, *json.loads(holders.read_text())]))
        other.kill()
        other.wait()
    assert not _is_running(data)


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("after", [0.2, 0.6, 1.0, 1.4])
def test_who_ends_its_first_start_leaves_no_server_and_a_cluster_that_starts(data: Path, after: float) -> None:
    """As a shell does: each process of the group gets the signal."""
    with subprocess.Popen(HOLD, cwd=data.parent, stdout=subprocess.PIPE, start_new_session=True) as starting:
        time.sleep(IMPORT_SECONDS + after)
        os.killpg(starting.pid, signal.SIGTERM)
        starting.wait(30)
    assert _servers_of(data) == []
    with running_postgres(data) as url:
        assert rows(url, "SELECT 1") == [(1,)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_whatever_ends_a_process_ends_its_server(data: Path, number: signal.Signals) -> None:
    with subprocess.Popen(HOLD, cwd=data.parent, stdout=subprocess.PIPE, start_new_session=True) as holding:
        assert holding.stdout is not None
        assert holding.stdout.readline() == b"serving\n"
        assert len(_servers_of(data)) == 1
        os.killpg(holding.pid, number)
        holding.wait(30)
    assert _servers_of(data) == []


def _servers_of(data: Path) -> list[int]:
    """Those that run on it: a postmaster's own children end with it."""
    return [one.pid for one in psutil.process_iter(["cmdline"]) if str(data) in (one.info["cmdline"] or ())]


def test_nor_does_one_that_was_killed_as_it_wrote(data: Path) -> None:
    _start(data)
    (data / embedded_postgres.HOLDERS).write_text("")
    _start(data)
    assert not _is_running(data)


def test_a_user_who_may_not_start_it_reads_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        # initdb itself refuses root.
        monkeypatch.setattr(os, "geteuid", lambda: 1)
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(SettingsError, match=r"cannot start in .*: .*(cannot be run as root|Permission denied)"):
        _start(tmp_path / "postgres")


def test_a_command_ends_with_that_sentence_alone(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("18\n")
    done = subprocess.run(
        [Path(sys.executable).with_name("easel"), "migrate"],
        env={"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"easel: The embedded PostgreSQL cannot start in {tmp_path}/postgres: pg_ctl: ")
    assert "set DATABASE_URL" in line


def _start(directory: Path) -> None:
    with running_postgres(directory):
        pass


def _is_running(data: Path) -> bool:
    return (data / "postmaster.pid").exists()


def _no_user(name: str) -> None:
    raise KeyError(name)
