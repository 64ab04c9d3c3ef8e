"""What the provider, or a gateway before it, answers about earlier responses is not always what its API describes."""

import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app.error_codes import ErrorCode
from app.provider.client import Provider
from app.provider.errors import ProviderError

ANSWERS = {
    "text": ("text/plain", b"OK"),
    "text of no type": ("", b"OK"),
    "bytes": ("application/octet-stream", b"\0\xff"),
    "another object": ("application/json", b'{"ok": true}'),
    "a list": ("application/json", b"[]"),
    "a string": ("application/json", b'"OK"'),
    "null": ("application/json", b"null"),
    "no JSON": ("application/json", b"OK"),
    "nothing": ("application/json", b""),
    "a page": ("text/html", b"<html>"),
}


@pytest.fixture(params=ANSWERS.values(), ids=list(ANSWERS))
async def provider(request: pytest.FixtureRequest) -> AsyncGenerator[Provider]:
    with _answering(*request.param) as url:
        client = Provider(api_key="none", base_url=url, idle_seconds=5)
        yield client
        await client.close()


async def _images(provider: Provider) -> None:
    async for _ in provider.stored.images_of("resp_1"):
        pass


ASKED: dict[str, Callable[[Provider], Awaitable[object]]] = {
    "stop": lambda provider: provider.stored.stop("resp_1"),
    "images": _images,
    "upload": lambda provider: provider.upload_image("a.png", b"", "image/png"),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=list(ASKED))
async def test_an_answer_that_is_none_is_the_providers_fault(
    provider: Provider, ask: Callable[[Provider], Awaitable[object]]
) -> None:
    with pytest.raises(ProviderError) as raised:
        await ask(provider)
    assert raised.value.code == ErrorCode.UPSTREAM_UNREADABLE
    assert raised.value.cause


@contextmanager
def _answering(content_type: str, body: bytes) -> Generator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_DELETE = do_GET  # noqa: N815 - names of the standard library's

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
