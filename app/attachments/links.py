"""Time-limited links to objects: the store's own where it can sign, else our content route with a signed token."""

import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import Depends, Request

from app.db import from_state, now
from app.errors import NotFound
from app.identity.actor import CurrentSettings
from app.settings import Settings
from app.storage.store import Store

# Types a browser may show in place; everything else is a download. GIF and SVG can carry what a page would run.
INLINE_TYPES = frozenset({"image/png", "image/jpeg", "image/webp"})
SERVED_TYPES = INLINE_TYPES | {"image/gif", "image/svg+xml"}
UNKNOWN_TYPE = "application/octet-stream"


@dataclass(frozen=True)
class Link:
    url: str
    expires_at: datetime


@dataclass(frozen=True)
class Grant:
    """What a link allows: to read one object under this name and type."""

    key: str
    filename: str
    mime_type: str

    @property
    def inline(self) -> bool:
        return self.mime_type in INLINE_TYPES

    @property
    def content_type(self) -> str:
        """The type it is served as: an unknown type is served as a plain download."""
        return self.mime_type if self.mime_type in SERVED_TYPES else UNKNOWN_TYPE


@dataclass(frozen=True)
class Links:
    """Makes links for one reader; `base_url` is `PUBLIC_URL` or the origin the reader came by."""

    store: Store
    settings: Settings
    base_url: str

    async def to(self, grant: Grant) -> Link:
        expires_at = (now() + timedelta(seconds=self.settings.link_ttl_seconds)).replace(microsecond=0)
        url = await self.of_store(grant)
        if url is None:
            url = f"{self.base_url}/v1/files/{_sign(self.settings, grant, int(expires_at.timestamp()))}"
        return Link(url, expires_at)

    async def of_store(self, grant: Grant) -> str | None:
        """The store's own link; None where it cannot sign."""
        return await self.store.link(
            grant.key,
            filename=grant.filename,
            mime_type=grant.content_type,
            inline=grant.inline,
            expires_in=self.settings.link_ttl_seconds,
        )


def _sign(settings: Settings, grant: Grant, expires: int) -> str:
    facts = json.dumps([grant.key, grant.filename, grant.mime_type, expires], ensure_ascii=False)
    payload = urlsafe_b64encode(facts.encode()).decode().rstrip("=")
    return f"{payload}.{_mac(settings.signing_keys()[0], payload)}"


def verify(settings: Settings, token: str) -> Grant:
    """The grant of a token that is ours and not expired; anything else is NotFound."""
    payload, _, mac = token.partition(".")
    if not any(hmac.compare_digest(mac.encode(), _mac(key, payload).encode()) for key in settings.signing_keys()):
        raise NotFound("file")
    facts = urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    key, filename, mime_type, expires = json.loads(facts)
    if expires <= now().timestamp():
        raise NotFound("file")
    return Grant(key, filename, mime_type)


def _mac(key: str, payload: str) -> str:
    """In hex, over the payload as written: one grant has one valid token text."""
    return hmac.new(key.encode(), b"easel file link\0" + payload.encode(), hashlib.sha256).hexdigest()


CurrentStore = Annotated[Store, from_state("store")]


def links_for(request: Request, store: CurrentStore, settings: CurrentSettings) -> Links:
    return Links(store, settings, settings.public_url or str(request.base_url).rstrip("/"))


ReaderLinks = Annotated[Links, Depends(links_for)]
