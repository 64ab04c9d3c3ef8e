"""How a command ends that cannot do its work, with a sentence; and what the environment changes for none of them."""

import errno
import logging
import os
import signal
import sys
from types import FrameType

import typer
from typer.exceptions import TyperException

from app.loading import load

LOOPBACK = ("localhost", "127.0.0.1", "::1")

log = logging.getLogger(__name__)


def keep_loopback_direct() -> None:
    """A proxy of the environment must not get what is meant for this machine; every client here reads NO_PROXY."""
    given = (os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    hosts = ",".join(dict.fromkeys([*filter(None, given), *LOOPBACK]))
    os.environ.update(no_proxy=hosts, NO_PROXY=hosts)


def end_by_exception() -> None:
    """Let the signals that end a process raise, so that every block that started another one ends it."""
    signal.signal(signal.SIGTERM, _leave)
    # The terminal was closed. `nohup` ignores that.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _terminate)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def _terminate(number: int, frame: FrameType | None) -> None:
    # A server has taken over SIGTERM.
    os.kill(os.getpid(), signal.SIGTERM)


def exit_with_usage(error: TyperException) -> None:
    # A command without arguments has printed its help, and says nothing more.
    if message := error.format_message().rstrip("."):
        typer.echo(f"easel: {message}. `easel --help` lists what there is.", err=True)
    sys.exit(error.exit_code)


def exit_with_fault(error: Exception) -> None:
    """What went wrong around Easel is explained; any other error is Easel's own, and its traceback is logged."""
    sentence = load("app.faults").explain(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        # What standard output could not take would be tried, and reported, once more as the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if sentence is None:
        log.critical("command.failed", exc_info=error)
        sentence = f"This is a fault of Easel itself ({type(error).__name__}): report it, with the traceback above."
    sys.exit(f"easel: {sentence}")
