"""Promises 10, 11 and 25 in a real browser: nothing that is stored runs, links show images, text stays text."""

import asyncio
import html
import struct
import zlib
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page
from playwright.async_api import Error as BrowserError

from app.attachments.content import GUARDS
from app.attachments.file_tokens import INLINE_TYPES
from tests import timeouts
from tests.app_server import ApiUser, AppServer, kinds, one, running_server
from tests.attachment_rows import insert_attachment
from tests.browser import Elsewhere, running_chromium, running_elsewhere
from tests.results import Results
from tests.servers import s3_server

TERMINAL = ("run.completed", "run.failed", "run.cancelled")
# A script that runs has said so after a few milliseconds; the controls show that.
QUIET_SECONDS = 0.5


@dataclass(frozen=True)
class Payload:
    """`data` says RAN where it says that it ran; `claimed` is what its row says, `naive` what a server might believe.

    One that is `embedded` is no page but a script, which somebody else's page includes.
    """

    claimed: str
    naive: str
    data: bytes
    embedded: bool = False


SVG = "image/svg+xml"
SCRIPT = b"<script>new Image().src='RAN'</script>"
PAGE = b"<!doctype html><title>x</title>" + SCRIPT


def _svg(inside: bytes, more: bytes = b"") -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9" ' + more + b">" + inside + b"</svg>"


def _png(comment: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\xff\0\0"))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"tEXt", comment) + pixels + chunk(b"IEND", b"")


PAYLOADS = {
    "svg-script": Payload(SVG, SVG, _svg(SCRIPT)),
    "svg-onload": Payload(SVG, SVG, _svg(b"", b"onload=\"new Image().src='RAN'\"")),
    "svg-outside-script": Payload(SVG, SVG, _svg(b'<script href="RAN"/>')),
    "svg-outside-image": Payload(SVG, SVG, _svg(b'<image href="RAN" width="9" height="9"/>')),
    "svg-foreign-object": Payload(
        SVG,
        SVG,
        _svg(
            b'<foreignObject width="9" height="9"><img xmlns="http://www.w3.org/1999/xhtml" src="data:,"'
            b" onerror=\"new Image().src='RAN'\"/></foreignObject>"
        ),
    ),
    "svg-as-png": Payload("image/png", SVG, _svg(SCRIPT)),
    "html-as-png": Payload("image/png", "text/html", PAGE),
    "html-as-html": Payload("text/html", "text/html", PAGE),
    "png-and-html": Payload("image/png", "text/html", _png(b"x\0" + PAGE)),
    "jpeg-and-html": Payload("image/jpeg", "text/html", b"\xff\xd8\xff\xe0\x00\x10JFIF\0" + PAGE + b"\xff\xd9"),
    "pdf-and-html": Payload("application/pdf", "text/html", b"%PDF-1.7\n" + PAGE + b"\n%%EOF"),
    "xml-with-xhtml": Payload(
        "application/xml",
        "application/xml",
        b'<?xml version="1.0"?><x><html xmlns="http://www.w3.org/1999/xhtml">' + SCRIPT + b"</html></x>",
    ),
    "gif-and-script": Payload("image/gif", "text/javascript", b"GIF89a=1;new Image().src='RAN'", embedded=True),
    "webp-and-script": Payload(
        "image/webp", "text/javascript", b"RIFF=1/*WEBPVP8 */;new Image().src='RAN'", embedded=True
    ),
}


@pytest.fixture(scope="module")
async def chromium() -> AsyncGenerator[Browser]:
    async with running_chromium() as browser:
        yield browser


@pytest.fixture
def elsewhere() -> Generator[Elsewhere]:
    with running_elsewhere() as elsewhere:
        yield elsewhere


@pytest.mark.slow
@pytest.mark.proof
async def test_no_stored_script_runs_in_a_browser(
    server: AppServer, ada: ApiUser, chromium: Browser, elsewhere: Elsewhere, results: Results
) -> None:
    nobodys = await chromium.new_page()
    adas = await chromium.new_page(extra_http_headers={"Authorization": ada.http.headers["Authorization"]})
    for name, payload in PAYLOADS.items():
        await _open(nobodys, _served(elsewhere, name, "unguarded", payload.naive, {}))
    async with asyncio.timeout(timeouts.PATIENCE):
        while _ran(elsewhere) < PAYLOADS.keys():
            await asyncio.sleep(0.02)

    elsewhere.asked.clear()
    opened: list[str] = []
    for name, payload in PAYLOADS.items():
        data, filename = _telling(elsewhere, name), f"{name}.png"
        inserted = await insert_attachment(server, ada, data, mime_type=payload.claimed, filename=filename)
        content = f"{server.base_url}/v1/attachments/{inserted['object_id']}/content"
        pages = [inserted["url"], content]
        if payload.embedded:
            pages = [_including(elsewhere, f"{name}-{index}", address) for index, address in enumerate(pages)]
        outcomes = await asyncio.gather(_open(nobodys, pages[0]), _open(adas, pages[1]))
        shown = payload.embedded or payload.claimed in INLINE_TYPES
        assert outcomes == ["shown" if shown else "downloaded"] * 2, name
        opened += outcomes
        if payload.claimed == SVG:  # without the disposition, the sandbox alone holds it
            opened.append(await _open(nobodys, _served(elsewhere, name, "sandboxed", SVG, GUARDS)))
    await asyncio.sleep(QUIET_SECONDS)
    assert _ran(elsewhere) == set()
    tried = f"{len(PAYLOADS)} payloads in Chromium, {len(opened)} openings"
    results(10, "stored scripts", tried=tried, kept=f"0 ran; unguarded {len(PAYLOADS)}")
    await asyncio.gather(nobodys.close(), adas.close())


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["own", "s3"])
async def test_a_link_shows_its_image_on_another_site_without_credentials(
    storage: str, database_url: str, provider_url: str, tmp_path: Path, chromium: Browser, elsewhere: Elsewhere
) -> None:
    with s3_server(tmp_path / "s3") as s3:
        keys = {"minio_access_key": s3.access_key, "minio_secret_key": s3.secret_key, "minio_secure": False}
        on_s3: dict[str, Any] = {"storage_provider": "minio", "minio_endpoint": s3.endpoint, **keys}
        settings = on_s3 if storage == "s3" else {}
        with running_server(database_url, provider_url, tmp_path, **settings) as server:
            drawn = one(server.sign_up().draw(), "attachment.created")["attachment"]
            # A page that asks every image for its consent; an S3 server has no header to give it by.
            headers = {"Cross-Origin-Embedder-Policy": "require-corp"} if storage == "own" else {}
            page = await chromium.new_page()
            assert await _widths(page, _chat(elsewhere, "", [drawn], headers)) == [drawn["width"]]
            await page.close()


