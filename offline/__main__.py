"""The provider as a process of its own, started by the embedded parts: it loads nothing of the rest of the service."""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

import uvicorn

from app import logs
from offline.routes import SERVED, create_app


def main() -> None:
    """Serve on loopback until SIGTERM or the end of standard input, which the parent holds open while it lives."""
    parser = argparse.ArgumentParser(prog="python -m offline", description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True, help="the directory that keeps what was drawn")
    chosen = parser.parse_args()
    logs.configure("info")
    # uvicorn raises the signal once more when it has ended: that is no failure.
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    uvicorn.run(create_app(chosen.state), port=chosen.port, log_config=None, access_log=False, **SERVED)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def _end_with_parent() -> None:
    # Not through sys.stdin: a read that still holds its lock would abort the interpreter as it ends.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
