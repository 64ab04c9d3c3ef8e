"""One JSON object a line on standard error, tagged with request, tenant and run."""

import json
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

_tags: ContextVar[dict[str, str]] = ContextVar("log_tags", default={})  # noqa: B039 - never mutated

_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


CHATTY = ("httpx", "httpx2", "httpcore2", "openai", "openai.agents", "docket", "google", "urllib3")


@contextmanager
def tagged(**tags: object) -> Generator[None]:
    """Add tags to every line logged inside, in this task and those it starts."""
    token = _tags.set({**_tags.get(), **{name: str(value) for name, value in tags.items()}})
    try:
        yield
    finally:
        _tags.reset(token)


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **_tags.get(),
        }
        line.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure(level: str) -> None:
    """Send all logs to standard error as JSON lines; chatty libraries only from warning on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in (
        "httpx",
        "httpx2",
        "httpcore2",
        "openai",
        "openai.agents",
        "docket",
        "uvicorn.access",
        "google",
        "urllib3",
    ):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