@pytest.mark.slow
@pytest.mark.proof
async def test_what_a_model_says_asks_nobody_for_anything(
    server: AppServer, ada: ApiUser, stranger: ApiUser, chromium: Browser, elsewhere: Elsewhere, results: Results
) -> None:
    foreign = one(stranger.draw(), "attachment.created")["attachment"]["object_id"]
    leak = f"![x]({elsewhere.url}/leak?q=1) <img src={elsewhere.url}/leak?q=2> {foreign}"
    events = ada.draw(f"Draw a cat {leak}")
    assert [kind for kind in kinds(events) if kind in TERMINAL] == ["run.completed"]
    own = one(events, "attachment.created")["attachment"]
    for message in (one(events, "message.completed")["message"], ada.messages(own["conversation_id"])[-1]):
        assert leak in message["text"]
        assert [each["object_id"] for each in message["attachments"]] == [own["object_id"]]
    assert ada.http.get(f"/v1/attachments/{foreign}").status_code == 404
    assert elsewhere.asked == []

    page = await chromium.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    guards = {
        "Content-Security-Policy": f"default-src 'none'; img-src {server.base_url}",
        "Cross-Origin-Embedder-Policy": "require-corp",
    }
    attachments = one(events, "message.completed")["message"]["attachments"]
    # We serve no page that shows a chat; this one does what a front end should: text as text, images by their links.
    chat = _chat(elsewhere, html.escape(leak), attachments, guards)
    assert await _widths(page, chat) == [own["width"]]
    assert asked == [chat, attachments[0]["url"]]
    # A front end that takes the text for HTML leaks nothing either while its policy names our origin alone.
    await _widths(page, _chat(elsewhere, leak, attachments, guards))
    assert [path for path in elsewhere.asked if path.startswith("/leak")] == []
    await _widths(page, _chat(elsewhere, leak, attachments, {}))
    assert [path for path in elsewhere.asked if path.startswith("/leak")] == ["/leak?q=2"]
    kept = "0 attachments of others, 0 requests of the server, 0 of Chromium; without a policy 1"
    results(25, "what a model says", tried="2 leaks in a text, another tenant's id", kept=kept)
    await page.close()


