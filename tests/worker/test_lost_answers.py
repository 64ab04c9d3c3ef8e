"""A commit whose answer is lost has happened: the end of a run that is written again is neither lost nor doubled."""

import logging

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.runs.models import Run
from app.worker import held_run
from app.worker.held_run import Ended, Ending
from tests.app_server import ApiUser, kinds, one

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
