"""However many images wait to be stored, four are in memory, and no run is kept behind another's thousand."""

import asyncio
import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from app.images.inspect import UnreadableImage
from app.provider import image_bytes
from app.provider.image_bytes import ImageBytes, SpillFile
from app.worker.image_intake import AT_ONCE, OF_ONE_RUN, ImageIntake, RunSlots

IMAGES = [os.urandom(1_000) for _ in range(40)]


class Storing:
    """Takes images in and keeps each until `go_on` is set."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.admitted: list[bytes] = []
        self.most = 0
        self._now = 0

    async def store(self, slots: RunSlots, content: ImageBytes) -> None:
        async with slots.admit(content) as data:
            self.admitted.append(data)
            self._now += 1
            self.most = max(self.most, self._now)
            await self.go_on.wait()
            self._now -= 1


@pytest.fixture
def intake(tmp_path: Path) -> Generator[ImageIntake]:
    intake = ImageIntake(tmp_path)
    yield intake
    intake.close()


@pytest.mark.anyio
async def test_four_images_of_a_worker_are_in_memory_and_the_others_in_a_file(intake: ImageIntake) -> None:
    storing, contents = Storing(), [image(data) for data in IMAGES]
    runs = [intake.images.of_run() for _ in range(4)]
    async with asyncio.TaskGroup() as group:
        for number, content in enumerate(contents):
            group.create_task(storing.store(runs[number % 4], content))
        await until(lambda: sum(content.is_spilled for content in contents) == len(contents) - AT_ONCE)
        assert len(storing.admitted) == AT_ONCE
        assert sum(content.data is not None for content in contents) == AT_ONCE
        storing.go_on.set()
    assert storing.most == AT_ONCE
    assert sorted(storing.admitted) == sorted(IMAGES)


@pytest.mark.anyio
async def test_a_run_with_many_images_leaves_a_place_to_another(intake: ImageIntake) -> None:
    storing, many, other = Storing(), intake.images.of_run(), intake.images.of_run()
    contents = [image(data) for data in IMAGES]
    async with asyncio.TaskGroup() as group:
        for content in contents:
            group.create_task(storing.store(many, content))
        await until(lambda: sum(content.is_spilled for content in contents) == len(contents) - OF_ONE_RUN)
        group.create_task(storing.store(other, image(b"the other's")))
        await until(lambda: b"the other's" in storing.admitted)
        storing.go_on.set()


@pytest.mark.anyio
async def test_the_file_is_emptied_when_nothing_in_it_is_needed(
    intake: ImageIntake, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than one round's, because a thread may let go of an image a moment later.
    monkeypatch.setattr(image_bytes, "MAX_SPILLED_BYTES", len(IMAGES) * 1_000 * 4)
    for _ in range(12):
        await _store_all(intake)


async def _store_all(intake: ImageIntake) -> None:
    storing, slots = Storing(), intake.images.of_run()
    contents = [image(data) for data in IMAGES]
    async with asyncio.TaskGroup() as group:
        for content in contents:
            group.create_task(storing.store(slots, content))
        await until(lambda: sum(content.is_spilled for content in contents) == len(contents) - OF_ONE_RUN)
        storing.go_on.set()
    assert sorted(storing.admitted) == sorted(IMAGES)


@pytest.mark.anyio
async def test_what_the_file_does_not_accept_waits_in_memory(
    intake: ImageIntake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_bytes, "MAX_SPILLED_BYTES", 5_500)
    storing, slots = Storing(), intake.images.of_run()
    storing.go_on.set()
    async with asyncio.TaskGroup() as group:
        for data in IMAGES:
            group.create_task(storing.store(slots, image(data)))
    assert sorted(storing.admitted) == sorted(IMAGES)


@pytest.mark.anyio
@pytest.mark.parametrize(("size", "reason"), [(0, "base64 is invalid"), (99, "too many bytes")])
async def test_an_image_without_bytes_says_why(intake: ImageIntake, size: int, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        async with intake.images.of_run().admit(ImageBytes(None, size)):
            pytest.fail("It was admitted.")


def test_a_copy_equals_what_was_spilled_and_another_image_does_not(tmp_path: Path) -> None:
    file = SpillFile(tmp_path)
    first, copy, other = image(IMAGES[0]), image(IMAGES[0]), image(IMAGES[1])
    first.spill(file)
    assert first.read() == IMAGES[0]
    for one, two in ((first, copy), (copy, first)):
        assert one.equals(two)
        assert not one.equals(other)
    file.close()


def image(data: bytes) -> ImageBytes:
    return ImageBytes(data, len(data))


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0.001)
