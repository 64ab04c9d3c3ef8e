"""Promises 10 and 11: what a link opens, for how long, and what guards the bytes on their way to a browser."""

import base64
import contextlib
import io
import json
import secrets
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import redis
from PIL import Image

from app.attachments.file_tokens import SERVED_TYPES
from app.attachments.links import LinkCache
from app.clock import SharedClock
from app.db import now
from tests import timeouts
from tests.app_server import ApiUser, AppServer, one, running_server
from tests.attachment_rows import insert_attachment
from tests.results import Results
from tests.servers import RedisServer, S3Server, gcs_server, redis_server, s3_server
from tests.service_account import service_account_file
from tests.tables import every_value

DATA = secrets.token_bytes(1000)
LONGEST_SECONDS = 300
Json = dict[str, Any]

GUARDS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "cross-origin-resource-policy": "cross-origin",
    "referrer-policy": "no-referrer",
}
# A type a row might claim -> the type it is served as, and how.
TYPES = {
    "image/png": ("image/png", "inline"),
    "image/jpeg": ("image/jpeg", "inline"),
    "image/webp": ("image/webp", "inline"),
    "image/gif": ("image/gif", "attachment"),
    "image/svg+xml": ("image/svg+xml", "attachment"),
    "application/zip": ("application/zip", "attachment"),
    "text/html": ("application/octet-stream", "attachment"),
    "application/xhtml+xml": ("application/octet-stream", "attachment"),
    "text/javascript": ("application/octet-stream", "attachment"),
    "image/png, text/html": ("application/octet-stream", "attachment"),
    "IMAGE/PNG": ("application/octet-stream", "attachment"),
    "": ("application/octet-stream", "attachment"),
}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_app(database_url: str, provider_url: str, tmp_path: Path, s3: S3Server) -> Generator[AppServer]:
    with running_server(database_url, provider_url, tmp_path, **_on(s3)) as server:
        yield server


@pytest.fixture(params=["own", "s3"])
def either(request: pytest.FixtureRequest) -> AppServer:
    """A house whose links are its own, and one whose links are those of an S3 server."""
    return cast(AppServer, request.getfixturevalue("server" if request.param == "own" else "s3_app"))


@pytest.mark.slow
@pytest.mark.proof
async def test_every_object_is_served_under_guard_as_a_type_we_know(
    server: AppServer, ada: ApiUser, results: Results
) -> None:
    answers = 0
    for claimed, (served, how) in TYPES.items():
        inserted = await insert_attachment(server, ada, DATA, mime_type=claimed, filename="a.html")
        for address in (inserted["url"], f"/v1/attachments/{inserted['object_id']}/content"):
            whole = ada.http.get(address)
            etag = whole.headers["ETag"]
            others = [
                ada.http.head(address),
                ada.http.get(address, headers={"Range": "bytes=5-9"}),
                ada.http.get(address, headers={"If-None-Match": etag}),
            ]
            assert [answer.status_code for answer in (whole, *others)] == [200, 200, 206, 304]
            for answer in (whole, *others):
                assert answer.headers.items() >= GUARDS.items()
                assert answer.headers["Content-Disposition"] == f'{how}; filename="a.html"'
                assert answer.headers.get("Content-Type") == (None if answer.status_code == 304 else served)
                answers += 1
    assert {served for served, _ in TYPES.values()} == SERVED_TYPES | {"application/octet-stream"}
    results(10, "our own objects", tried=f"{answers} answers, {len(TYPES)} types", kept=f"{answers} under guard")


@pytest.mark.proof
async def test_a_stores_link_pins_type_and_disposition_and_the_way_to_it_is_never_cached(
    s3_app: AppServer, results: Results
) -> None:
    ada = s3_app.sign_up()
    for claimed, (served, how) in TYPES.items():
        inserted = await insert_attachment(s3_app, ada, DATA, mime_type=claimed, filename="a.html")
        redirect = ada.http.get(f"/v1/attachments/{inserted['object_id']}/content")
        assert (redirect.status_code, redirect.headers["Cache-Control"]) == (307, "no-store")
        head = ada.http.head(f"/v1/attachments/{inserted['object_id']}/content")
        assert (head.status_code, head.headers["Content-Length"], head.headers["Content-Type"]) == (200, "1000", served)
        for link in (inserted["url"], redirect.headers["Location"]):
            answer = httpx.get(link)
            assert (answer.status_code, answer.content) == (200, DATA)
            assert (answer.headers["Content-Type"], answer.headers["Content-Disposition"].split(";")[0]) == (
                served,
                how,
            )
    links = 2 * len(TYPES)
    results(10, "a store's links", tried=f"{links} links, {len(TYPES)} types", kept=f"{links} pin type and disposition")