@pytest.mark.proof
def test_a_tool_the_agent_does_not_have_is_not_executed(ada: ApiUser, results: Results) -> None:
    executed: set[str] = set()
    # A tool of other agents, an agent the designer may not hand over to, and what nobody has.
    for tool in ("current_time", "transfer_to_assistant", "read_file"):
        events = ada.ask(f"Go on [offline: call={tool}]", agent_key="designer")
        assert [kind for kind in kinds(events) if kind in TERMINAL] == [kinds(events)[-1]] == ["run.completed"], tool
        # The model is told, and answers without it.
        assert f"There is no tool '{tool}'" in one(events, "message.completed")["message"]["text"] or "transfer" in tool
        executed |= {"agent.changed"} & set(kinds(events))
        completed = [event for event in events if event["type"] == "tool.completed" and event["name"] == tool]
        executed |= {event["name"] for event in completed if event["status"] != "failed"}
    assert executed == set()
    listed = ada.ask("Go on [offline: call=current_time]", agent_key="assistant")
    assert one(listed, "tool.completed")["name"] == "current_time"
    assert kinds(listed)[-1] == "run.completed"
    results(25, "unlisted tools", tried="3 calls, 1 of a listed tool", kept="0 executed, 1 of the listed tool")


def _served(elsewhere: Elsewhere, name: str, way: str, mime_type: str, headers: dict[str, str]) -> str:
    """The payload as somebody else's server serves it; a page that includes it, where it is a script."""
    payload = PAYLOADS[name]
    address = elsewhere.show(f"/{way}/{name}", _telling(elsewhere, name), mime_type, headers)
    return _including(elsewhere, f"{way}-{name}", address) if payload.embedded else address


def _telling(elsewhere: Elsewhere, name: str) -> bytes:
    return PAYLOADS[name].data.replace(b"RAN", f"{elsewhere.url}/ran/{name}".encode())


def _including(elsewhere: Elsewhere, name: str, address: str) -> str:
    return elsewhere.show(f"/including/{name}", f'<!doctype html><script src="{address}"></script>', "text/html")


def _ran(elsewhere: Elsewhere) -> set[str]:
    return {path.removeprefix("/ran/") for path in elsewhere.asked if path.startswith("/ran/")}


async def _open(page: Page, address: str) -> str:
    """Whether the browser showed what is there, or kept it as a file."""
    try:
        await page.goto(address)
    except BrowserError as error:
        if "Download is starting" not in error.message:
            raise
        return "downloaded"
    return "shown"


def _chat(elsewhere: Elsewhere, text: str, attachments: list[dict[str, Any]], headers: dict[str, str]) -> str:
    """A page of another site with a message: its text as HTML, and its images."""
    images = "".join(f'<img class="image" src="{html.escape(each["url"])}">' for each in attachments)
    page = f'<!doctype html><link rel="icon" href="data:,"><p>{text}</p>{images}'
    elsewhere.show("/chat", page, "text/html; charset=utf-8", headers)
    return f"{elsewhere.other_site}/chat"


async def _widths(page: Page, address: str) -> list[int]:
    """How wide the page's images are; 0 where one cannot be shown."""
    await page.goto(address)
    return await page.locator(".image").evaluate_all("images => images.map(each => each.naturalWidth)")
