"""The books of recorded streams of the real provider, beside a calculation by hand; skipped where there are none."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.usage.pictures import output_tokens
from tests.app_server import running_server
from tests.stream_server import serving
from tests.usage import hand
from tests.usage.books import Json, entries, nano

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "recordings"
FOUND = sorted(RECORDINGS.glob("*/response.sse"))
ENDS = ("response.completed", "response.incomplete", "response.failed")
SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")
# Of the recorded pictures whose model is named, gpt-image-1: the provider's table of that time. Another one's counts as
# drawn by the model that draws today where none is named.
TOKENS = {("1024x1024", "low"): 272, ("1024x1024", "high"): 4160, ("1024x1536", "high"): 6240}
TODAYS = "gpt-image-2.6-sunburst"
NANO_EACH = {"gpt-image-1": 40_000, None: 30_000}


def events_of(path: Path) -> Iterator[Json]:
    for line in path.read_text().splitlines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


@pytest.mark.skipif(not FOUND, reason="there are no recordings beside the project, in ../shared/recordings")
@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.parent.name)
def test_a_recorded_answer_is_booked_as_a_hand_calculates(path: Path, database_url: str, tmp_path: Path) -> None:
    events = list(events_of(path))
    (end,) = [event["response"] for event in events if event["type"] in ENDS]
    with serving(path.read_bytes()) as provider, running_server(database_url, provider.url, tmp_path) as server:
        ada = server.sign_up()
        run = ada.ask("Say it again", agent_key="designer")[-1]["run"]
        found = entries(ada, run_id=run["id"])
    calls = len(provider.posts)
    if end["usage"] is None:
        assert found == []
        return
    model = SNAPSHOT.sub("", end["model"])
    text = hand.text_cost(model, end.get("service_tier"), end["usage"])
    assert text is not None
    assert {entry["model"] for entry in found if not entry["kind"].startswith("image")} == {end["model"]}
    assert sum(nano(entry["cost_usd"]) for entry in found if not entry["kind"].startswith("image")) == calls * text
    drawn = [item for item in end["output"] if item["type"] == "image_generation_call"]
    partials = sum(event["type"].endswith("partial_image") for event in events)
    asked = image_model(end)
    of_images = [entry for entry in found if entry["kind"] == "image_output_tokens"]
    assert {entry["model"] for entry in of_images} == ({asked or TODAYS} if drawn else set())
    grid = {pair: output_tokens(TODAYS, size=pair[0], quality=pair[1]) for pair in TOKENS}
    tokens = sum((TOKENS if asked else grid)[item["size"], item["quality"]] for item in drawn) + 100 * partials
    assert sum(entry["quantity"] for entry in of_images) == (tokens if drawn else 0)
    assert sum(nano(entry["cost_usd"]) for entry in of_images) == (tokens * NANO_EACH[asked] if drawn else 0)
    assert {entry["basis"] for entry in found} == ({"reported", "estimated"} if drawn else {"reported"})


def image_model(response: Json) -> Any:
    return next((tool.get("model") for tool in response["tools"] if tool["type"] == "image_generation"), None)
