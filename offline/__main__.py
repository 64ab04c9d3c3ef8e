"""The simulator as a process of its own: it loads nothing of Easel."""

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

import uvicorn

from offline.routes import SERVED, create_app


def main() -> None:
    """Serve on loopback until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m offline", description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True, help="the directory that keeps what was drawn")
    parser.add_argument("--end-with-stdin", action="store_true", help="end when standard input does")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # uvicorn raises the signal once more when it has ended: that is no failure.
    signal.signal(signal.SIGTERM, _leave)
    if chosen.end_with_stdin:
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
