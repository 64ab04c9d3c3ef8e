"""Time-limited links to objects: the store's own where it can sign, else our content route with a signed token."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, NamedTuple

from fastapi import Depends, Request

from app.attachments.file_tokens import Grant, sign
from app.clock import SharedClock
from app.db import CurrentDatabase, from_state
from app.identity.actor import CurrentSettings
from app.settings import Settings
from app.storage.store import Store

# About 10 MB.
CACHED_LINKS = 10_000
# A store that signs by itself takes 2 ms for so many; others are served in between.
MADE_AT_ONCE = 40


class Link(NamedTuple):
    url: str
    expires_at: datetime


@dataclass
class LinkCache:
    """The links that a process made in the present half of a link's lifetime: a list that is read again is free."""

    issued_at: tuple[float, int] = (0.0, 0)
    links: dict[tuple[str, Grant], Link] = field(default_factory=dict[tuple[str, Grant], Link])


@dataclass(frozen=True)
class Links:
    """Makes links for one reader; `base_url` is `PUBLIC_URL` or the origin the reader came by.

    All links to one object made within the same half of `LINK_TTL_SECONDS` are the same and end at the same time, so
    that browsers keep what they loaded: a link lives between half and the whole of that time. A store dates links by
    seconds, so the half is rounded down there, and where it is less than a second the links are our own. They end by
    Postgres' clock, as processes' own may differ; the temporary keys of a machine's role sign others on each machine.
    """

    store: Store
    settings: Settings
    base_url: str
    clock: SharedClock
    cache: LinkCache

    async def to(self, grants: Sequence[Grant]) -> list[Link]:
        """A link for each. Those that are known wait for nothing, those that need a request are made at once."""
        issued_at = self._issued_at()
        if issued_at != self.cache.issued_at or len(self.cache.links) > CACHED_LINKS:
            self.cache.issued_at, self.cache.links = issued_at, {}
        links = self.cache.links
        missing = [grant for grant in grants if (self.base_url, grant) not in links]
        for some in (missing[at : at + MADE_AT_ONCE] for at in range(0, len(missing), MADE_AT_ONCE)):
            made = await asyncio.gather(*(self._make(grant) for grant in some))
            links.update(zip([(self.base_url, grant) for grant in some], made, strict=True))
        return [links[self.base_url, grant] for grant in grants]

    async def _make(self, grant: Grant) -> Link:
        if link := await self.of_store(grant):
            return link
        expires_at = self._end_of(self._issued_at()[0])
        return Link(f"{self.base_url}/v1/files/{sign(self.settings, grant, expires_at.timestamp())}", expires_at)

    def _end_of(self, issued_at: float) -> datetime:
        return datetime.fromtimestamp(issued_at + self.settings.link_ttl_seconds, UTC)

    async def of_store(self, grant: Grant) -> Link | None:
        """The store's own link; None where it cannot sign, or only such as would end too soon."""
        _, issued_at = self._issued_at()
        if not issued_at:
            return None
        url = await self.store.link(
            grant.key,
            filename=grant.filename,
            mime_type=grant.content_type,
            inline=grant.inline,
            issued_at=datetime.fromtimestamp(issued_at, UTC),
            expires_in=self.settings.link_ttl_seconds,
        )
        return Link(url, self._end_of(issued_at)) if url else None

    def _issued_at(self) -> tuple[float, int]:
        """When our own links of now were issued, and a store's; 0 where a store's seconds are too coarse."""
        moment, whole = self.clock.now().timestamp(), self.settings.link_ttl_seconds
        half = whole // 2
        return moment // (whole / 2) * (whole / 2), int(moment) // half * half if half else 0


CurrentStore = Annotated[Store, from_state("store")]


async def links_for(
    request: Request,
    store: CurrentStore,
    settings: CurrentSettings,
    database: CurrentDatabase,
    cache: Annotated[LinkCache, from_state("link_cache")],
) -> Links:
    base_url = settings.public_url or str(request.base_url).rstrip("/")
    return Links(store, settings, base_url, database.clock, cache)


ReaderLinks = Annotated[Links, Depends(links_for)]
