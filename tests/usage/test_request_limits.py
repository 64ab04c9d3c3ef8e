"""`GET /v1/limits` tells what one upload and one run may bring: the numbers and types told are those that refuse."""

from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image

from app.images.formats import KINDS
from tests.app_server import ApiUser, AppServer, running_server
from tests.usage.books import Json

# Unlike the defaults, so that a default told in their place is noticed.
GIVEN: dict[str, Any] = {"upload_max_mb": 0.25, "image_max_partial_images": 1, "link_ttl_seconds": 200}


@pytest.fixture(scope="module")
def strict_server(
    postgres: Any, migrated_template: str, provider_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[AppServer]:
    directory = tmp_path_factory.mktemp("request-limits")
    with (
        postgres.database(migrated_template) as database_url,
        running_server(database_url, provider_url, directory, **GIVEN) as server,
    ):
        yield server


@pytest.fixture
def server(strict_server: AppServer) -> AppServer:
    return strict_server


def told(user: ApiUser) -> Json:
    answer = user.http.get("/v1/limits")
    assert answer.status_code == 200, answer.text
    return answer.json()


def upload(user: ApiUser, data: bytes) -> tuple[int, str | None]:
    """The status, and the problem's code."""
    answer = user.http.post("/v1/attachments", files={"file": ("a", data)})
    return answer.status_code, answer.json().get("code")


def estimate(user: ApiUser, **fields: Any) -> int:
    body = {"input": "Draw a house", "agent_key": "designer", **fields}
    return user.http.post("/v1/runs/estimate", json=body).status_code


def image(kind: str, size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = BytesIO()
    Image.new("1" if kind == "PNG" else "L", size).save(buffer, kind)
    return buffer.getvalue()


def test_everybody_is_told_the_same(ada: ApiUser, stranger: ApiUser, colleague: ApiUser) -> None:
    for user in (ada, stranger, colleague):
        limits = told(user)
        assert {name: limits[name] for name in ("uploads", "runs", "link_seconds")} == {
            "uploads": {
                "types": ["image/png", "image/jpeg", "image/webp"],
                "max_bytes": 256 * 1024,
                "max_pixels": 48 * 1024**2,
            },
            "runs": {"max_attachments": 16, "max_characters": 32_000, "max_partial_images": 1},
            "link_seconds": 200,
        }


def test_an_upload_of_a_type_that_is_told_is_accepted_and_of_no_other(ada: ApiUser) -> None:
    types = told(ada)["uploads"]["types"]
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>'
    samples = {"image/svg+xml": svg} | {f"image/{kind.lower()}": image(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")}
    assert samples.keys() == {kind.mime_type for kind in KINDS}
    others = {f"image/{kind.lower()}": image(kind) for kind in ("BMP", "TIFF")}
    for mime_type, data in (samples | others).items():
        expected = (201, None) if mime_type in types else (415, "unsupported_type")
        assert upload(ada, data) == expected, mime_type


def test_an_upload_of_one_byte_more_is_too_large(ada: ApiUser) -> None:
    allowed = told(ada)["uploads"]["max_bytes"]
    # What follows the last chunk of a PNG is no part of the image.
    padded = image("PNG").ljust(allowed, b"\0")
    assert upload(ada, padded) == (201, None)
    assert upload(ada, padded + b"\0")[0] == 413


def test_an_upload_of_one_row_of_pixels_more_is_refused(ada: ApiUser) -> None:
    width = 8192
    rows, rest = divmod(told(ada)["uploads"]["max_pixels"], width)
    assert rest == 0
    assert upload(ada, image("PNG", (width, rows))) == (201, None)
    assert upload(ada, image("PNG", (width, rows + 1))) == (422, "image_unreadable")


def test_a_run_with_one_character_more_is_refused(ada: ApiUser) -> None:
    allowed = told(ada)["runs"]["max_characters"]
    assert estimate(ada, input="x" * allowed) == 200
    assert estimate(ada, input="x" * (allowed + 1)) == 422


def test_a_run_with_one_attachment_more_is_refused(ada: ApiUser) -> None:
    allowed = told(ada)["runs"]["max_attachments"]
    ids = [str(uuid4()) for _ in range(allowed + 1)]
    # So many are looked for, and are not there.
    assert estimate(ada, attachments=ids[:-1]) == 404
    assert estimate(ada, attachments=ids) == 422


def test_a_run_with_one_preview_more_is_refused(ada: ApiUser) -> None:
    allowed = told(ada)["runs"]["max_partial_images"]
    assert estimate(ada, image={"partial_images": allowed}) == 200
    assert estimate(ada, image={"partial_images": allowed + 1}) == 422


def test_a_link_works_for_as_long_as_is_told_and_half_of_it_at_least(ada: ApiUser) -> None:
    allowed = timedelta(seconds=told(ada)["link_seconds"])
    answer = ada.http.post("/v1/attachments", files={"file": ("a", image("PNG"))})
    left = datetime.fromisoformat(answer.json()["url_expires_at"]) - datetime.now(UTC)
    slack = timedelta(seconds=20)
    assert allowed / 2 - slack < left <= allowed + slack
