"""The `easel` command: names, options and help. `app/commands/` does the work, loaded when a command is called."""

import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from app import EaselError
from app.allocator import return_freed_memory
from app.loading import load

DEMO_PROMPT = "a gray tabby cat hugging an otter with an orange scarf"

cli = typer.Typer(add_completion=False, no_args_is_help=True, help="The backend of an agents SaaS whose agents draw.")

Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(help="The port to listen on.")]


def main() -> None:
    """Run a command; a fault is one plain sentence on standard error and a non-zero exit."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        cli()
    except (EaselError, OSError) as error:
        sys.exit(f"easel: {error}")


def _leave(number: int, frame: FrameType | None) -> None:
    # As an exception, so that every block that started a process ends it.
    sys.exit(0)


def _run(command: str, **options: object) -> None:
    return_freed_memory()
    # With every command's imports `easel --help` would take seconds.
    load(f"app.commands.{command}").run(**options)


@cli.command()
def serve(host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Serve the API (and, unless EMBEDDED_WORKER=false, execute runs)."""
    _run("serve", host=host, port=port)


@cli.command()
def worker() -> None:
    """Execute runs and housekeeping; needs REDIS_URL."""
    _run("worker")


@cli.command()
def migrate() -> None:
    """Bring the database to the newest schema; safe to repeat, and several at a time."""
    _run("migrate")


@cli.command()
def demo(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw.", show_default=DEMO_PROMPT)
    ] = None,
) -> None:
    """One designer chat, from sign-up to the saved image."""
    _run("demo", prompt=" ".join(words or [DEMO_PROMPT]))


@cli.command()
def doctor() -> None:
    """Check settings, agents, database, broker and storage; say what is wrong and how to mend it."""
    _run("doctor")


@cli.command()
def reconcile(
    apply: Annotated[bool, typer.Option("--apply", help="Put right what is found; else nothing changes.")] = False,
) -> None:
    """Compare the store's objects with the rows; one without a row is marked, and deleted after an hour or more."""
    _run("reconcile", apply=apply)


@cli.command()
def offline(port: Port = 8001) -> None:
    """Serve the offline simulator of the Responses API, for development and tests."""
    _run("offline", port=port)


@cli.command()
def openapi() -> None:
    """Print the API's OpenAPI document."""
    _run("openapi")


if __name__ == "__main__":
    main()
