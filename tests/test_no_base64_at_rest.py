"""An image's bytes lie in the object store and nowhere else: not in rows, streams, logs or the next request."""

import logging
import re
from base64 import b64encode
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

from tests.app_server import ApiUser, AppServer, one, running_server
from tests.redis_contents import everything_in
from tests.servers import RedisServer, redis_server
from tests.tables import every_value

LARGEST_VALUE = 8 * 1024
LARGEST_REQUEST = 16 * 1024
MEGABYTE = 1024 * 1024
# No id, hash, link or sentence of ours has a run like this.
LOOKS_LIKE_BASE64 = re.compile(rb"[A-Za-z0-9+/]{512,}")


@pytest.fixture
def redis_of_our_own(tmp_path: Path) -> Generator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def server(database_url: str, provider_url: str, tmp_path: Path, redis_of_our_own: RedisServer) -> Generator[AppServer]:
    with running_server(database_url, provider_url, tmp_path, redis_url=redis_of_our_own.url) as server:
        yield server


def test_a_big_image_leaves_no_bytes_outside_the_store(
    ada: ApiUser,
    database_url: str,
    provider_url: str,
    redis_of_our_own: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    events = ada.draw("Draw a red house [offline: big=3]")
    image = httpx.get(one(events, "attachment.created")["attachment"]["url"]).content
    assert len(image) >= 3 * MEGABYTE
    again = "And now with a green door"
    ada.draw(again, conversation_id=one(events, "run.created")["run"]["conversation_id"])

    for name, column in every_value(database_url).items():
        for value in column:
            assert len(value) <= LARGEST_VALUE, name
            assert not holds(value, image), name
    in_redis = everything_in(redis_of_our_own.url)
    assert any(name.startswith("easel:run:") for name, _ in in_redis)
    assert [name for name, value in in_redis if holds(value, image)] == []
    received = [repr(record.__dict__).encode() for record in caplog.records]
    assert received
    assert [line[:200] for line in received if holds(line, image)] == []
    assert size_of_request(provider_url, again) <= LARGEST_REQUEST


def test_the_look_would_find_an_image() -> None:
    image = bytes(range(256)) * 40
    assert holds(b64encode(image), image)
    assert holds(b'{"result": "' + b64encode(image[:600]) + b'"}', image)
    assert holds(b"before" + image + b"after", image)
    assert not holds(b"an ordinary sentence " * 100, image)


def holds(value: bytes, image: bytes) -> bool:
    """Whether there is image base64 in it, or a piece of this very image."""
    middle = len(image) // 2
    return LOOKS_LIKE_BASE64.search(value) is not None or image[middle : middle + 64] in value


def size_of_request(provider_url: str, words: str) -> int:
    """Bytes of the newest request for a response that holds these words."""
    requests = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    return [asked["body_bytes"] for asked in requests if words in str(asked["body"])][-1]
