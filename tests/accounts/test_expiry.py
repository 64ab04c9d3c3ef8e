"""What has expired is deleted once a day, and nothing else."""

import asyncio

from app.db import Database
from app.identity import expiry
from tests.app_server import ApiUser, AppServer
from tests.mails import wait_for_mail
from tests.tables import rows

COUNTS = """
SELECT (SELECT count(*) FROM tokens), (SELECT count(*) FROM sign_ins), (SELECT count(*) FROM attempt_counts),
(SELECT count(*) FROM password_resets), (SELECT count(*) FROM invitations)
"""


def test_expired_credentials_are_deleted_and_good_ones_stay(own_server: AppServer, database_url: str) -> None:
    ada = own_server.sign_up()
    fill(own_server, ada)
    delete_expired(database_url)
    assert rows(database_url, COUNTS) == [(2, 1, 2, 1, 1)]
    for table in ("tokens", "attempt_counts", "password_resets"):
        rows(database_url, f"UPDATE {table} SET expires_at = now() - interval '1 second'")  # noqa: S608 - named above
    rows(database_url, "UPDATE invitations SET expires_at = now() - interval '29 days'")
    delete_expired(database_url)
    assert rows(database_url, COUNTS) == [(0, 0, 0, 0, 1)]
    rows(database_url, "UPDATE invitations SET expires_at = now() - interval '31 days'")
    delete_expired(database_url)
    assert rows(database_url, COUNTS) == [(0, 0, 0, 0, 0)]


def fill(server: AppServer, user: ApiUser) -> None:
    """One of each: a sign-in with two tokens, an invitation, a reset, and two counts, of its address and its place."""
    user.invite("grace@example.com")
    assert server.anyone().post("/v1/password-resets", json={"email": user.email}).status_code == 202
    wait_for_mail(server, user.email)


def delete_expired(database_url: str) -> None:
    async def delete() -> None:
        database = Database(database_url, pool_size=1)
        try:
            await expiry.delete_expired(database)
        finally:
            await database.close()

    asyncio.run(delete())
