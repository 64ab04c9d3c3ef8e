"""A user's sign-ins: which there are, and ending them."""

from uuid import UUID

from sqlalchemy import exists, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.schemas import SignInPage, SignInView
from app.db import now
from app.errors import NotFound
from app.identity.models import SignIn, Token
from app.identity.service import SignedIn
from app.paging import PageQuery, fetch_page


async def listed(session: AsyncSession, caller: SignedIn, query: PageQuery) -> SignInPage:
    """Those that have neither ended nor expired."""
    alive = exists().where(Token.sign_in_id == SignIn.id, Token.expires_at > now())
    statement = select(SignIn).where(SignIn.user_id == caller.user_id, SignIn.ended_at.is_(None), alive)
    rows, cursor = await fetch_page(session, statement, SignIn.id, query)
    data = [
        SignInView(
            id=row.id,
            created_at=row.created_at,
            last_used_at=row.last_used_at,
            user_agent=row.user_agent,
            current=row.id == caller.sign_in_id,
        )
        for row in rows
    ]
    return SignInPage(data=data, next_cursor=cursor)


async def end(session: AsyncSession, user_id: UUID, sign_in_id: UUID) -> None:
    """Every token of it stops working with the next request. Raises NotFound where it is none of the user's."""
    own = update(SignIn).where(SignIn.id == sign_in_id, SignIn.user_id == user_id, SignIn.ended_at.is_(None))
    if (await session.execute(own.values(ended_at=now()).returning(SignIn.id))).one_or_none() is None:
        raise NotFound("sign-in")


async def end_all(session: AsyncSession, user_id: UUID, *, but: UUID | None = None) -> None:
    """All of the user's, `but` one."""
    statement = update(SignIn).where(SignIn.user_id == user_id, SignIn.ended_at.is_(None))
    if but is not None:
        statement = statement.where(SignIn.id != but)
    await session.execute(statement.values(ended_at=now()))
