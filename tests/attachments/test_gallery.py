"""A user's images, found by kind, by agent and by the words of their prompts, page by page."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from app.attachments.models import Attachment, AttachmentKind, AttachmentStatus
from app.db import Database, uuid7
from app.storage import keys
from tests.app_server import ApiUser, AppServer, one, running_server
from tests.made_streams import image, png, stream_of
from tests.stream_server import serving

Json = dict[str, Any]
Hang = Callable[..., list[str]]


@pytest.fixture
def server(own_server: AppServer) -> AppServer:
    return own_server


@pytest.fixture
def hang(database_url: str, ada: ApiUser) -> Hang:
    """Adds an image of Ada's for each prompt; their ids, newest first."""

    def add(*prompts: str, **facts: Any) -> list[str]:
        return asyncio.run(_add(database_url, ada, prompts, facts))

    return add


def test_a_drawn_image_is_found_by_its_prompt_and_by_what_became_of_it(ada: ApiUser) -> None:
    drawn = one(ada.draw("Draw a turquoise lighthouse"), "attachment.created")["attachment"]
    assert drawn["revised_prompt"]
    for q in ("turquoise", "LIGHT turq", drawn["revised_prompt"][:200]):
        assert found(ada, q=q) == [drawn["object_id"]]
    assert found(ada, q="windmill") == []


@pytest.mark.parametrize(
    ("revised", "alt"),
    [
        ("A red\n\thouse\r\n with  a door ", "A red house with a door"),
        # The 250th character is a space.
        ("Many" + " very" * 100, "Many" + " very" * 49),
        ("ab" * 200, "ab" * 125),
        (" \n\u3000\u00a0", "Draw a house, please"),
        ("", "Draw a house, please"),
        (None, "Draw a house, please"),
    ],
)
def test_a_drawn_image_is_described_by_its_prompt_in_one_line(
    revised: str | None, alt: str, database_url: str, tmp_path: Path
) -> None:
    drawing = image(png("red"), revised_prompt=revised)
    with serving(stream_of(drawing)) as provider, running_server(database_url, provider.url, tmp_path) as server:
        ada = server.sign_up("Ada's")
        made = one(ada.draw("Draw a house,\n please"), "attachment.created")["attachment"]
        assert made["alt"] == alt
        assert ada.http.get(f"/v1/attachments/{made['object_id']}").json()["alt"] == alt


WALL = ["two cats", "A CAT'S hat", "cat/dog.png", "Müllers Mühle", "猫と犬", "1024x768 at 3.14"]


def test_every_word_must_begin_a_word_of_the_prompts(ada: ApiUser, hang: Hang) -> None:
    prompts = dict(zip(reversed(hang(*WALL)), WALL, strict=True))
    expected = {
        "cat": ["two cats", "A CAT'S hat", "cat/dog.png"],
        "cats two": ["two cats"],
        "cat's": ["A CAT'S hat"],
        "cat 🐱 &": ["two cats", "A CAT'S hat", "cat/dog.png"],
        "hat -cat | !dog": [],
        "müll": ["Müllers Mühle"],
        "猫": ["猫と犬"],
        "1024x": ["1024x768 at 3.14"],
        "3.14": ["1024x768 at 3.14"],
        "cat/dog": ["cat/dog.png"],
        "at": ["1024x768 at 3.14"],
        "og": [],
    }
    assert {q: [prompts[one] for one in reversed(found(ada, q=q))] for q in expected} == expected


def test_signs_count_for_nothing_and_are_no_error(ada: ApiUser, hang: Hang) -> None:
    ids = hang("two cats")
    for q in (
        "cat'",
        "'cat':*",
        '"cat"',
        "cat\\",
        "cat:*",
        "cat & ",
        "(cat",
        "\x00cat",
        "cat ?*",
        "<cat>",
        "cat |",
        "!cat",
    ):
        assert found(ada, q=q) == ids, q
    for q in ("&", "|", ":*", "'", "''", '"', "\\", "!!!", "( )", "<->", "🐱🐶", "a'b\\", "\x00", "%", "'& :"):
        assert found(ada, q=q) == [], q


