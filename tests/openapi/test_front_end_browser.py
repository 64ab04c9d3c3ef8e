"""docs/front-end.md in Chromium, from another origin: a second look at a conversation loads no image again."""

import html
import json
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from playwright.async_api import Browser, BrowserContext, Page

from tests import timeouts
from tests.app_server import PASSWORD, ApiUser, AppServer
from tests.browser import Elsewhere, running_chromium, running_elsewhere
from tests.openapi.clients import run_node
from tests.openapi.pages import PAGE, write_modules
from tests.results import Results

PICTURES = 20
MODULES = ("browser.ts", "api.ts", "chat.ts", "history.ts", "images.ts")
HTML = """<!doctype html><link rel="icon" href="data:,">
<script type="importmap">{{"imports": {{"openapi-fetch": "/openapi-fetch.js"}}}}</script>
<body data-email="{email}" data-password="{password}"><script type="module" src="/browser.ts"></script>"""


@dataclass
class Look:
    """What one look at the conversation has loaded: bytes over the network by kind, and the images' addresses."""

    loaded: Counter[str] = field(default_factory=Counter[str])
    images: set[str] = field(default_factory=set[str])


@pytest.fixture
async def chromium() -> AsyncGenerator[Browser]:
    async with running_chromium() as browser:
        yield browser


@pytest.fixture
def elsewhere() -> Generator[Elsewhere]:
    with running_elsewhere() as elsewhere:
        yield elsewhere


@pytest.mark.slow
@pytest.mark.proof
async def test_a_second_look_at_a_conversation_loads_no_image_again(
    server: AppServer, ada: ApiUser, project: Path, chromium: Browser, elsewhere: Elsewhere, results: Results
) -> None:
    conversation_id = ada.draw(f"Draw houses [offline: images={PICTURES}]")[0]["run"]["conversation_id"]
    timeouts.wait_until(lambda: all(image["variants"] for image in _images(ada, conversation_id)))
    address = _serve(server, ada, project, elsewhere)
    first, second = await _looks(chromium, address)
    if first.images != second.images:  # All links were made anew between the two.
        first, second = await _looks(chromium, address)
    assert first.images == second.images
    assert len(first.images) == PICTURES
    assert first.loaded["Image"] > PICTURES * 10_000
    assert second.loaded["Image"] == 0
    assert f"loads {second.loaded['Image']} bytes of images" in " ".join(PAGE.read_text().split())
    tried = f"{PICTURES} images, {first.loaded['Image']} bytes at the first look"
    kept = f"{second.loaded['Image']} bytes of images, {second.loaded['Fetch']} of JSON"
    results(11, "a second look", tried=tried, kept=kept)


def _images(user: ApiUser, conversation_id: str) -> list[dict[str, Any]]:
    images = [image for message in user.messages(conversation_id) for image in message["attachments"]]
    assert len(images) == PICTURES
    return images


def _serve(server: AppServer, user: ApiUser, project: Path, elsewhere: Elsewhere) -> str:
    """The page's address: its modules as a browser runs them, on a server of their own."""
    write_modules(project, server)
    # A browser goes by the type that a module is served with, not by its name.
    stripped = run_node("strip.mjs", *MODULES, cwd=project)
    assert stripped.returncode == 0, stripped.stderr
    scripts = cast(dict[str, str], json.loads(stripped.stdout))
    scripts["openapi-fetch.js"] = (project / "node_modules/openapi-fetch/dist/index.mjs").read_text()
    for name, code in scripts.items():
        elsewhere.show(f"/{name}", code, "text/javascript")
    page = HTML.format(email=html.escape(user.email), password=html.escape(PASSWORD))
    return elsewhere.show("/", page, "text/html; charset=utf-8")


async def _looks(chromium: Browser, address: str) -> tuple[Look, Look]:
    context = await chromium.new_context()
    try:
        return await _look(context, address), await _look(context, address)
    finally:
        await context.close()


async def _look(context: BrowserContext, address: str) -> Look:
    """Opens the page in a new tab, until it shows all images."""
    page = await context.new_page()
    look = Look()
    await _count(context, page, look)
    await page.goto(address)
    await page.locator("body[data-shown]").wait_for(timeout=timeouts.PATIENCE * 1000)
    await page.close()
    return look


async def _count(context: BrowserContext, page: Page, look: Look) -> None:
    session = await context.new_cdp_session(page)
    kinds: dict[str, str] = {}

    def requested(event: dict[str, Any]) -> None:
        kinds[event["requestId"]] = event["type"]
        if event["type"] == "Image":
            look.images.add(cast(str, event["request"]["url"]))

    def finished(event: dict[str, Any]) -> None:
        look.loaded[kinds.get(event["requestId"], "")] += int(event["encodedDataLength"])

    session.on("Network.requestWillBeSent", requested)
    session.on("Network.loadingFinished", finished)
    await session.send("Network.enable")  # pyright: ignore[reportUnknownMemberType]  # playwright says no more