@pytest.mark.proof
async def test_a_link_reads_one_object_for_minutes_and_does_nothing_else(either: AppServer, results: Results) -> None:
    ada, stranger = either.sign_up(), either.sign_up("Stranger's")
    mine = await insert_attachment(either, ada, DATA, mime_type="image/png", filename="a.png")
    theirs = await insert_attachment(either, stranger, b"theirs", mime_type="image/png", filename="a.png")
    url = mine["url"]
    lifetime = datetime.fromisoformat(mine["url_expires_at"]) - now()
    assert timedelta(0) < lifetime <= timedelta(seconds=LONGEST_SECONDS)
    forged = _forged_own(url, theirs["url"]) if _is_own(url) else _forged_s3(url, theirs["url"])
    attempts = [*((method, url) for method in ("PUT", "POST", "DELETE", "PATCH")), *(("GET", link) for link in forged)]
    for method, link in attempts:
        assert link != url or method != "GET"
        answer = httpx.request(method, link, content=b"overwritten" if method != "GET" else None)
        assert answer.status_code // 100 == 4, (method, link, answer.status_code)
    assert httpx.get(url).content == DATA
    assert httpx.get(theirs["url"]).content == b"theirs"
    suite = f"abuse of {'our own links' if _is_own(url) else 'S3 links'}"
    results(11, suite, tried=f"{len(attempts)} attempts", kept=f"{len(attempts)} refused")


@pytest.mark.parametrize("off", [-3600, -60, 60, 3600])
async def test_a_process_whose_clock_is_wrong_makes_links_that_work_and_end_as_all_do(
    either: AppServer, monkeypatch: pytest.MonkeyPatch, off: int
) -> None:
    ada = either.sign_up()
    monkeypatch.setattr("app.clock._now", lambda: now() + timedelta(seconds=off))
    inserted = await insert_attachment(either, ada, DATA, mime_type="image/png", filename="a.png")
    redirect = ada.http.get(f"/v1/attachments/{inserted['object_id']}/content")
    for link in (inserted["url"], redirect.headers.get("Location", inserted["url"])):
        lifetime = _end_of(link) - now()
        assert timedelta(seconds=LONGEST_SECONDS / 2 - 5) <= lifetime <= timedelta(seconds=LONGEST_SECONDS)
        assert httpx.get(link).content == DATA
    assert datetime.fromisoformat(inserted["url_expires_at"]) == _end_of(inserted["url"])


def _end_of(link: str) -> datetime:
    """As whoever checks the link reads it."""
    if _is_own(link):
        return datetime.fromtimestamp(_facts(link.rpartition("/")[2].split(".")[0])[3], UTC)
    query = parse_qs(urlsplit(link).query)
    begin = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%S%z")
    return begin + timedelta(seconds=int(query["X-Amz-Expires"][0]))


