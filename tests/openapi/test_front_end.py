"""docs/front-end.md: its code compiles against the types of openapi.json, and does what the page says with a server."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from tests.app_server import PASSWORD, ApiUser, AppServer
from tests.openapi.clients import compile_with, run_node
from tests.openapi.pages import PAGE, modules, write_modules
from tests.results import Results

CHAT_LINES = 60

EDITED = {
    "purposes": ["image", "mask"],
    "status": "completed",
    "parent": True,
    "newest": True,
    "again": True,
    "unreadable": "unsupported_type",
    "shown": "Error: The file is no image of an accepted type: PNG, JPEG and WebP are accepted.",
}
OPTIONS = {"quality": ["low", "medium", "high", "xhigh", "max", "auto"], "faults": ["image.size"], "costs": True}


@pytest.fixture
def pages_project(project: Path, server: AppServer) -> Path:
    """The page's modules as files, for the test's server."""
    write_modules(project, server)
    return project


@pytest.mark.slow
@pytest.mark.proof
def test_the_pages_code_compiles_and_a_whole_chat_is_short(pages_project: Path, results: Results) -> None:
    compiled = compile_with("tsconfig.front-end.json", pages_project)
    assert (compiled.returncode, compiled.stdout) == (0, "")
    said = " ".join(PAGE.read_text().split())
    options = json.loads((pages_project / "tsconfig.front-end.json").read_text())["compilerOptions"]
    for name in ("target", "lib", "module", "moduleResolution"):
        assert f'"{name}": {json.dumps(options[name])}' in said
    fences = len(re.findall("^```ts$", PAGE.read_text(), re.MULTILINE))
    assert len(modules()) == fences
    chat, shared = (_lines_of(modules()[name]) for name in ("chat.ts", "api.ts"))
    assert chat <= CHAT_LINES
    assert f"in {chat} lines of code, without the blank ones; it uses the {shared} lines of `api.ts`" in said
    tried = f"{chat} lines and {shared} of api.ts, {fences} modules"
    results(15, "a chat of docs/front-end.md", tried=tried, kept="0 errors of tsc")


@pytest.mark.slow
def test_the_pages_code_does_what_the_page_says(
    server: AppServer, ada: ApiUser, stranger: ApiUser, pages_project: Path
) -> None:
    foreign = stranger.start("Say hello")["conversation_id"]
    given = {"email": ada.email, "password": PASSWORD, "foreign": foreign, "photo": _png("RGB"), "mask": _png("RGBA")}
    done = run_node("front_end.ts", json.dumps(given), cwd=pages_project)
    assert done.returncode == 0, done.stderr
    found = cast(dict[str, Any], json.loads(done.stdout))
    # Two streams were cut, and each time the next one went on behind the last event.
    resumed = found["drawn"].pop("resumedAfter")
    assert len(resumed) == 3
    assert 0 == int(resumed[0]) < int(resumed[1]) < int(resumed[2])
    assert found == {
        "signedUp": [0, "email_taken"],
        "wrongPassword": "unauthenticated",
        "tabs": {"answers": [200, 200, 200], "refreshes": 1},
        "sent": ["completed", 1],
        "left": "AbortError",
        "drawn": {
            "leftOutages": 0,
            "turn": ["completed", 0],
            "previews": ["0 of 2", "1 of 2"],
            "message": ["completed", "image", "text"],
            "sameText": [True, True],
            "samePicture": True,
            "sameLink": True,
            "download": True,
            "again": "completed",
            "listed": True,
        },
        "sameRun": True,
        "stopped": {"status": "cancelled", "busy": True, "message": ["assistant", "cancelled"]},
        # The user's message, and later both.
        "reloaded": {"past": 1 + 2, "last": ["completed", 1], "followedAgain": False},
        "edited": EDITED,
        "options": OPTIONS,
        "foreign": "not_found",
        "signedOut": "unauthenticated",
    }


def _lines_of(code: str) -> int:
    """Those that are not blank."""
    return sum(bool(line.strip()) for line in code.splitlines())


def _png(mode: str) -> str:
    """In base64: of one colour, or all transparent."""
    file = io.BytesIO()
    Image.new(mode, (1024, 1024)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
