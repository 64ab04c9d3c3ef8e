"""A commit whose answer is lost has happened: what is written again then is neither taken for lost nor done twice."""

import logging
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database
from app.runs.models import Run
from app.usage.ledger import Settlement
from app.usage.models import ProviderCall
from app.worker import held_run
from app.worker.booking import Booking
from app.worker.held_run import Ended, Ending
from app.worker.lease import claim
from app.worker.reservation import Less
from tests.app_server import ApiUser, kinds, one
from tests.worker.test_clocks import queued_run

LOST = "the answer to its commit is lost"


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[Ended | None]:
    """What each writing of the end gave; the answer to the first one's commit is lost."""
    end, commit, found = held_run.end, AsyncSession.commit, list[Ended | None]()

    async def noted(session: AsyncSession, run: Run, ending: Ending) -> Ended | None:
        found.append(await end(session, run, ending))
        session.info[LOST] = len(found) == 1
        return found[-1]

    async def losing(session: AsyncSession) -> None:
        await commit(session)
        if session.info.pop(LOST, False):
            raise ConnectionResetError(LOST)

    monkeypatch.setattr(held_run, "end", noted)
    monkeypatch.setattr(AsyncSession, "commit", losing)
    return found


@pytest.mark.parametrize("text", ["Hello", "Draw a house", "[offline: not_an_image] Draw a house"])
def test_a_run_that_has_ended_is_not_taken_for_lost(
    ada: ApiUser, ends: list[Ended | None], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    events = ada.ask(text, agent_key="designer", image={"quality": "low"})
    assert kinds(events)[-1] == "run.completed"
    assert [found and found.repeated for found in ends] == [False, True]
    logged = [record.getMessage() for record in caplog.records]
    assert logged.count("run.end") == 1
    assert "run.lease_lost" not in logged
    told, stored = one(events, "message.completed")["message"], ada.messages(events[0]["run"]["conversation_id"])[-1]
    for message in (told, stored):
        assert len(message["attachments"]) == (text != "Hello")
    assert [one["object_id"] for one in told["attachments"]] == [one["object_id"] for one in stored["attachments"]]


async def test_what_a_call_held_is_given_back_once(database_url: str) -> None:
    database = Database(database_url, pool_size=1)
    queued = await queued_run(database)
    async with database.tenant(queued.tenant_id) as session:
        claimed = await claim(session, queued.tenant_id, most=1, lease_seconds=20)
    assert claimed is not None
    run = claimed.run
    of_run: dict[str, Any] = {"tenant_id": run.tenant_id, "user_id": run.user_id, "run_id": run.id, "agent_key": "a"}
    call = ProviderCall(**of_run, number=1, model="a", background=False, characters=1, given_tokens=1)
    await held_run.write(database, run, Booking(call=call), reserved_nano=100, reserved_images=3)
    settlement = Settlement(**of_run, number=1, response_id=None, entries=(), object_ids={})
    for _ in range(2):
        assert await held_run.write(
            database, run, Booking(settlement=settlement), reserved_nano=Less(30), reserved_images=Less(1)
        )
    async with database.tenant(run.tenant_id) as session:
        held = (await session.execute(select(Run.reserved_nano, Run.reserved_images).where(Run.id == run.id))).one()
    assert tuple(held) == (70, 2)
    await database.close()
