"""A headless Chromium, and a web server of somebody else's that it may be led to."""

import os
import shutil
import threading
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.async_api import Browser, async_playwright

BINARIES = ("chromium", "chromium-browser", "google-chrome")
# As root there is no other sandbox than the container's; nothing but loopback can be reached.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)


@asynccontextmanager
async def running_chromium() -> AsyncGenerator[Browser]:
    """Debian's, or another one on the PATH; where there is none the test is skipped, but never in CI."""
    binary = next((found for name in BINARIES if (found := shutil.which(name))), None)
    if binary is None:
        message = "There is no Chromium: install it (Debian: apt install chromium)."
        if os.environ.get("CI") == "true":
            raise RuntimeError(message)
        pytest.skip(message)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=binary, args=ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


class Elsewhere:
    """Answers with the pages it was given, 404 to all else; `asked` holds every path, with its query."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.other_site = f"http://localhost:{port}"
        """The same server, which a browser takes for another site."""
        self.asked: list[str] = []
        self._pages: dict[str, tuple[str, Mapping[str, str], bytes]] = {}

    def show(self, path: str, body: str | bytes, mime_type: str, headers: Mapping[str, str] | None = None) -> str:
        """The page's address."""
        data = body.encode() if isinstance(body, str) else body
        self._pages[path] = (mime_type, headers or {}, data)
        return f"{self.url}{path}"

    def page(self, path: str) -> tuple[str, Mapping[str, str], bytes] | None:
        return self._pages.get(path)


@contextmanager
def running_elsewhere() -> Generator[Elsewhere]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            elsewhere.asked.append(self.path)
            found = elsewhere.page(self.path)
            mime_type, headers, body = found or ("text/plain", {}, b"")
            self.send_response(200 if found else 404)
            for name, value in {**headers, "Content-Type": mime_type, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    elsewhere = Elsewhere(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield elsewhere
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
