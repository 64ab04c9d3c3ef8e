"""Time-limited links to objects: the store's own where it can sign, else our content route with a signed token."""

import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, cast

from fastapi import Depends, Request

from app.db import now
from app.errors import NotFound
from app.identity.actor import settings_of
from app.settings import Settings
from app.storage.store import Store

# Types a browser may show in place; everything else is a download. GIF and SVG can carry what a page would run.
INLINE_TYPES = frozenset({"image/png", "image/jpeg", "image/webp"})


@dataclass(frozen=True)
class Link:
    url: str
    expires_at: datetime


@dataclass(frozen=True)
class Grant:
    """What a token allows: one object, served under this name and type."""

    key: str
    filename: str
    mime_type: str

    @property
    def inline(self) -> bool:
        return self.mime_type in INLINE_TYPES


@dataclass(frozen=True)
class Links:
    """Makes links for one reader; `base_url` is `PUBLIC_URL` or the origin the reader came by."""

    store: Store
    settings: Settings
    base_url: str

    async def to(self, grant: Grant) -> Link:
        lifetime = self.settings.link_ttl_seconds
        expires_at = now() + timedelta(seconds=lifetime)
        signed = await self.store.link(
            grant.key,
            filename=grant.filename,
            mime_type=grant.mime_type,
            inline=grant.inline,
            expires_in=lifetime,
        )
        token = _sign(self.settings, grant, int(expires_at.timestamp())) if signed is None else ""
        return Link(signed or f"{self.base_url}/v1/files/{token}", expires_at.replace(microsecond=0))


def _sign(settings: Settings, grant: Grant, expires: int) -> str:
    payload = json.dumps([grant.key, grant.filename, grant.mime_type, expires], ensure_ascii=False).encode()
    return f"{_encode(payload)}.{_encode(_mac(settings.signing_keys()[0], payload))}"


def verify(settings: Settings, token: str) -> Grant:
    """The grant of a token that is ours and not expired; anything else is NotFound."""
    try:
        payload, mac = (_decode(part) for part in token.split("."))
        if not any(hmac.compare_digest(mac, _mac(key, payload)) for key in settings.signing_keys()):
            raise NotFound("file")
        key, filename, mime_type, expires = json.loads(payload)
    except ValueError:
        raise NotFound("file") from None
    if datetime.fromtimestamp(expires, UTC).timestamp() < time.time():
        raise NotFound("file")
    return Grant(key, filename, mime_type)


def _mac(key: str, payload: bytes) -> bytes:
    return hmac.new(key.encode(), b"easel file link\0" + payload, hashlib.sha256).digest()


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def store_of(request: Request) -> Store:
    return cast(Store, request.app.state.store)


CurrentStore = Annotated[Store, Depends(store_of)]


def links_for(request: Request) -> Links:
    settings = settings_of(request)
    base_url = settings.public_url or str(request.base_url).rstrip("/")
    return Links(store_of(request), settings, base_url)


ReaderLinks = Annotated[Links, Depends(links_for)]
