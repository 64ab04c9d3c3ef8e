"""One JSON object a line on standard error, tagged with request, tenant, user and run."""

import json
import logging
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

_tags: ContextVar[dict[str, str]] = ContextVar("log_tags", default={})  # noqa: B039 - never mutated

_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}
# uvicorn's message once more, for terminals.
_LEFT_OUT = _STANDARD | {"color_message"}
# What JSON leaves as it is, although terminals obey it and some readers end a line at it.
_CONTROLS = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}

CHATTY = ("httpx", "httpx2", "httpcore2", "openai", "openai.agents", "docket", "uvicorn.access", "google", "urllib3")

log = logging.getLogger(__name__)


@contextmanager
def tagged(**tags: object) -> Generator[None]:
    """Add tags to every line logged inside, in this task and those it starts; None is no tag."""
    token = _tags.set(_with(tags))
    try:
        yield
    finally:
        _tags.reset(token)


def tag(**tags: object) -> None:
    """Add tags to every line that this task, and those it starts from now on, will log."""
    _tags.set(_with(tags))


def tag_only(**tags: object) -> None:
    """Like `tag`, for a task that begins something new: what started it may have had tags of its own."""
    _tags.set({})
    tag(**tags)


def current_tag(name: str) -> str | None:
    return _tags.get().get(name)


def current_tags() -> dict[str, str]:
    return dict(_tags.get())


def _with(tags: dict[str, object]) -> dict[str, str]:
    return {**_tags.get(), **{name: str(value) for name, value in tags.items() if value is not None}}


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **_tags.get(),
        }
        line.update({name: value for name, value in vars(record).items() if name not in _LEFT_OUT})
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False).translate(_CONTROLS)


def configure(level: str, *, silent: Sequence[str] = ()) -> None:
    """Send all logs to standard error as JSON lines; chatty libraries only from warning on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
    for name in silent:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Python prints these by itself: not as JSON, and without the tags.
    logging.captureWarnings(capture=True)
    threading.excepthook = _log_thread_failure
    sys.unraisablehook = _log_unraisable


def _log_thread_failure(failed: Any) -> None:
    if failed.exc_type is not SystemExit:
        name = failed.thread.name if failed.thread else None
        log.error("thread.failed", extra={"thread_name": name}, exc_info=failed.exc_value)


def _log_unraisable(failed: Any) -> None:
    log.error("exception.ignored", extra={"where": repr(failed.object)}, exc_info=failed.exc_value)
