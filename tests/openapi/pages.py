"""The modules that docs/front-end.md shows, as files, and the lines that it shows apart from them."""

import re
from pathlib import Path

from tests.app_server import AppServer
from tests.openapi.clients import ROOT

PAGE = ROOT / "docs" / "front-end.md"
BASE = "http://127.0.0.1:8000"
FENCED = re.compile(r"^```ts\n(// ([\w-]+\.ts)\n.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}.+\n)+", re.MULTILINE)
# What the page says of the names that its lines use.
SEND = """// send.ts
import { follow, start, type Turn } from "./chat.ts";

export async function send(render: (turn: Turn) => void, leaving: AbortController) {
"""


def modules() -> dict[str, str]:
    """File name -> code; the name is the code's first line."""
    return {name: code for code, name in FENCED.findall(PAGE.read_text())}


def lines_apart() -> tuple[str, str]:
    """The commands of the set-up, and how a message is sent; there are no others."""
    commands, send = INDENTED.findall(FENCED.sub("", PAGE.read_text()))
    return commands, send


def write_modules(project: Path, server: AppServer) -> None:
    """For calls to this server."""
    (project / "schema.d.ts").symlink_to(project / "api.d.ts")
    _, send = lines_apart()
    for name, code in {**modules(), "send.ts": f"{SEND}{send}}}\n"}.items():
        (project / name).write_text(code.replace(BASE, server.base_url))