async def test_after_a_delete_no_link_works(either: AppServer) -> None:
    ada = either.sign_up()
    inserted = await insert_attachment(either, ada, DATA, mime_type="image/png", filename="a.png")
    content = f"/v1/attachments/{inserted['object_id']}/content"
    again = ada.http.get(f"/v1/attachments/{inserted['object_id']}").json()["url"]
    etag = httpx.get(again).headers["ETag"]
    assert ada.http.delete(f"/v1/attachments/{inserted['object_id']}").status_code == 204
    assert [httpx.get(link).status_code for link in (inserted["url"], again)] == [404, 404]
    assert httpx.get(again, headers={"If-None-Match": etag}).status_code == 404
    assert [ada.http.request(method, content).status_code for method in ("GET", "HEAD")] == [404, 404]


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.parametrize("storage", ["own", "s3"])
def test_a_conversation_read_a_day_later_shows_every_image_though_no_link_was_kept(
    storage: str,
    request: pytest.FixtureRequest,
    database_url: str,
    provider_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    results: Results,
) -> None:
    settings = _on(request.getfixturevalue("s3")) if storage == "s3" else {}
    monkeypatch.setattr("app.runs.reader.HEARTBEAT_SECONDS", 0.2)
    with (
        redis_server(tmp_path / "redis") as broker,
        running_server(database_url, provider_url, tmp_path, redis_url=broker.url, **settings) as server,
    ):
        ada = server.sign_up()
        received = [ada.draw("Draw a red house")]
        conversation_id = one(received[0], "run.created")["run"]["conversation_id"]
        received += [ada.draw(f"Draw a {thing}", conversation_id=conversation_id) for thing in ("cat", "robot")]
        old = [one(events, "attachment.created")["attachment"] for events in received]
        run_ids = [one(events, "run.created")["run"]["id"] for events in received]
        values = assert_no_link_lies_in(broker, database_url, old)

        if storage == "own":  # an S3 server goes by a clock of its own; its links' end has a test in the contract
            for later, status in (
                (timedelta(seconds=149), 200),  # a link lives for half of LINK_TTL_SECONDS at least
                (timedelta(seconds=301), 404),
                (timedelta(days=1), 404),
            ):
                let_clock_show(monkeypatch, lambda later=later: now() + later)
                assert [httpx.get(each["url"]).status_code for each in old] == [status] * len(old)
        logged = [one(ada.events(run_id), "attachment.created")["attachment"] for run_id in run_ids]
        forget_streams(broker)
        replayed = [one(ada.events(run_id), "attachment.created")["attachment"] for run_id in run_ids]
        read = [each for message in ada.messages(conversation_id) for each in message["attachments"]]
        for again in (logged, replayed, read):
            assert {each["object_id"] for each in again} == {each["object_id"] for each in old}
            assert not {each["url"] for each in again} & {each["url"] for each in old} or storage == "s3"
            for each in again:
                assert len(httpx.get(each["url"]).content) == each["size_bytes"]
                content = ada.http.get(f"/v1/attachments/{each['object_id']}/content", follow_redirects=True)
                assert len(content.content) == each["size_bytes"]
        kept = f"0 links in {values} values of rows and events, {len(read)} images shown"
        results(11, f"a day later, {storage}", tried=f"{len(old)} images", kept=kept)


def let_clock_show(monkeypatch: pytest.MonkeyPatch, read: Callable[[], datetime]) -> None:
    def show(_: SharedClock) -> datetime:
        return read()

    monkeypatch.setattr(SharedClock, "now", show)


def assert_no_link_lies_in(broker: RedisServer, database_url: str, attachments: list[Json]) -> int:
    """Neither in a row of any table nor in the event log; the object's key does, so the look finds what is there.

    Returns how many values were looked at.
    """
    values = [value for column in every_value(database_url).values() for value in column]
    with cast(Any, redis.Redis).from_url(broker.url) as client:
        client.config_set("rdbcompression", "no")
        logged = [client.dump(name) for name in client.scan_iter("easel:run:*")]
    for name, stored in (("rows", values), ("events", logged)):
        assert any(attachments[0]["object_id"].encode() in value for value in stored), name
        kept = [value for value in stored if b"X-Amz-Signature" in value or b"/v1/files/" in value]
        assert kept == []
    return len(values) + len(logged)


def forget_streams(broker: RedisServer) -> None:
    with cast(Any, redis.Redis).from_url(broker.url) as client:
        assert client.delete(*client.scan_iter("easel:run:*"))


def _forged_own(url: str, theirs: str) -> list[str]:
    """What somebody who holds a link, and somebody else's, may make of them."""
    base, _, token = url.rpartition("/")
    payload, mac = token.split(".")
    their_payload, their_mac = theirs.rpartition("/")[2].split(".")
    key, filename, mime_type, expires = _facts(payload)
    rewritten = [
        _written(_facts(their_payload)[0], filename, mime_type, expires),
        _written(key.replace("uploads", "images"), filename, mime_type, expires),
        _written("../secret_key", filename, mime_type, expires),
        _written(key, "a.html", mime_type, expires),
        _written(key, filename, "text/html", expires),
        _written(key, filename, mime_type, expires + LONGEST_SECONDS),
        their_payload,
        f"{payload}=",
        f"{payload[:10]}!{payload[10:]}",
        "",
    ]
    signatures = [their_mac, mac[:-1], mac.upper(), f"{mac} ", f"{mac}.{mac}", _other(mac, 0), _other(mac, -1), "", "é"]
    tokens = [*(f"{text}.{mac}" for text in rewritten), *(f"{payload}.{text}" for text in signatures), payload, "null"]
    return [f"{base}/{token}" for token in tokens]


