"""Spans sent by OTLP, as the variables of OpenTelemetry say. Loaded by name, where one of them asks for it."""

import os
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app import __version__, traces
from app.traces import Facts, Kind

# A process that ends waits no longer for a collector that does not answer.
CLOSE_SECONDS = 2.0
TRACEPARENT = "traceparent"

_KINDS = {kind.name.lower(): kind for kind in SpanKind}
_propagator = TraceContextTextMapPropagator()


@contextmanager
def tracing(variables: Mapping[str, str]) -> Generator[None]:
    """Spans are sent until the block ends. `variables` are those that the SDK does not find in the environment."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    # The environment's attributes replace ours.
    ours = {"service.name": "easel", "service.version": __version__}
    resource = Resource.create(ours).merge(OTELResourceDetector().detect())
    # Not the global one: libraries would send spans of their own, and what those say nobody has looked at.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    traces.use(_Tracer(provider.get_tracer("easel", __version__)))
    try:
        yield
    finally:
        traces.use(None)
        closing = threading.Thread(target=provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


class _Tracer:
    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def span(self, name: str, kind: Kind, parent: str | None, facts: Facts) -> Generator[None]:
        # An exception's words may repeat a prompt.
        with self._tracer.start_as_current_span(
            name,
            context=_context_of(parent),
            kind=_KINDS[kind],
            attributes=_attributes(facts),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as error:
                _fail(span, type(error).__qualname__)
                raise

    def record(
        self, name: str, kind: Kind, parent: str | None, ended_at: datetime, seconds: float, error: str, facts: Facts
    ) -> None:
        end = int(ended_at.timestamp() * 1e9)
        span = self._tracer.start_span(
            name,
            context=_context_of(parent),
            kind=_KINDS[kind],
            attributes=_attributes(facts),
            start_time=end - int(seconds * 1e9),
        )
        if error:
            _fail(span, error)
        span.end(end)

    def annotate(self, name: str, error: str, facts: Facts) -> None:
        span = trace.get_current_span()
        span.set_attributes(_attributes(facts))
        if name:
            span.update_name(name)
        if error:
            _fail(span, error)

    def traceparent(self) -> str | None:
        carrier: dict[str, str] = {}
        _propagator.inject(carrier)
        return carrier.get(TRACEPARENT)


def _context_of(parent: str | None) -> Context | None:
    """None stands for the current one."""
    return _propagator.extract({TRACEPARENT: parent}) if parent else None


def _attributes(facts: Facts) -> dict[str, str | bool | int | float]:
    return {
        name: value if isinstance(value, str | bool | int | float) else str(value)
        for name, value in facts.items()
        if value is not None
    }


def _fail(span: Span, error: str) -> None:
    span.set_status(StatusCode.ERROR)
    span.set_attribute("error.type", error)
