"""What an operator reads where the embedded PostgreSQL cannot start."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from app.embedded_postgres import running_postgres
from app.settings import SettingsError


def test_without_useradd_root_reads_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A machine whose root has never made the server's user, and has no way to.
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", _no_user)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SettingsError, match=r"`useradd`.* is not on PATH: install it .* or set DATABASE_URL"):
        _start(tmp_path / "postgres")


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


def _no_user(name: str) -> None:
    raise KeyError(name)
