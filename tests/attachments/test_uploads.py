"""Images that users send: accepted, cleaned, listed and deleted; or refused by field, given and allowed."""

import http.client
import io
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from PIL import Image

from app.attachments.uploads import clean_stem
from app.images import child, cleaning, masks
from app.images.inspect import UnreadableImage
from tests import timeouts
from tests.app_server import ApiUser, AppServer, running_server
from tests.servers import Proxy, ProxyMode, s3_server

MEGABYTE = 1024 * 1024
PATH = "/v1/attachments"


def test_a_sent_image_is_stored_listed_read_and_deleted(server: AppServer, ada: ApiUser) -> None:
    answer = send(ada, image("PNG"), "C:\\images\\My h\u202eoliday.JPEG", "text/html")
    assert answer.status_code == 201, answer.text
    sent = answer.json()
    assert answer.headers["location"] == f"{PATH}/{sent['object_id']}"
    facts: dict[str, Any] = {
        "kind": "upload",
        "status": "stored",
        "filename": "My holiday.png",
        "mime_type": "image/png",
        "options": {},
    }
    assert facts.items() <= sent.items()
    assert {sent[name] for name in ("agent_key", "conversation_id", "run_id", "message_id", "tool_call_id")} == {None}
    assert (sent["width"], sent["height"]) == (96, 64)
    stored = httpx.get(sent["url"])
    assert (stored.headers["content-type"], len(stored.content)) == ("image/png", sent["size_bytes"])
    assert ids_of(ada.http.get(PATH, params={"kind": "upload"})) == [sent["object_id"]]
    assert ids_of(ada.http.get(PATH, params={"kind": "generated"})) == []
    assert ada.http.delete(f"{PATH}/{sent['object_id']}").status_code == 204
    assert httpx.get(sent["url"]).status_code == 404
    nothing_is_left(server, ada)


def test_a_stranger_can_neither_read_nor_use_nor_delete_it(ada: ApiUser, stranger: ApiUser) -> None:
    object_id = send(ada, image("PNG")).json()["object_id"]
    assert ids_of(stranger.http.get(PATH)) == []
    never = "01890000-0000-7000-8000-000000000000"
    calls: list[tuple[str, str, dict[str, Any] | None]] = [
        ("GET", f"{PATH}/{{id}}", None),
        ("GET", f"{PATH}/{{id}}/content", None),
        ("DELETE", f"{PATH}/{{id}}", None),
        ("POST", "/v1/runs", {"input": "Look", "attachments": ["{id}"]}),
    ]
    for method, path, body in calls:
        answers = [
            stranger.http.request(method, path.format(id=given), json=body and {**body, "attachments": [given]})
            for given in (object_id, never)
        ]
        assert [answer.status_code for answer in answers] == [404, 404], path
        received = [{**answer.json(), "request_id": ""} for answer in answers]
        assert received[0] == received[1]
    assert ada.http.get(f"{PATH}/{object_id}").json()["status"] == "stored"


