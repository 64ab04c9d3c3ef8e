"""What asyncpg executes itself gives the rows, the errors and the transactions that SQLAlchemy's session gives."""

import asyncio
import traceback
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Date, Text, Uuid, bindparam, cast, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError

from app.compiled import CompiledStatement
from app.conversations.models import Conversation, Message, MessageRole
from app.db import IDENTITY_ROLE, Database, uuid7
from app.errors import is_connection_error
from app.identity.models import Membership, Role, Tenant, User
from app.inserts import insert_together
from app.runs.models import Run, RunStatus
from tests.app_server import AppServer

PID = CompiledStatement[int](select(func.pg_backend_pid()))
STATE = text("SELECT state FROM pg_stat_activity WHERE pid = :pid")
SLEEP = CompiledStatement[None](select(func.pg_sleep(60)))
DIVIDE = CompiledStatement[int](text("SELECT :prompt || 'x', 1 / 0").bindparams(bindparam("prompt", type_=Text)))


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    database = Database(database_url, pool_size=1)
    yield database
    await database.close()


async def test_a_row_is_what_the_session_makes_of_it(own_server: AppServer, database_url: str) -> None:
    ada = own_server.sign_up()
    ada.draw("a lighthouse")
    statement = (
        select(Message, Run, func.length(Message.text).label("length"))
        .outerjoin(Run, (Run.id == Message.run_id) & (Message.role == MessageRole.ASSISTANT))
        .where(Message.tenant_id == bindparam("tenant", type_=Uuid), Message.role.in_([*MessageRole]))
        .order_by(Message.id)
    )
    compiled = CompiledStatement(statement, Message, Run, None)
    given = {"tenant": UUID(ada.signed_up["tenant"]["id"])}
    database = Database(database_url, pool_size=1)
    async with database.tenant(given["tenant"]) as session:
        mine = (await compiled.execute(session, given)).all()
        theirs = (await session.execute(statement, given)).all()
    await database.close()
    assert [shown(*row) for row in mine] == [shown(*row) for row in theirs]
    assert [row[1] is None for row in mine] == [True, False]
    assert mine[1].Run.status is RunStatus.COMPLETED


def shown(message: Message, run: Run | None, length: int) -> tuple[dict[str, Any], dict[str, Any] | None, int]:
    return values_of(message), run and values_of(run), length


def values_of(row: Message | Run) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if not name.startswith("_")}


async def test_what_the_session_holds_is_written_before(database: Database) -> None:
    tenant = Tenant(name="Early")
    count = CompiledStatement[int](select(func.count()).select_from(Tenant).where(Tenant.name == bindparam("name")))
    async with database.identity() as session:
        session.add(tenant)
        assert (await count.execute(session, {"name": "Early"})).scalar_one() == 1


async def test_a_conflict_is_the_error_that_sqlalchemy_raises(database: Database) -> None:
    add = CompiledStatement[()](
        insert(Membership.__table__).values(  # pyright: ignore[reportArgumentType] - a table's columns
            tenant_id=bindparam("tenant"), user_id=bindparam("user"), role=Role.OWNER, created_at=func.now()
        )
    )

    async def join_no_tenant() -> None:
        user = User(email="ada@example.com", name="Ada", password_hash="-")
        async with database.identity() as session:
            session.add(user)
            await session.flush()
            await add.execute(session, {"tenant": uuid7(), "user": user.id})

    with pytest.raises(IntegrityError) as caught:
        await join_no_tenant()
    assert not is_connection_error(caught.value)
    async with database.identity() as session:
        assert await session.scalar(select(func.count()).select_from(User)) == 0


async def test_an_error_does_not_show_what_was_given(database: Database) -> None:
    with pytest.raises(DBAPIError) as caught:
        async with database.identity() as session:
            await DIVIDE.execute(session, {"prompt": "a surprise"})
    assert "DivisionByZero" in str(caught.value)
    assert "surprise" not in str(caught.value)


@pytest.mark.parametrize("value", ["my diary \ud83d", "my diary \0", "my diary is no date"])
async def test_a_value_that_is_refused_is_not_in_the_log(database: Database, value: str) -> None:
    told: list[str] = []
    for statement in (cast(bindparam("given", type_=Text), Date), cast(bindparam("given", type_=Text), JSONB)):
        compiled = CompiledStatement[Any](select(statement))
        for way in ("compiled", "by the session"):
            try:
                async with database.identity() as session:
                    if way == "compiled":
                        await compiled.execute(session, {"given": value})
                    else:
                        await session.execute(select(statement), {"given": value})
            except DBAPIError:
                told.append(traceback.format_exc())
    assert len(told) == 4
    assert all("a value was refused" in one for one in told)
    assert not [one for one in told if "diary" in one]


async def test_a_lost_connection_is_told_and_replaced(database: Database, database_url: str) -> None:
    async with database.identity() as session:
        lost = (await PID.execute(session, {})).scalar_one()

    async def be_cut_off() -> None:
        async with database.identity() as session, asyncio.timeout(5):
            await asyncio.gather(SLEEP.execute(session, {}), end(database_url, lost))

    with pytest.raises(DBAPIError) as caught:
        await be_cut_off()
    assert is_connection_error(caught.value)
    async with database.identity() as session:
        assert (await PID.execute(session, {})).scalar_one() != lost


async def end(url: str, pid: int) -> None:
    other = Database(url, pool_size=1)
    async with other.engine.connect() as connection:
        await asyncio.sleep(0.2)
        await connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    await other.close()


async def test_a_connection_whose_statement_was_broken_off_is_not_used_again(database: Database) -> None:
    async with database.identity() as session:
        used = (await PID.execute(session, {})).scalar_one()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), database.identity() as session:
            await SLEEP.execute(session, {})
    async with database.identity() as session:
        assert (await PID.execute(session, {})).scalar_one() != used
    # The server was told: it would wait for locks, and take them, with nobody there.
    async with database.engine.connect() as connection:  # as the login, which is shown what its backends do
        assert await connection.scalar(STATE, {"pid": used}) != "active"


async def test_a_savepoint_undoes_what_was_executed_first_in_it(database: Database) -> None:
    async with database.identity() as session:
        await PID.execute(session, {})
        savepoint = await session.begin_nested()
        await insert_together(session, Tenant(name="Early"))
        await savepoint.rollback()
        assert await session.scalar(select(func.count()).select_from(Tenant)) == 0


async def test_nothing_is_executed_after_a_flush_that_failed(database: Database) -> None:
    async with database.identity() as session:
        session.add(Membership(tenant_id=uuid7(), user_id=uuid7(), role=Role.OWNER))
        with pytest.raises(IntegrityError):
            await session.flush()
        with pytest.raises(PendingRollbackError):
            await PID.execute(session, {})
        await session.rollback()
        assert await session.scalar(text("SELECT current_user")) == IDENTITY_ROLE


async def test_a_statement_that_asyncpg_cannot_execute_alone_is_refused(database: Database) -> None:
    renamed = update(Conversation).values(title=bindparam("title", type_=Conversation.title.type))
    refused = (
        # The session would fill in updated_at.
        CompiledStatement[()](renamed),
        CompiledStatement(select(Message.id), Message),
        CompiledStatement(select(Message, Run.id), Message),
    )
    async with database.tenant(uuid7()) as session:
        for statement in refused:
            with pytest.raises(ValueError, match=r"left out|Not the columns|More columns"):
                await statement.execute(session, {"title": "x"})