def _forged_s3(url: str, theirs: str) -> list[str]:
    parts, other = urlsplit(url), urlsplit(theirs)
    signature, their_signature = (parse_qs(each.query)["X-Amz-Signature"][0] for each in (parts, other))
    bucket, _, key = parts.path[1:].partition("/")
    assert parse_qs(parts.query)["X-Amz-Expires"] == [str(LONGEST_SECONDS)]
    paths = [other.path, f"/{bucket}/{key.replace('uploads', 'images')}", f"/{bucket}/", "/"]
    changes = [
        (signature, their_signature),
        (signature, _other(signature, 0)),
        (signature, _other(signature, -1)),
        (f"&X-Amz-Signature={signature}", ""),
        ("X-Amz-Expires=300", "X-Amz-Expires=3000"),
        ("response-content-type=image%2Fpng", "response-content-type=text%2Fhtml"),
        ("response-content-type=image%2Fpng&", ""),
        ("response-content-disposition=inline", "response-content-disposition=attachment"),
        ("host", "host%3Brange"),
        (parts.query, ""),
        (parts.query, other.query),
    ]
    changed = [url.replace(old, new) for old, new in changes]
    return [*(parts._replace(path=path).geturl() for path in paths), *changed]


def _facts(payload: str) -> list[Any]:
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


def _written(*facts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(facts).encode()).decode().rstrip("=")


def _other(text: str, index: int) -> str:
    """The hexadecimal text with another digit there."""
    digits = list(text)
    digits[index] = "0" if digits[index] != "0" else "1"
    return "".join(digits)


def _is_own(url: str) -> bool:
    return "/v1/files/" in url


def _on(s3: S3Server) -> Json:
    """The settings of a house that keeps its images there, in a bucket of its own."""
    return {
        "storage_provider": "minio",
        "minio_endpoint": s3.endpoint,
        "minio_access_key": s3.access_key,
        "minio_secret_key": s3.secret_key,
        "minio_secure": False,
        "storage_bucket": f"easel-{secrets.token_hex(6)}",
    }


def _with_storage(storage: str, request: pytest.FixtureRequest, directory: Path, stack: contextlib.ExitStack) -> Json:
    """Settings; where it has a server, until the stack ends."""
    if storage == "s3":
        return _on(request.getfixturevalue("s3"))
    if storage == "gcs":
        return {
            "storage_provider": "gcs",
            "storage_emulator_host": stack.enter_context(gcs_server(directory / "gcs")).url,
            "gcs_credentials_file": service_account_file(directory),
            "storage_bucket": "images",
        }
    return {}


