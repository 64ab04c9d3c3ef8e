"""Spans of what a request sets off: its answer, its run's wait and execution, calls to the provider, images, storage.

Off, which is how a process starts, a span costs one call of a function; no event of a stream has one.
`app/observing.py` turns them on. What a span says is for operators: ids, sizes, outcomes;
never a prompt, a picture, a secret.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Literal, Protocol

from app.logs import current_tags

Facts = Mapping[str, object]
"""Attributes of a span beside the tags of the log; None is no attribute. What OpenTelemetry defines has its names."""

Kind = Literal["internal", "server", "client", "consumer"]

_OFF = nullcontext()


class Tracer(Protocol):
    def span(self, name: str, kind: Kind, parent: str | None, facts: Facts, /) -> AbstractContextManager[None]: ...
    def record(
        self, name: str, kind: Kind, parent: str | None, ended_at: datetime, seconds: float, error: str, facts: Facts, /
    ) -> None: ...
    def annotate(self, name: str, error: str, facts: Facts, /) -> None: ...
    def traceparent(self) -> str | None: ...


_tracer: Tracer | None = None


def use(tracer: Tracer | None) -> None:
    """From now on, in this process."""
    global _tracer  # noqa: PLW0603 - of the process, as its log is
    _tracer = tracer


def span(
    name: str, facts: Facts | None = None, *, kind: Kind = "internal", parent: str | None = None
) -> AbstractContextManager[None]:
    """Lasts as long as the block, whose exception it names by its type.

    `parent` is a traceparent; unset, the span that is current, which this one is within the block.
    """
    return _OFF if _tracer is None else _tracer.span(name, kind, parent, _with_tags(facts))


def record(
    name: str,
    facts: Facts | None = None,
    *,
    kind: Kind = "internal",
    parent: str | None,
    seconds: float,
    ended_at: datetime | None = None,
    error: str = "",
) -> None:
    """A span that has lasted so long already, until `ended_at` or now; `error` is a code."""
    if _tracer is not None:
        _tracer.record(name, kind, parent, ended_at or datetime.now(UTC), seconds, error, _with_tags(facts))


def annotate(facts: Facts, *, name: str = "", error: str = "") -> None:
    """Add to the current span; `name` replaces its name, `error` is a code."""
    if _tracer is not None:
        _tracer.annotate(name, error, _with_tags(facts))


def traceparent() -> str | None:
    """That of the current span (W3C Trace Context), for what it sets off; None while spans are off."""
    return None if _tracer is None else _tracer.traceparent()


def _with_tags(facts: Facts | None) -> Facts:
    """Whose a span is: what a line of the log would be tagged with here."""
    tags = {f"easel.{name}": value for name, value in current_tags().items() if name != "trace_id"}
    return {**tags, **(facts or {})}
