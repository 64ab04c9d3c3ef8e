"""Where a process reports to beside its log: OpenTelemetry and Sentry, each loaded where a variable asks for it."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from app.loading import load
from app.settings import Settings


@contextmanager
def observed(settings: Settings) -> Generator[None]:
    """Spans and errors are sent until the block ends."""
    with ExitStack() as stack:
        if settings.traces_wanted:
            stack.enter_context(load("app.open_telemetry").tracing(settings.telemetry))
        if settings.sentry_dsn is not None:
            dsn = settings.sentry_dsn.get_secret_value()
            stack.enter_context(load("app.sentry").reporting(dsn, settings.environment))
        yield
