"""The modules that docs/front-end.md shows, as files."""

import re
from pathlib import Path

from tests.app_server import AppServer
from tests.openapi.clients import ROOT

PAGE = ROOT / "docs" / "front-end.md"
BASE = "http://127.0.0.1:8000"
FENCED = re.compile(r"^```ts\n(// ([\w-]+\.ts)\n.*?)^```$", re.MULTILINE | re.DOTALL)


def modules() -> dict[str, str]:
    """File name -> code; the name is the code's first line."""
    return {name: code for code, name in FENCED.findall(PAGE.read_text())}


def write_modules(project: Path, server: AppServer) -> None:
    """For calls to this server."""
    (project / "schema.d.ts").symlink_to(project / "api.d.ts")
    for name, code in modules().items():
        (project / name).write_text(code.replace(BASE, server.base_url))
