"""How much one has to read to follow an image, or a user's message: files, and their whole lines.

The lists stand in `docs/architecture.md`, too. A limit is what is true today, lines rounded up to the next hundred
or two; where it is above the goal, it may only be lowered. The image's trip was raised from 17 files and 2,700
lines to 19 and 3,020: by 60 lines for sharing, exports and what a review found, and by two files when images that
failed got rows and readers were told of smaller copies.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Trip:
    """`files` in the order in which they are passed; limits and goals are (files, lines), None: not counted."""

    heading: str
    files: tuple[str, ...]
    limit: tuple[int, int]
    goal: tuple[int, int | None]

    @property
    def lines(self) -> int:
        return sum(len((ROOT / file).read_text().splitlines()) for file in self.files)


TRIPS = [
    Trip(
        "The way of an image, wire to reader: the files",
        (
            "app/provider/wire.py",
            "app/provider/image_bytes.py",
            "app/provider/model.py",
            "app/worker/images.py",
            "app/worker/image_rows.py",
            "app/worker/image_reports.py",
            "app/worker/image_intake.py",
            "app/images/inspect.py",
            "app/attachments/ingest.py",
            "app/attachments/models.py",
            "app/storage/keys.py",
            "app/storage/minio.py",
            "app/attachments/schemas.py",
            "app/runs/events.py",
            "app/worker/event_writer.py",
            "app/event_log.py",
            "app/runs/reader.py",
            "app/attachments/links.py",
            "app/runs/routes.py",
        ),
        limit=(19, 3_020),
        goal=(11, 1_700),
    ),
    Trip(
        "A user's message to the model: the files",
        (
            "app/runs/routes.py",
            "app/runs/idempotency.py",
            "app/runs/schemas.py",
            "app/runs/service.py",
            "app/runs/validation.py",
            "app/runs/models.py",
            "app/conversations/service.py",
            "app/ready_queue.py",
            "app/worker/dispatcher.py",
            "app/worker/lease.py",
            "app/worker/executor.py",
            "app/worker/agent_loop.py",
            "app/worker/model_input.py",
            "app/worker/image_inputs.py",
            "app/worker/image_options.py",
            "app/agents/_shared/registry.py",
            "app/agents/_shared/build.py",
            "app/worker/calls.py",
            "app/provider/client.py",
            "app/provider/model.py",
        ),
        limit=(20, 2_700),
        goal=(14, None),
    ),
]


@pytest.mark.parametrize("trip", TRIPS, ids=lambda trip: trip.heading)
def test_the_trip_is_no_longer_than_it_was(trip: Trip) -> None:
    assert len(set(trip.files)) == len(trip.files)
    assert len(trip.files) <= trip.limit[0], f"{len(trip.files)} files; the goal is {trip.goal[0]}"
    assert trip.lines <= trip.limit[1], f"the goal is {trip.goal[1]}"


@pytest.mark.parametrize("trip", TRIPS, ids=lambda trip: trip.heading)
def test_the_architecture_page_lists_the_same_files(trip: Trip) -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    _, found, rest = page.partition(f"## {trip.heading}\n")
    assert found
    assert tuple(re.findall(r"^\d+\. `([^`]+)`", rest.partition("\n## ")[0], re.MULTILINE)) == trip.files


def test_the_architecture_page_has_every_folder() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    folders = sorted(path.parent.name for path in (ROOT / "app").glob("*/__init__.py"))
    assert [name for name in folders if f"app/{name}/" not in page] == []


def test_the_glossary_is_in_alphabetical_order() -> None:
    terms = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)[1:]
    assert len(terms) > 20
    assert terms == sorted(set(terms))
