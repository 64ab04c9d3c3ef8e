"""What a process sends to a collector of OpenTelemetry and to Sentry: a server that takes both and keeps them."""

import gzip
import json
import threading
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tests.timeouts import wait_until


@dataclass(frozen=True)
class SentSpan:
    """Ids are hexadecimal; the parent's is empty where there is none."""

    name: str
    kind: str
    trace_id: str
    id: str
    parent_id: str
    began: int
    ended: int
    failed: bool
    facts: dict[str, object]


@dataclass
class Collector:
    port: int
    bodies: list[bytes] = field(default_factory=list[bytes])
    spans: list[SentSpan] = field(default_factory=list[SentSpan])
    resources: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    errors: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def dsn(self) -> str:
        return f"http://0123456789abcdef0123456789abcdef@127.0.0.1:{self.port}/1"

    def variables(self) -> dict[str, str]:
        """What has a process send its spans here, at once."""
        return {"otel_exporter_otlp_endpoint": self.url, "otel_bsp_schedule_delay": "50"}

    def wait_for(self, *names: str, **facts: object) -> dict[str, SentSpan]:
        """The newest span of each name among those with these facts (dots as __) once all have come."""
        wanted = {name.replace("__", "."): value for name, value in facts.items()}

        def found() -> dict[str, SentSpan]:
            return {one.name: one for one in list(self.spans) if wanted.items() <= one.facts.items()}

        wait_until(lambda: set(names) <= found().keys())
        return found()

    def wait_for_error(self, message: str, **tags: str) -> dict[str, Any]:
        """The newest event of Sentry with this message and these tags."""

        def found() -> list[dict[str, Any]]:
            return [
                error
                for error in list(self.errors)
                if error["logentry"]["message"] == message and tags.items() <= error["tags"].items()
            ]

        wait_until(lambda: bool(found()))
        return found()[-1]

    def of_trace(self, trace_id: str) -> list[SentSpan]:
        return [one for one in list(self.spans) if one.trace_id == trace_id]

    def take(self, path: str, body: bytes) -> None:
        self.bodies.append(body)
        if path == "/v1/traces":
            self._take_spans(ExportTraceServiceRequest.FromString(body))
        else:
            # https://develop.sentry.dev/sdk/data-model/envelopes/: lines of JSON, an item's header before each item.
            lines = body.splitlines()
            headers = [json.loads(line) for line in lines[1::2]]
            items = [json.loads(line) for line in lines[2::2]]
            self.errors += [item for header, item in zip(headers, items, strict=True) if header["type"] == "event"]

    def _take_spans(self, request: ExportTraceServiceRequest) -> None:
        for of_resource in request.resource_spans:
            self.resources.append({each.key: _value(each.value) for each in of_resource.resource.attributes})
            for span in (span for scope in of_resource.scope_spans for span in scope.spans):
                assert not span.events
                self.spans.append(
                    SentSpan(
                        span.name,
                        span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        span.status.code == span.status.STATUS_CODE_ERROR,
                        {each.key: _value(each.value) for each in span.attributes},
                    )
                )


def _value(value: AnyValue) -> object:
    return getattr(value, value.WhichOneof("value") or "string_value")


@contextmanager
def running_collector(answer: Callable[[], None] = lambda: None) -> Generator[Collector]:
    """`answer` is called before each answer, and may take its time."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            match self.headers.get("Content-Encoding"):
                case "gzip":
                    body = gzip.decompress(body)
                case "deflate":
                    body = zlib.decompress(body)
                case _:
                    pass
            collector.headers.append(dict(self.headers))
            collector.take(self.path, body)
            answer()
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_request(self, code: object = "-", size: object = "-") -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
