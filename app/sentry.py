"""What the log calls an error, to Sentry as well. Loaded by name, where `SENTRY_DSN` is set."""

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import sentry_sdk
from sentry_sdk.integrations.logging import LoggingIntegration

from app import __version__
from app.logs import current_tags

# A process that ends waits no longer for a server that does not answer.
CLOSE_SECONDS = 2.0

# Of an event, all else is left out: what is new in a later SDK must be looked at first.
KEPT = ("event_id", "timestamp", "level", "platform", "release", "environment", "server_name", "logger", "sdk")
KEPT_OF_EXCEPTION = ("type", "module", "mechanism", "stacktrace")


@contextmanager
def reporting(dsn: str, environment: str) -> Generator[None]:
    """Each log record from ERROR on is an event until the block ends."""
    sentry_sdk.init(
        dsn=dsn,
        release=os.environ.get("SENTRY_RELEASE") or f"easel@{__version__}",
        environment=os.environ.get("SENTRY_ENVIRONMENT") or environment,
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[LoggingIntegration(level=None, event_level=logging.ERROR, sentry_logs_level=None)],
        include_local_variables=False,
        send_default_pii=False,
        max_breadcrumbs=0,
        send_client_reports=False,
        auto_session_tracking=False,
        before_send=_harmless,
    )
    try:
        yield
    finally:
        sentry_sdk.get_client().close(timeout=CLOSE_SECONDS)


def _harmless(event: Any, hint: dict[str, Any]) -> Any:
    """Where it happened, to what, and whose it was; the words of an exception may repeat a prompt: they are in the log.

    A message of ours is the constant name of an event; others' messages may repeat anything.
    """
    record: logging.LogRecord | None = hint.get("log_record")
    ours = record is not None and record.name.startswith("app.")
    kept = {name: event[name] for name in KEPT if name in event}
    kept["logentry"] = {"message": str(record.msg) if record and ours else event.get("logger", "")}
    kept["tags"] = current_tags()
    if "exception" in event:
        kept["exception"] = {
            "values": [
                {name: value[name] for name in KEPT_OF_EXCEPTION if name in value}
                for value in event["exception"]["values"]
            ]
        }
    return kept
