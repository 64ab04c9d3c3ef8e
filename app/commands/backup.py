"""`easel backup` and `easel restore`."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import typer

from app.backup import back_up, restore
from app.commands import start_beside_database
from app.database_settings import DatabaseSettings
from app.embedded import running_database
from app.logins import EMBEDDED_LOGIN, as_login


def run(*, file: Path) -> None:
    _fail_when_terminated()
    settings = start_beside_database()
    with _owner_database(settings) as url:
        contents = back_up(url, settings.owner_setting, file)
    size = file.stat().st_size / 1024 / 1024
    typer.echo(f"{file} holds {contents} ({size:.1f} MB). Now copy the objects of the store: images are not in it.")


def run_restore(*, file: Path) -> None:
    _fail_when_terminated()
    settings = start_beside_database()
    with _owner_database(settings) as url:
        given = settings.database_url
        serving_url = given.get_secret_value() if given is not None else as_login(url, EMBEDDED_LOGIN)
        contents = restore(url, serving_url, settings.owner_setting, file)
    typer.echo(
        f"Restored {contents}. Next: `easel migrate`, which brings them to this release; copy the objects back into the"
        " store; then `easel reconcile`."
    )


def _fail_when_terminated() -> None:
    """SIGTERM ends it as Ctrl-C does; other commands exit with 0 then, as if there were a backup."""
    # A shell in the background has its children ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))


@contextmanager
def _owner_database(settings: DatabaseSettings) -> Generator[str]:
    """The URL of the user that owns the tables; the embedded database where none is given."""
    if settings.owner_url is not None:
        yield settings.owner_url.get_secret_value()
        return
    with running_database(settings) as url:
        yield url