# Starlette leaves the file of a form that is cut off to the garbage collector.
@pytest.mark.filterwarnings("ignore:Unclosed file <tempfile.SpooledTemporaryFile")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function SpooledTemporaryFile.__del__")
def test_an_invalid_form_is_rejected_by_field(server: AppServer, ada: ApiUser) -> None:
    good = ("a.png", image("PNG"), "image/png")
    refusals: list[tuple[int, str, str, dict[str, Any]]] = [
        (415, "file", "PNG, JPEG and WebP", {"files": {"file": ("a.png", b"<svg/>", "image/png")}}),
        (415, "content-type", "multipart/form-data", {"json": {"file": "a"}}),
        (422, "file", "send one whole image", {"content": b"--x--\r\n", "headers": FORM_X}),
        (422, "file", "empty", {"files": {"file": ("a.png", b"", "image/png")}}),
        (422, "file", "one image", {"files": [("file", good), ("file", good)]}),
        (422, "image", "nothing else", {"files": {"image": good}}),
        (422, "title", "nothing else", {"files": {"file": good}, "data": {"title": "Mine"}}),
        (422, "file", "send one whole image", {"content": PART_X + b"abc", "headers": FORM_X}),
        (422, "file", "cannot be read", {"content": b"never a boundary", "headers": FORM_X}),
        (
            422,
            "file",
            "cannot be read",
            {"files": {"file": ("a.png", image("PNG").replace(b"IHDR", b"IHDX"), "x/y")}},
        ),
        (422, "file", "animated", {"files": {"file": ("a.webp", animation(), "image/webp")}}),
    ]
    for status, field, allowed, request in refusals:
        answer = ada.http.post(PATH, **request)
        assert answer.status_code == status, f"{allowed}: {answer.text}"
        assert answer.headers["content-type"] == "application/problem+json"
        (fault,) = answer.json()["errors"]
        assert fault["field"] == field
        assert allowed in fault["message"]
    nothing_is_left(server, ada)


FORM_X = {"Content-Type": "multipart/form-data; boundary=x"}
PART_X = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'


def test_a_file_over_the_limit_is_refused_by_its_length_and_as_it_comes(
    database_url: str, provider_url: str, tmp_path: Path
) -> None:
    with running_server(database_url, provider_url, tmp_path, upload_max_mb=1) as server:
        ada = server.sign_up()
        received = send(ada, bytes(2 * MEGABYTE))
        assert received.status_code == 413
        assert received.json()["detail"] == f"The file may have {MEGABYTE} bytes at most (UPLOAD_MAX_MB)."
        assert received.json()["errors"][0]["field"] == "file"
        assert "UPLOAD_MAX_MB" in received.json()["detail"]
        assert received.json()["errors"][0]["given"].startswith("a form of 209")
        just_over = send(ada, b"\x89PNG\r\n\x1a\n" + bytes(MEGABYTE))
        assert (just_over.status_code, just_over.json()["errors"][0]["field"]) == (413, "file")
        assert sent_before_refusal(server, ada) < MEGABYTE + 64 * 1024
        assert ada.http.post("/v1/runs", content=bytes(MEGABYTE + 1)).status_code == 413
        nothing_is_left(server, ada)


def sent_before_refusal(server: AppServer, ada: ApiUser) -> int:
    """How many bytes of an endless body of unknown length went out before the answer was there: 413."""
    connection = http.client.HTTPConnection(server.base_url.removeprefix("http://"), timeout=10)
    connection.putrequest("POST", PATH)
    for name, value in {**FORM_X, "Transfer-Encoding": "chunked"}.items():
        connection.putheader(name, value)
    connection.putheader("Authorization", ada.http.headers["Authorization"])
    connection.endheaders()
    sent = 0
    pieces = [PART_X, bytes(MEGABYTE - len(PART_X))]
    while True:
        for piece in pieces:
            connection.sock.settimeout(10)
            connection.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            sent += len(piece)
        connection.sock.settimeout(0.05)
        with suppress(TimeoutError):
            head = connection.sock.recv(1_000)
            assert head.startswith(b"HTTP/1.1 413")
            connection.close()
            return sent
        pieces = [bytes(8 * 1024)]


def test_nobody_is_refused_before_the_body_is_read(server: AppServer) -> None:
    connection = http.client.HTTPConnection(server.base_url.removeprefix("http://"), timeout=5)
    connection.putrequest("POST", PATH)
    connection.putheader("Content-Type", FORM_X["Content-Type"])
    connection.putheader("Content-Length", str(MEGABYTE))
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


