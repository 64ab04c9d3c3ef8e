"""Writes rights.txt, which app/rights.py reads: `./just rights`, after a migration that grants or secures anything."""

import asyncio
import tempfile
from pathlib import Path

from app.db import Database
from app.embedded_postgres import running_postgres
from app.migrate import migrate
from app.rights import MANIFEST, find_rights


async def main(url: str) -> None:
    await migrate(url)
    database = Database(url, pool_size=1)
    async with database.probe.connect() as connection:
        MANIFEST.write_text("".join(f"{right}\n" for right in await find_rights(connection)), encoding="utf-8")
    await database.close()


if __name__ == "__main__":
    # Not under pytest's or a user's own folder: the server may run as another user.
    with (
        tempfile.TemporaryDirectory(prefix="easel-rights-") as folder,
        running_postgres(Path(folder) / "data") as server,
    ):
        asyncio.run(main(server))
