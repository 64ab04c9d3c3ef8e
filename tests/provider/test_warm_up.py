"""A worker's first turn takes no longer than its second: the SDK's types are built before it is ready."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNBUILT = """
import asyncio, sys
from app.provider.warm_up import warm_up
from app.provider.wire import _EVENT_TYPES
asyncio.run(warm_up())
print(*(name for name in sys.argv[1:] if not _EVENT_TYPES[name].__pydantic_complete__))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["partials", "no-partials", "unrequested-partial"])
def test_every_type_of_a_turn_with_an_image_is_built_before_it(name: str) -> None:
    lines = (ROOT / "tests" / "streams" / f"{name}.sse").read_text().splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    types = {event["type"] for event in events} - {"keepalive"}
    assert len(types) > 5
    command = [sys.executable, "-c", UNBUILT, *types]
    unbuilt = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert unbuilt.split() == []