def test_a_key_without_the_scope_may_not_send(ada: ApiUser) -> None:
    key = ada.http.post("/v1/api-keys", json={"name": "Reader", "scopes": ["attachments:read"]}).json()["key"]
    answer = ada.http.post(PATH, files={"file": ("a.png", image("PNG"))}, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 403


@pytest.mark.slow
def test_slow_senders_hold_no_connection_of_the_database(database_url: str, provider_url: str, tmp_path: Path) -> None:
    with running_server(database_url, provider_url, tmp_path, database_pool_size=2, tenant_uploads_mb=400) as server:
        ada = server.sign_up()
        go_on = threading.Event()
        begun: list[bool] = []

        def body() -> Iterator[bytes]:
            yield PART_X
            begun.append(True)
            go_on.wait(20)
            yield image("PNG") + b"\r\n--x--\r\n"

        answers: list[int] = []

        def slowly() -> None:
            headers = {"Authorization": str(ada.http.headers["Authorization"]), **FORM_X}
            answers.append(
                httpx.post(f"{server.base_url}{PATH}", content=body(), headers=headers, timeout=60).status_code
            )

        senders = [threading.Thread(target=slowly) for _ in range(8)]
        for sender in senders:
            sender.start()
        deadline = time.monotonic() + timeouts.PATIENCE
        while len(begun) < len(senders):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        began = time.monotonic()
        assert ada.http.get("/v1/me").status_code == 200
        assert time.monotonic() - began < 1
        go_on.set()
        for sender in senders:
            sender.join()
        assert answers == [201] * len(senders)
        assert temp_dirs_of(server) == []
        # No other user of the machine may look into it.
        assert stat.S_IMODE((server.settings.data_dir / "uploads").stat().st_mode) == 0o700


def test_a_sender_who_leaves_leaves_nothing_behind(server: AppServer, ada: ApiUser) -> None:
    connection = http.client.HTTPConnection(server.base_url.removeprefix("http://"), timeout=5)
    headers = {"Authorization": str(ada.http.headers["Authorization"]), "Content-Length": str(MEGABYTE), **FORM_X}
    connection.request("POST", PATH, body=io.BytesIO(PART_X + bytes(1000)), headers=headers)
    connection.close()
    answer = send(ada, image("PNG"))
    assert answer.status_code == 201
    assert ada.http.delete(f"{PATH}/{answer.json()['object_id']}").status_code == 204
    nothing_is_left(server, ada)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["refuse", "hang", "reset_mid"])
def test_where_the_store_fails_nothing_is_kept_and_trying_again_works(
    database_url: str, provider_url: str, tmp_path: Path, mode: ProxyMode
) -> None:
    with s3_server(tmp_path / "s3") as s3, Proxy(s3.endpoint) as proxy:
        minio = {"minio_access_key": s3.access_key, "minio_secret_key": s3.secret_key, "minio_secure": False}
        storage: dict[str, Any] = {"storage_provider": "minio", "minio_endpoint": proxy.endpoint, **minio}
        with running_server(database_url, provider_url, tmp_path / "data", **storage) as server:
            ada = server.sign_up()
            proxy.reset_after = 100
            proxy.mode = mode
            began = time.monotonic()
            answer = send(ada, image("PNG"))
            took = time.monotonic() - began
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) > 0
            assert took < 10
            nothing_is_left(server, ada, tmp_path)
            proxy.mode = "pass"
            assert send(ada, image("PNG")).status_code == 201
            proxy.mode = "refuse"  # lets the threads go that still wait


@pytest.mark.proof(9, "masks")
@pytest.mark.parametrize(
    ("mode", "draw", "mask"),
    [
        ("RGBA", lambda: Image.new("RGBA", (64, 64), (255, 0, 0, 254)), "alpha"),
        ("RGBA", lambda: Image.new("RGBA", (64, 64), (255, 0, 0, 255)), None),
        ("L", lambda: halves("L", 0, 255), "black_and_white"),
        ("RGB", lambda: halves("RGB", (9, 9, 9), (246, 246, 246)), "black_and_white"),
        ("RGB", lambda: halves("RGB", (0, 0, 120), (255, 255, 255)), None),
        ("L", lambda: Image.new("L", (64, 64), 255), None),
        ("L", lambda: halves("L", 0, 200), None),
    ],
)
async def test_what_can_serve_as_a_mask_is_reported(tmp_path: Path, mode: str, draw: Any, mask: str | None) -> None:
    image = cast(Image.Image, draw())
    source, target = tmp_path / "source", tmp_path / "target"
    image.save(source, "PNG")
    cleaned = await cleaning.clean(source, target, max_bytes=MEGABYTE)
    assert cleaned.mask == mask
    with Image.open(target) as written:
        assert (written.mode, written.tobytes()) == (mode, image.tobytes())


