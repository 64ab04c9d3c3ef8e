"""The spans of a run: its wait in the queue and each attempt, in the trace of the request that started it."""

from collections.abc import Generator
from contextlib import contextmanager

from app import traces
from app.runs.models import Run


@contextmanager
def run_span(run: Run) -> Generator[None]:
    """Lasts as long as the attempt, which the block executes with the tags of the run."""
    facts = {"easel.agent": run.agent_key, "easel.attempt": run.attempt}
    parent = run.options.traceparent
    if run.attempt == 1 and run.started_at:
        waited = max((run.started_at - run.created_at).total_seconds(), 0.0)
        traces.record("queue", facts, parent=parent, ended_at=run.started_at, seconds=waited)
    with traces.span("run", facts, kind="consumer", parent=parent):
        yield