@pytest.mark.parametrize("storage", ["own", "s3", "gcs"])
def test_a_link_stays_the_same_for_half_its_life(
    storage: str,
    request: pytest.FixtureRequest,
    database_url: str,
    provider_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with contextlib.ExitStack() as stack:
        settings = _with_storage(storage, request, tmp_path, stack)
        server = stack.enter_context(
            running_server(database_url, provider_url, tmp_path, link_ttl_seconds=100, **settings)
        )
        ada = server.sign_up()
        path = f"/v1/attachments/{one(ada.draw(), 'attachment.created')['attachment']['object_id']}"
        cache: LinkCache = server.uvicorn.app.state.link_cache

        def link_at(seconds: float) -> tuple[str, str]:
            let_clock_show(monkeypatch, lambda: datetime.fromtimestamp(seconds, UTC))
            view = ada.http.get(path).json()
            return view["url"], view["url_expires_at"]

        first = link_at(1_000_000_000)
        assert first[1] == "2001-09-09T01:48:20Z"
        cache.links.clear()  # as in another process
        assert link_at(1_000_000_000.1) == link_at(1_000_000_049.9) == first
        assert link_at(1_000_000_050) != first
        # Those of the half before are forgotten: the image, also as a download, and its smaller copies.
        assert len(cache.links) <= 5


@pytest.mark.parametrize("storage", ["own", "s3", "gcs"])
def test_a_browser_may_keep_an_image_for_as_long_as_its_link_stays_the_same(
    storage: str, request: pytest.FixtureRequest, database_url: str, provider_url: str, tmp_path: Path
) -> None:
    seconds = 100
    with contextlib.ExitStack() as stack:
        settings = _with_storage(storage, request, tmp_path, stack)
        server = stack.enter_context(
            running_server(database_url, provider_url, tmp_path, link_ttl_seconds=seconds, **settings)
        )
        ada, photo = server.sign_up(), io.BytesIO()
        Image.new("RGB", (300, 300)).save(photo, "PNG")
        uploaded = ada.http.post("/v1/attachments", files={"file": ("a.png", photo.getvalue())}).json()
        drawn = one(ada.draw(), "attachment.created")["attachment"]
        path = f"/v1/attachments/{drawn['object_id']}"
        timeouts.wait_until(lambda: ada.http.get(path).json()["variants"])
        drawn = ada.http.get(path).json()
        for shown in (uploaded, drawn, *drawn["variants"]):
            for url in {shown["url"], shown.get("download_url", shown["url"])}:
                assert _is_own(url) == (storage == "own")
                directive, _, age = httpx.get(url).headers["Cache-Control"].partition(", max-age=")
                assert directive == "private"
                assert seconds / 2 <= int(age) <= seconds


def test_links_are_forgotten_before_they_are_too_many(
    ada: ApiUser, server: AppServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.attachments.links.CACHED_LINKS", 3)
    drawn = [one(ada.draw(), "attachment.created")["attachment"]["object_id"] for _ in range(4)]
    for object_id in drawn:
        assert ada.http.get(f"/v1/attachments/{object_id}").status_code == 200
    # Those of the last one, with its smaller copies.
    assert len(server.uvicorn.app.state.link_cache.links) <= 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("storage", "seconds", "window"),
    [
        ("own", 1, 0.5),
        ("own", 3, 1.5),
        ("own", 10, 5.0),
        ("s3", 1, 0.5),
        ("s3", 3, 1.0),
        ("s3", 10, 5.0),
        ("gcs", 1, 0.5),
        ("gcs", 3, 1.0),
    ],
)
def test_a_link_lives_between_half_and_the_whole_of_its_time_however_short_that_is(
    storage: str,
    seconds: int,
    window: float,
    request: pytest.FixtureRequest,
    database_url: str,
    provider_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with contextlib.ExitStack() as stack:
        settings = _with_storage(storage, request, tmp_path, stack)
        server = stack.enter_context(
            running_server(database_url, provider_url, tmp_path, link_ttl_seconds=seconds, **settings)
        )
        ada = server.sign_up()
        path = f"/v1/attachments/{one(ada.draw(), 'attachment.created')['attachment']['object_id']}"
        seen: dict[int, set[tuple[str, str]]] = {}
        for fifth in range(15):
            after = fifth * window / 5 + 0.01
            moment = 1_000_000_500 + after
            let_clock_show(monkeypatch, lambda moment=moment: datetime.fromtimestamp(moment, UTC))
            view = ada.http.get(path).json()
            left = datetime.fromisoformat(view["url_expires_at"]).timestamp() - moment
            assert seconds / 2 <= left <= seconds
            seen.setdefault(int(after // window), set()).add((view["url"], view["download_url"]))
            if _is_own(view["url"]):
                assert httpx.get(view["url"]).status_code == 200
                # Over the edge of its last window it opens nothing.
                let_clock_show(monkeypatch, lambda end=moment + left: datetime.fromtimestamp(end, UTC))
                assert httpx.get(view["url"]).status_code == 404
    assert [len(links) for links in seen.values()] == [1, 1, 1]
    assert len({link for links in seen.values() for link in links}) == 3


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_download_is_the_same_object_under_its_name(either: AppServer, kind: str) -> None:
    ada = either.sign_up()
    made = one(ada.draw(image={"format": kind}), "attachment.created")["attachment"]
    shown, saved = httpx.get(made["url"]), httpx.get(made["download_url"])
    assert shown.content == saved.content
    assert shown.headers["content-type"] == saved.headers["content-type"] == made["mime_type"]
    assert saved.headers["content-disposition"] == f'attachment; filename="{made["filename"]}"'
    assert shown.headers["content-disposition"].startswith("inline" if kind == "png" else "attachment")
    again = ada.http.get(f"/v1/attachments/{made['object_id']}").json()
    # They change at half their lifetime, which may be now.
    assert again["url_expires_at"] != made["url_expires_at"] or (again["url"], again["download_url"]) == (
        made["url"],
        made["download_url"],
    )