@pytest.mark.proof(9, "masks")
async def test_a_black_and_white_image_becomes_a_mask_whose_black_is_transparent() -> None:
    buffer = BytesIO()
    halves("RGB", (0, 0, 0), (255, 255, 255)).save(buffer, "PNG")
    with Image.open(BytesIO(await masks.to_alpha(buffer.getvalue()))) as mask:
        assert (mask.format, mask.mode, mask.size) == ("PNG", "RGBA", (64, 64))
        assert (mask.getpixel((0, 0)), mask.getpixel((63, 63))) == ((0, 0, 0, 0), (255, 255, 255, 255))


@pytest.mark.proof(9, "masks")
async def test_a_mask_is_decoded_in_a_child() -> None:
    with pytest.raises(UnreadableImage, match="more time or memory than allowed"):
        await masks.to_alpha(b"\x89PNG\r\n\x1a\n and no more")


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_an_image_is_set_upright(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("L", (32, 16))
    upright.paste(255, (0, 0, 8, 8))
    turns = Image.Transpose
    # What a camera held that way would have written: the inverse of what EXIF asks for.
    turned = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_90,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    taken = upright.transpose(turned[orientation]) if orientation > 1 else upright
    taken.save(tmp_path / "source", "PNG", exif=exif)
    cleaned = await cleaning.clean(tmp_path / "source", tmp_path / "target", max_bytes=MEGABYTE)
    with Image.open(tmp_path / "target") as written:
        assert (cleaned.width, cleaned.height) == written.size == (32, 16)
        assert written.tobytes() == upright.tobytes()


async def test_sixteen_bits_become_eight_and_not_white(tmp_path: Path) -> None:
    sixteen = b"".join(bytes([0, shade]) for shade in Image.linear_gradient("L").tobytes())
    Image.frombytes("I;16", (256, 256), sixteen).save(tmp_path / "source", "PNG")
    await cleaning.clean(tmp_path / "source", tmp_path / "target", max_bytes=MEGABYTE)
    with Image.open(tmp_path / "target") as written:
        assert written.tobytes() == Image.linear_gradient("L").tobytes()


async def test_an_image_that_grows_over_the_limit_is_refused(tmp_path: Path) -> None:
    Image.effect_noise((256, 256), 90).save(tmp_path / "source", "PNG")
    with pytest.raises(cleaning.TooLargeWhenCleaned, match="10000 bytes"):
        await cleaning.clean(tmp_path / "source", tmp_path / "target", max_bytes=10_000)


async def test_a_child_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "WALL_SECONDS", 0.01)
    (tmp_path / "source").write_bytes(image("PNG"))
    with pytest.raises(cleaning.UnreadableImage, match="seconds"):
        await cleaning.clean(tmp_path / "source", tmp_path / "target", max_bytes=MEGABYTE)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", ""),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\Ada\\cat.JPEG", "cat"),
        ("page.html\r\nX: y", "page"),
        ("\u202egnp.exe\0", "gnp"),
        ("..", ""),
        ("Katze „Müller“.webp", "Katze „Müller“"),
        ("x" * 300 + ".png", "x" * 115),
    ],
)
def test_the_visible_name_of_a_file_is_kept(given: str, kept: str) -> None:
    assert clean_stem(given) == kept