def test_a_blank_search_is_none(ada: ApiUser, hang: Hang) -> None:
    ids = hang("two cats", "")
    assert found(ada, q="") == found(ada, q=" \t") == found(ada) == ids


def test_a_search_is_at_most_200_characters(ada: ApiUser) -> None:
    assert found(ada, q="🐱 word " * 28) == []
    refused = ada.http.get("/v1/attachments", params={"q": "x" * 201})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "q")


def test_kind_agent_and_words_narrow_each_other(ada: ApiUser, hang: Hang) -> None:
    (drawn,) = hang("a cat", agent_key="designer", kind=AttachmentKind.GENERATED)
    (other,) = hang("a cat", agent_key="painter", kind=AttachmentKind.GENERATED)
    (upload,) = hang("", kind=AttachmentKind.UPLOAD)
    assert found(ada, kind="upload") == [upload]
    assert found(ada, kind="generated", q="cat") == [other, drawn]
    assert found(ada, agent_key="designer", q="cat") == [drawn]
    assert found(ada, agent_key="design") == found(ada, kind="upload", q="cat") == []
    assert ada.http.get("/v1/attachments", params={"agent_key": "\0"}).status_code == 422


@pytest.mark.parametrize("params", [{"q": "cat"}, {"kind": "upload"}, {"agent_key": "designer", "q": "a cat"}])
def test_pages_follow_each_other_under_every_filter(ada: ApiUser, hang: Hang, params: Json) -> None:
    expected: list[str] = []
    for number in range(7):
        hang(f"a dog {number}", kind=AttachmentKind.GENERATED)
        expected = [*hang(f"a cat {number}", agent_key="designer"), *expected]
    pages: list[list[str]] = []
    cursor: str | None = None
    while cursor or not pages:
        answer = ada.http.get(
            "/v1/attachments", params={**params, "limit": 3, **({"cursor": cursor} if cursor else {})}
        )
        pages.append([row["object_id"] for row in answer.json()["data"]])
        cursor = answer.json()["next_cursor"]
    assert pages == [expected[:3], expected[3:6], expected[6:]]


def test_a_stranger_finds_nothing_of_it(ada: ApiUser, stranger: ApiUser, hang: Hang) -> None:
    ids = hang("a cat", agent_key="designer")
    for params in ({}, {"q": "cat"}, {"agent_key": "designer"}, {"kind": "upload"}, {"cursor": str(uuid7())}):
        assert found(ada, **params) == ids
        assert found(stranger, **params) == []


def found(user: ApiUser, **params: Any) -> list[str]:
    answer = user.http.get("/v1/attachments", params=params)
    assert answer.status_code == 200, answer.text
    return [str(row["object_id"]) for row in cast(list[Json], answer.json()["data"])]


async def _add(url: str, owner: ApiUser, prompts: tuple[str, ...], facts: Json) -> list[str]:
    tenant_id, user_id = (UUID(owner.signed_up[name]["id"]) for name in ("tenant", "user"))
    rows: list[Attachment] = []
    for prompt in prompts:
        object_id = uuid7()
        row = Attachment(
            id=object_id,
            tenant_id=tenant_id,
            user_id=user_id,
            kind=AttachmentKind.UPLOAD,
            status=AttachmentStatus.STORED,
            filename="wall.png",
            mime_type="image/png",
            size_bytes=1,
            sha256="0" * 64,
            storage_key=keys.upload_key(tenant_id, object_id, "png"),
            prompt=prompt,
            variants=[],
        )
        for name, value in facts.items():
            setattr(row, name, value)
        rows.append(row)
    database = Database(url, pool_size=1)
    async with database.tenant(tenant_id) as session:
        session.add_all(rows)
    await database.close()
    return [str(row.id) for row in reversed(rows)]
