"""Parts of an image, and the word that the reader has it already, as RFC 9110 has them."""

import asyncio
import secrets

import httpx
import pytest

from tests.app_server import ApiUser, AppServer
from tests.attachment_rows import insert_attachment

pytestmark = pytest.mark.proof(10, "ranges")

DATA = secrets.token_bytes(1000)

# Headers of a GET -> the status and the bytes it is answered with; `{etag}` stands for the object's own.
RANGES: list[tuple[dict[str, str], int, slice | None]] = [
    ({}, 200, slice(None)),
    ({"Range": "bytes=0-99"}, 206, slice(100)),
    ({"Range": "bytes=100-100"}, 206, slice(100, 101)),
    ({"Range": "BYTES=900-"}, 206, slice(900, None)),
    ({"Range": "bytes=900-5000"}, 206, slice(900, None)),
    ({"Range": "bytes=0-"}, 206, slice(None)),
    ({"Range": "bytes=-1"}, 206, slice(-1, None)),
    ({"Range": "bytes=-5000"}, 206, slice(None)),
    ({"Range": "bytes=1000-"}, 416, None),
    ({"Range": "bytes=5000-6000"}, 416, None),
    ({"Range": "bytes=-0"}, 416, None),
    ({"Range": "bytes=0-1,5-6"}, 200, slice(None)),
    ({"Range": "bytes=9-1"}, 200, slice(None)),
    ({"Range": "bytes=-"}, 200, slice(None)),
    ({"Range": "bytes=a-b"}, 200, slice(None)),
    ({"Range": f"bytes={'9' * 5000}-"}, 200, slice(None)),
    ({"Range": "pages=1-2"}, 200, slice(None)),
    ({"Range": "bytes=0-99", "If-Range": "{etag}"}, 206, slice(100)),
    ({"Range": "bytes=0-99", "If-Range": "W/{etag}"}, 200, slice(None)),
    ({"Range": "bytes=0-99", "If-Range": '"another"'}, 200, slice(None)),
    ({"Range": "bytes=0-99", "If-Range": "Wed, 21 Oct 2015 07:28:00 GMT"}, 200, slice(None)),
    ({"If-None-Match": "{etag}"}, 304, None),
    ({"If-None-Match": 'W/"another", W/{etag}'}, 304, None),
    ({"If-None-Match": "*"}, 304, None),
    ({"If-None-Match": "{etag}", "Range": "bytes=0-99"}, 304, None),
    ({"If-None-Match": '"another"'}, 200, slice(None)),
]


async def test_ranges_and_conditions_are_answered_as_http_says(server: AppServer, ada: ApiUser) -> None:
    inserted = await insert_attachment(server, ada, DATA, mime_type="image/png", filename="a.png")
    content = f"/v1/attachments/{inserted['object_id']}/content"
    etags = {content: f'"{inserted["sha256"]}"', inserted["url"]: server.anyone().get(inserted["url"]).headers["ETag"]}
    for address, etag in etags.items():
        for headers, status, part in RANGES:
            asked = {name: value.replace("{etag}", etag) for name, value in headers.items()}
            answer = ada.http.get(address, headers=asked)
            assert (answer.status_code, answer.content if part else None) == (status, part and DATA[part]), headers
            assert answer.headers.get("Content-Range") == _content_range(status, part), headers
            if status != 416:
                assert (answer.headers["ETag"], answer.headers["Accept-Ranges"]) == (etag, "bytes")
            assert status == 304 or int(answer.headers["Content-Length"]) == len(answer.content)


async def test_head_tells_what_there_is_and_sends_none_of_it(server: AppServer, ada: ApiUser) -> None:
    inserted = await insert_attachment(server, ada, DATA, mime_type="image/png", filename="a.png")
    for address in (inserted["url"], f"/v1/attachments/{inserted['object_id']}/content"):
        whole = ada.http.get(address)
        received = ada.http.head(address, headers={"Range": "bytes=0-9"})
        assert (received.status_code, received.content) == (200, b"")
        assert _lasting(received) == _lasting(whole)


def test_no_more_is_read_than_is_sent(own_server: AppServer, monkeypatch: pytest.MonkeyPatch) -> None:
    store = own_server.uvicorn.app.state.store
    parts: list[range | None] = []
    get = store.get

    async def recorded(key: str, part: range | None = None) -> bytes:
        parts.append(part)
        return await get(key, part)

    ada = own_server.sign_up("Ada's")
    inserted = asyncio.run(insert_attachment(own_server, ada, DATA, mime_type="image/png", filename="a.png"))
    monkeypatch.setattr(store, "get", recorded)
    for address in (inserted["url"], f"/v1/attachments/{inserted['object_id']}/content"):
        etag = ada.http.head(address).headers["etag"]
        assert ada.http.get(address, headers={"If-None-Match": etag}).status_code == 304
        assert ada.http.get(address, headers={"Range": "bytes=5000-"}).status_code == 416
        assert ada.http.get(address, headers={"Range": "bytes=500-500"}).content == DATA[500:501]
    assert parts == [range(500, 501)] * 2


def _lasting(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id")}


def _content_range(status: int, part: slice | None) -> str | None:
    if status == 416:
        return f"bytes */{len(DATA)}"
    if status != 206 or part is None:
        return None
    start, stop, _ = part.indices(len(DATA))
    return f"bytes {start}-{stop - 1}/{len(DATA)}"
