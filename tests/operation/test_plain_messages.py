"""A fault of the surroundings ends a command with one sentence that names setting and fix, and with no traceback."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app import faults
from app.cli import main
from app.logins import as_login
from tests import timeouts
from tests.results import Results
from tests.servers import gcs_server
from tests.tables import rows

if TYPE_CHECKING:
    from tests.conftest import Postgres

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MOST_LINES = 3
AT_ONCE = 3
"""Starting a process costs a second or more of a processor."""
SECRET = "s3cret-word"  # pragma: allowlist secret

Variables = dict[str, str]


@dataclass(frozen=True)
class Fault:
    """A command line that fails, and what it says; `{db}` and the like are filled in by `places`."""

    command: str
    said: str
    variables: Variables = field(default_factory=dict[str, str])
    code: int = 1


# Where `useradd` is, too, although PATH may not lead there.
HIDDEN = 'unshare --mount /bin/sh -c "mount -t tmpfs none /usr/sbin && {}"'
S3 = {"STORAGE_PROVIDER": "minio", "MINIO_ACCESS_KEY": "a", "MINIO_SECRET_KEY": SECRET, "MINIO_SECURE": "false"}
PROVIDER = {"OPENAI_API_KEY": "sk-test"}
FAULTS = {
    "database: dead address": Fault(
        "easel tenants list",
        r"PostgreSQL at 127\.0\.0\.1:1 does not answer \(Connection refused\): start it, or correct .* DATABASE_URL",
        {"DATABASE_URL": f"postgresql://x:{SECRET}@127.0.0.1:1/x"},
    ),
    "database: unknown host": Fault(
        "easel users list",
        r"nowhere\.invalid:5432 does not answer .* DATABASE_URL",
        {"DATABASE_URL": "postgresql://nowhere.invalid"},
    ),
    "database: missing": Fault(
        "easel plans list",
        r"has no database gone: create it \(createdb gone\), or correct DATABASE_URL",
        {"DATABASE_URL": "{gone}"},
    ),
    "database: a login without rights": Fault(
        "easel tenants list",
        r"to the user easel_nobody \(permission denied .*: run `easel migrate`",
        {"DATABASE_URL": "{nobody}"},
    ),
    "database: unreadable": Fault(
        "easel migrate",
        r"DATABASE_URL cannot be read: give postgresql://user:password@host:5432/name",
        {"DATABASE_URL": f"postgresql://x:a/{SECRET}@host/x"},
    ),
    "database: of the migrations": Fault(
        "easel migrate",
        r"127\.0\.0\.1:1 does not answer .* in MIGRATION_DATABASE_URL",
        {"DATABASE_URL": "{db}", "MIGRATION_DATABASE_URL": f"postgresql://x:{SECRET}@127.0.0.1:1/x"},
    ),
    "database: of a job with no other settings": Fault(
        "easel migrate",
        r"127\.0\.0\.1:1 does not answer .* in DATABASE_URL",
        {"ENVIRONMENT": "production", "DATABASE_URL": f"postgresql://x:{SECRET}@127.0.0.1:1/x"},
    ),
    "database: behind": Fault(
        "easel ledger verify", r"schema is behind: run `just migrate`", {"DATABASE_URL": "{empty}"}
    ),
    "Redis: dead address": Fault(
        "easel worker",
        r"Redis at 127\.0\.0\.1:1 does not answer \(Connection refused\): start it, or correct .* REDIS_URL",
        {"DATABASE_URL": "{db}", "REDIS_URL": f"redis://:{SECRET}@127.0.0.1:1", "LOG_LEVEL": "error", **PROVIDER},
    ),
    "Redis: unset": Fault("easel worker", r"needs REDIS_URL", PROVIDER),
    "storage: dead address": Fault(
        "easel reconcile",
        r"storage at 127\.0\.0\.1:1 cannot be reached: start it, or correct MINIO_ENDPOINT",
        {"DATABASE_URL": "{db}", "MINIO_ENDPOINT": "127.0.0.1:1", **S3},
    ),
    "a taken port": Fault(
        "easel serve --port {port}",
        r"Port \d+ of 127\.0\.0\.1 is taken by another process: end that one, or choose another .* --port",
    ),
    "no port": Fault("easel serve --port 99999", r"'--port'.* 65535", code=2),
    "no address of this machine": Fault(
        "easel serve --host 192.0.2.1", r"--host 192\.0\.2\.1 is no address of this machine"
    ),
    "no such option": Fault("easel migrate --fast", r"No such option: --fast", code=2),
    "a value that is none": Fault(
        "easel plans list", r"IMAGE_DEFAULT_QUALITY: .*'low', 'medium'", {"IMAGE_DEFAULT_QUALITY": "best"}
    ),
    "an address that is none": Fault(
        "easel plans list", r"PUBLIC_URL: give http://host or https://host", {"PUBLIC_URL": "chat.example.com"}
    ),
    "a sender without an address": Fault(
        "easel plans list", r"MAIL_FROM: give an address, or Name <address>", {"MAIL_FROM": "Easel of Example"}
    ),
    "production without its settings": Fault(
        "easel plans list", r"set DATABASE_URL, REDIS_URL, .*SECRET_KEY", {"ENVIRONMENT": "production"}
    ),
    ".env in another encoding": Fault(
        "cd latin && easel migrate", r"latin/\.env cannot be read \(it is not UTF-8\): mend or remove it"
    ),
    "a file for a folder": Fault(
        "easel migrate", r"cannot start in .*/file/postgres: Not a directory.*DATA_DIR", {"DATA_DIR": "{file}"}
    ),
    "no place on the disk": Fault("easel --help >/dev/full", r"The disk is full \(No space left on device\)"),
    "nobody reads": Fault("easel plans list | true", r"^$", {"DATABASE_URL": "{db}"}, code=0),
    "just: a taken port": Fault(
        "'a checkout/just' dev --port {port}", r"Port \d+ of 127\.0\.0\.1 is taken by another process"
    ),
    "just: a taken port of a setting": Fault(
        "'a checkout/just' dev", r"Port \d+ of 127\.0\.0\.1 is taken by another process", {"PORT": "{port}"}
    ),
    "just: no useradd": Fault(
        HIDDEN.format("PATH='{bare}' 'a checkout/just' demo"), r"`useradd`.* is not on PATH: install it .*DATABASE_URL"
    ),
    "just: no Python": Fault("PATH='{none}' 'a checkout/just' demo", r"Easel needs Python 3\.11 or newer: install it"),
}


@pytest.fixture
def places(
    postgres: "Postgres", migrated_template: str, database_url: str, empty_database_url: str, tmp_path: Path
) -> Generator[Variables]:
    """What the faults need: databases, a taken port, folders, and a checkout in which nothing is installed."""
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / ".env").write_bytes("MAIL_FROM=Zo\xeb\n".encode("latin-1"))
    (tmp_path / "file").touch()
    (tmp_path / "a checkout").mkdir()
    for name in ("just", "requirements.lock", "requirements-demo.lock"):
        shutil.copy(ROOT / name, tmp_path / "a checkout")
    if not rows(postgres.url, "SELECT FROM pg_roles WHERE rolname = 'easel_nobody'"):
        postgres.execute("CREATE ROLE easel_nobody LOGIN")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield {
            "db": database_url,
            "empty": empty_database_url,
            "gone": postgres.url_of("gone"),
            "nobody": as_login(database_url, "easel_nobody"),
            "port": str(listener.getsockname()[1]),
            "file": str(tmp_path / "file"),
            "bare": str(folder_of_commands(tmp_path / "bare", Path(sys.executable))),
            "none": str(folder_of_commands(tmp_path / "none", None)),
        }


def folder_of_commands(folder: Path, python: Path | None) -> Path:
    """A PATH on which hardly anything is: what `./just` itself needs, and an `id` that says root, whoever asks."""
    folder.mkdir()
    for name in ("sh", "dirname", "cat", "cksum", "grep"):
        (folder / name).symlink_to(str(shutil.which(name)))
    (folder / "id").write_text("#!/bin/sh\n[ $1 = -u ] && echo 0\n")
    (folder / "id").chmod(0o755)
    if python is not None:
        (folder / "python3").symlink_to(python)
    return folder


@pytest.mark.slow
@pytest.mark.proof
def test_each_fault_is_said_in_a_sentence(places: Variables, tmp_path: Path, results: Results) -> None:
    chosen = {name: fault for name, fault in FAULTS.items() if name != "just: no useradd" or may_hide()}

    def fail(name: str) -> tuple[str, str | None]:
        return name, run(chosen[name], places, tmp_path)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        wrong = {name: said for name, said in threads.map(fail, chosen) if said is not None}
    assert not wrong, "\n".join(f"{name}: {said}" for name, said in wrong.items())
    tracebacks = sum("Traceback" in said for said in wrong.values())
    results(36, "plain messages", tried=f"{len(chosen)} faults", kept=f"{tracebacks} tracebacks, 3 lines each at most")


def may_hide() -> bool:
    """Only root may mount, and not in every container."""
    return subprocess.run(["/bin/sh", "-c", HIDDEN.format("true")], capture_output=True, check=False).returncode == 0


def run(fault: Fault, places: Variables, directory: Path) -> str | None:
    """What is wrong with how it ended, or None."""
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(directory), "DATA_DIR": str(directory / "var")}
    environment |= {name: value.format(**places) for name, value in fault.variables.items()}
    # A line of the shell, as an operator types it.
    done = subprocess.run(
        ["/bin/sh", "-c", fault.command.format(**places)],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=timeouts.PROCESS_START,
        check=False,
    )
    said = done.stderr.strip()
    fine = done.returncode == fault.code and re.search(fault.said, said) and len(said.splitlines()) <= MOST_LINES
    return None if fine and "Traceback" not in said and SECRET not in said else f"{done.returncode}: {said}"


@pytest.mark.slow
def test_an_interrupt_ends_a_command_without_a_word(database_url: str, tmp_path: Path) -> None:
    # It never answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x"
        process = subprocess.Popen(
            [BIN / "easel", "migrate"],
            env={"PATH": os.environ["PATH"], "DATABASE_URL": url},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(timeouts.PROCESS_START)
        with closing(silent.accept()[0]):
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=timeouts.STOP)[1]
    assert (process.returncode, said) == (130, "")


@pytest.mark.slow
def test_loopback_is_reached_past_the_proxies_of_the_environment(
    database_url: str, provider_url: str, tmp_path: Path
) -> None:
    asked: list[bytes] = []
    with proxy_that_notes(asked) as address, gcs_server(tmp_path / "gcs") as gcs:
        (tmp_path / "gcs" / "easel").mkdir()
        done = subprocess.run(
            [BIN / "easel", "doctor"],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),  # the tree that is tested may be a copy of the installed one
                **{f"{kind}_PROXY": f"http://{address}" for kind in ("HTTP", "HTTPS")},
                "ALL_PROXY": f"socks5://{address}",
                "no_proxy": "intranet.example.com",
                "DATABASE_URL": database_url,
                "OPENAI_API_KEY": "sk-test",
                "OPENAI_BASE_URL": provider_url,
                "STORAGE_PROVIDER": "gcs",
                "STORAGE_EMULATOR_HOST": gcs.url,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeouts.PROCESS_START,
            check=False,
        )
    assert (done.returncode, asked) == (0, []), done.stderr
    assert "All parts answer." in done.stdout


@contextmanager
def proxy_that_notes(asked: list[bytes]) -> Generator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(100))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(timeouts.STOP)


def test_a_fault_of_easel_s_own_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(**options: object) -> None:
        raise KeyError("a bug")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["easel", "migrate"])
    monkeypatch.setattr("app.commands.migrate.run", broken)
    with pytest.raises(SystemExit, match=r"This is a fault of Easel itself \(KeyError\): report it"):
        main()
    assert "KeyError: 'a bug'" in caplog.text
    assert "Traceback" in caplog.text


def test_an_error_in_a_group_is_explained_if_all_are() -> None:
    full = OSError(28, "No space left on device", "/var/x")
    assert "The disk is full" in str(faults.explain(ExceptionGroup("", [full])))
    assert faults.explain(ExceptionGroup("", [full, KeyError("x")])) is None