def image(name: str) -> bytes:
    buffer = BytesIO()
    Image.radial_gradient("L").crop((0, 0, 96, 64)).convert("RGB").save(buffer, name)
    return buffer.getvalue()


def animation() -> bytes:
    buffer = BytesIO()
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (0, 255)]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def halves(mode: str, left: Any, right: Any) -> Image.Image:
    image = Image.new(mode, (64, 64), left)
    image.paste(right, (32, 0, 64, 64))
    return image


def send(user: ApiUser, data: bytes, name: str = "a.png", mime_type: str = "image/png") -> httpx.Response:
    return user.http.post(PATH, files={"file": (name, data, mime_type)})


def ids_of(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [row["object_id"] for row in answer.json()["data"]]


def temp_dirs_of(server: AppServer) -> list[Path]:
    """The directories of the uploads under way."""
    directory = server.settings.data_dir / "uploads"
    return list(directory.iterdir()) if directory.is_dir() else []


def nothing_is_left(server: AppServer, user: ApiUser, *places: Path) -> None:
    """Neither rows nor files, here and in `places`."""
    assert ids_of(user.http.get(PATH)) == []
    assert temp_dirs_of(server) == []
    for place in (server.settings.data_dir, *places):
        assert [path for path in place.rglob("*.png") if path.is_file()] == []


def wait_until(true: Any) -> None:
    deadline = time.monotonic() + timeouts.PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_mask_is_kept_apart_from_the_images(ada: ApiUser, stranger: ApiUser, colleague: ApiUser) -> None:
    hole = Image.new("RGBA", (96, 64), (255, 255, 255, 255))
    hole.paste((0, 0, 0, 0), (16, 16, 48, 48))
    buffer = BytesIO()
    hole.save(buffer, "PNG")
    files = {"file": ("hole.png", buffer.getvalue())}
    mask = ada.http.post(PATH, files=files, data={"purpose": "mask"}).json()
    photo = ada.http.post(PATH, files={"file": ("photo.png", image("PNG"))}).json()
    said = ada.http.post(PATH, files={"file": ("b.png", image("PNG"))}, data={"purpose": "image"}).json()
    assert [one["purpose"] for one in (mask, photo, said)] == ["mask", "image", "image"]

    def listed(user: ApiUser, **query: str) -> list[str]:
        return [one["object_id"] for one in user.http.get(PATH, params=query).json()["data"]]

    assert listed(ada) == listed(ada, purpose="image") == [said["object_id"], photo["object_id"]]
    assert listed(ada, purpose="mask") == listed(ada, purpose="mask", kind="upload") == [mask["object_id"]]
    assert listed(stranger, purpose="mask") == listed(colleague, purpose="mask") == []
    body = {"input": "Change it", "edit": photo["object_id"], "mask": mask["object_id"], "agent_key": "designer"}
    assert ada.http.post("/v1/runs", json=body).status_code == 202
    unknown = ada.http.get(PATH, params={"purpose": "photo"})
    assert (unknown.status_code, unknown.json()["errors"][0]["message"]) == (422, "one of image, mask")
    for bad in ({"purpose": "photo"}, {"purpose": ["image", "mask"]}):
        refused = ada.http.post(PATH, files=files, data=cast(Any, bad))
        (fault,) = refused.json()["errors"]
        assert (refused.status_code, fault["field"]) == (422, "purpose")
        assert "one of image, mask" in fault["message"]
    as_file = ada.http.post(PATH, files={**files, "purpose": ("purpose", b"mask")})
    assert (as_file.status_code, as_file.json()["errors"][0]["field"]) == (422, "purpose")


def test_an_upload_is_described_by_the_name_of_its_file(ada: ApiUser) -> None:
    made = ada.http.post(PATH, files={"file": ("My  house.png", image("PNG"))}).json()
    assert (made["alt"], made["filename"]) == ("My house.png", "My  house.png")
