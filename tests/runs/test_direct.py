"""What many readers are sent goes past their tasks: the same bytes, at once, unless a reader is slow or has left."""

import socket
import threading
from collections.abc import Sequence
from contextlib import closing
from typing import Any
from uuid import UUID

import pytest

from app.direct_write import EXTENSION, DirectWrite
from app.event_log import Record
from app.runs import direct
from app.runs.direct import deliver_to
from app.runs.events import MessageStarted, TextDelta, to_record
from tests import timeouts
from tests.app_server import ApiUser, running_alone

PIECE = b"a" * 65_536
# More than the sockets of both ends hold.
MOST_PIECES = 1_000


def test_a_piece_of_a_body_is_written_at_once_or_refused() -> None:
    answers: dict[str, bool | int] = {}
    filled = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        write: DirectWrite = scope["extensions"][EXTENSION]
        answers["before the response begins"] = write(b"early")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        answers["to a client that reads"] = write(b"one")
        if scope["path"] == "/short":
            await send({"type": "http.response.body", "body": b""})
            answers["after the response's end"] = write(b"late")
            return
        answers["pieces until the client is slow"] = next(count for count in range(MOST_PIECES) if not write(PIECE))
        filled.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        answers["once the client has left"] = write(b"late")

    with (
        running_alone(app) as port,
        closing(socket.create_connection(("127.0.0.1", port), timeout=timeouts.ANSWER)) as connection,
    ):
        connection.sendall(b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4_096).endswith(b"\r\n\r\n3\r\none\r\n0\r\n\r\n")
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert filled.wait(timeouts.ANSWER)
        body = connection.recv(4_096).partition(b"\r\n\r\n")[2]
        assert body.startswith(b"3\r\none\r\n10000\r\naaaa")
    pieces = answers.pop("pieces until the client is slow")
    assert 1 <= pieces < MOST_PIECES
    assert answers == {
        "before the response begins": False,
        "to a client that reads": True,
        "after the response's end": False,
        "once the client has left": False,
    }


def test_all_readers_are_sent_the_same_bytes() -> None:
    written: list[bytes] = []

    def write(body: bytes) -> bool:
        written.append(body)
        return True

    scope = {"extensions": {EXTENSION: write}}
    run_id, message_id = UUID(int=1), UUID(int=2)
    events = [MessageStarted(message_id=message_id), TextDelta(message_id=message_id, delta="Hello")]
    records = [to_record(event, run_id, seq) for seq, event in enumerate(events, 1)]
    readers = [deliver_to(scope) for _ in range(3)]
    assert all(deliver is not None and deliver(records) for deliver in readers)
    assert written[0].startswith(b"id: 1\nevent: message.started\ndata: {")
    assert written[0].count(b"\n\n") == 2
    assert written[0] is written[1] is written[2]
    # Each reader gets links of their own, and their task ends a stream.
    for kind in ("attachment.created", "image.partial", "message.completed", "run.completed", "run.failed"):
        mixed = [*records, Record(3, kind, b"{}")]
        assert not any(deliver is not None and deliver(mixed) for deliver in readers)
    assert len(written) == 3
    assert deliver_to({}) is None


def test_events_of_a_run_go_past_its_readers_tasks(ada: ApiUser, monkeypatch: pytest.MonkeyPatch) -> None:
    delivered: list[int] = []
    deliver = direct._deliver  # pyright: ignore[reportPrivateUsage]

    def counted(write: DirectWrite, records: Sequence[Record]) -> bool:
        taken = deliver(write, records)
        delivered.extend(record.seq for record in records if taken)
        return taken

    monkeypatch.setattr(direct, "_deliver", counted)
    events = ada.draw("Draw a house [offline: slow=1]")
    assert [seq for seq in delivered if events[seq - 1]["type"] in ("text.delta", "tool.progress")]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
