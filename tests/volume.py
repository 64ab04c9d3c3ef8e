"""A tenant that has been busy for long, inserted by generate_series; past every check of the API.

Its images are rows alone, of a type that no model is sent: nothing asks the store for them.
"""

# ruff: noqa: S608 - composed of constants

import asyncio
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import asyncpg

MESSAGES_OF_A_CONVERSATION = 50
MESSAGES_OF_AN_IMAGE = 5

# Ids in the order of their numbers, all of them older than any that is made now; `kind` keeps those of tables apart.
_ID = "('0190' || lpad(to_hex({n}), 8, '0') || '70008000' || '{kind:02x}' || :tail)::uuid"
_AT = "now() - interval '30 days' + {n} * interval '1 second'"


@dataclass(frozen=True)
class Volume:
    """How many rows; one user has half of the conversations, messages and images, the others share the rest."""

    messages: int
    users: int = 50
    messages_of_an_image: int = MESSAGES_OF_AN_IMAGE

    @property
    def conversations(self) -> int:
        return self.messages // MESSAGES_OF_A_CONVERSATION

    @property
    def attachments(self) -> int:
        return self.messages // self.messages_of_an_image


def insert_volume(url: str, tenant_id: UUID, volume: Volume, *, owner: UUID | None = None) -> None:
    """`owner` is the user who has the half; statistics are gathered at the end."""
    asyncio.run(_insert(url, tenant_id, volume, owner))


async def _insert(url: str, tenant_id: UUID, volume: Volume, owner: UUID | None) -> None:
    connection = await cast(Any, asyncpg).connect(url)
    try:
        for statement in _statements(volume):
            tail = f"'{tenant_id.hex[-10:]}'"
            values = statement.replace(":tenant", f"'{tenant_id}'::uuid").replace(":owner", f"'{owner or tenant_id}'")
            await connection.execute(values.replace(":tail", tail))
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


def _statements(volume: Volume) -> list[str]:
    """User 0 is the owner; an assistant's message is the odd one behind each user's, the image is every third."""
    users, length = volume.users, MESSAGES_OF_A_CONVERSATION
    user = "(SELECT id FROM busy_users WHERE number = CASE {n} % 2 WHEN 0 THEN 0 ELSE {n} / 2 % " + f"{users} END)"
    conversation = _ID.format(n=f"n / {length}", kind=2)
    message, run = _ID.format(n="n", kind=3), _ID.format(n="n / 2", kind=4)
    drawn = f"n * {volume.messages_of_an_image}"
    return [
        f"""CREATE TEMP TABLE busy_users AS SELECT n AS number, CASE n WHEN 0 THEN :owner::uuid
        ELSE {_ID.format(n="n", kind=1)} END AS id FROM generate_series(0, {users - 1}) n""",
        """INSERT INTO users (id, email, password_hash, created_at) SELECT id, id || '@example.org', '-', now()
        FROM busy_users ON CONFLICT DO NOTHING""",
        """INSERT INTO memberships (tenant_id, user_id, role, created_at) SELECT :tenant, id, 'member', now()
        FROM busy_users ON CONFLICT DO NOTHING""",
        f"""INSERT INTO conversations (id, tenant_id, user_id, agent_key, title, created_at, updated_at)
        SELECT {_ID.format(n="n", kind=2)}, :tenant, (SELECT id FROM busy_users WHERE number = n % {users}), 'designer',
        'Talk ' || n, {_AT.format(n="n")}, now() FROM generate_series(0, {volume.conversations - 1}) n""",
        f"""INSERT INTO messages (id, tenant_id, conversation_id, run_id, role, text, created_at)
        SELECT {message}, :tenant, {conversation}, {run}, CASE n % 2 WHEN 0 THEN 'user' ELSE 'assistant' END,
        'Message ' || n, {_AT.format(n="n")} FROM generate_series(0, {volume.messages - 1}) n""",
        f"""INSERT INTO runs (id, tenant_id, conversation_id, user_id, agent_key, status, attempt, options,
        input_message_id, output_message_id, calling_turn, last_seq, response_id, created_at)
        SELECT {_ID.format(n="n", kind=4)}, :tenant, {_ID.format(n=f"n * 2 / {length}", kind=2)},
        {user.format(n=f"(n * 2 / {length})")}, 'designer', 'completed', 1, '{{}}', {_ID.format(n="n * 2", kind=3)},
        {_ID.format(n="n * 2 + 1", kind=3)}, 1, 9, 'resp_' || n, {_AT.format(n="n")}
        FROM generate_series(0, {volume.messages // 2 - 1}) n""",
        f"""INSERT INTO attachments (id, tenant_id, conversation_id, run_id, message_id, user_id, agent_key, kind,
        status, filename, mime_type, size_bytes, width, height, sha256, storage_key, tool_call_id, prompt,
        revised_prompt, options, variants, created_at)
        SELECT {_ID.format(n="n", kind=5)}, :tenant, {_ID.format(n=f"{drawn} / {length}", kind=2)},
        {_ID.format(n=f"{drawn} / 2", kind=4)}, {_ID.format(n=f"{drawn} / 2 * 2 + 1", kind=3)},
        {user.format(n=f"({drawn} / {length})")}, 'designer', 'generated', 'stored', 'a.gif', 'image/gif', 1000000,
        1024, 1024, repeat('0', 64), 't/' || :tenant || '/images/' || {_ID.format(n="n", kind=5)} || '.gif', 'ig_' || n,
        'Draw the house number ' || n, 'A house beside a river, with '
        || (ARRAY['a red roof', 'two chimneys', 'many small windows', 'an old green door'])[n % 4 + 1]
        || ', painted in oil at dusk' || CASE n % 5000 WHEN 7 THEN ', by a quokka' ELSE '' END,
        '{{}}', '[]', {_AT.format(n="n")} FROM generate_series(0, {volume.attachments - 1}) n""",
        """INSERT INTO idempotency_keys (tenant_id, user_id, route, key, fingerprint, run_id, status, headers, body,
        expires_at) SELECT tenant_id, user_id, 'POST /v1/runs', id, '', id, 202, '{}', '{}', now() + interval '1 day'
        FROM runs WHERE tenant_id = :tenant""",
    ]
