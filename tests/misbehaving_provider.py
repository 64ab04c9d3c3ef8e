"""A provider whose every answer a test chooses."""

import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class MisbehavingProvider:
    """`url` is its base URL; it answers everything with what `answer` was called with last, 0 is no answer at all."""

    url: str = ""
    status: int = 500
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    after_seconds: float = 0

    def answer(self, status: int, body: bytes, headers: Mapping[str, str], *, after_seconds: float = 0) -> None:
        self.status, self.body, self.headers, self.after_seconds = status, body, headers, after_seconds


@contextmanager
def misbehaving() -> Generator[MisbehavingProvider]:
    provider = MisbehavingProvider()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(provider.after_seconds)
            if not provider.status:
                self.close_connection = True
                return
            self.send_response(provider.status)
            for name, value in {**provider.headers, "Content-Length": str(len(provider.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(provider.body)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    provider.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
