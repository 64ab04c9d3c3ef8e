"""What a link allows, and the signed token of a link that leads to our own content route."""

import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import NamedTuple

from app.errors import NotFound
from app.settings import Settings

# Types a browser may show in place; everything else is a download. GIF and SVG can carry what a page would run.
INLINE_TYPES = frozenset({"image/png", "image/jpeg", "image/webp"})
ARCHIVE_TYPE = "application/zip"
SERVED_TYPES = INLINE_TYPES | {"image/gif", "image/svg+xml", ARCHIVE_TYPE}
UNKNOWN_TYPE = "application/octet-stream"


class Grant(NamedTuple):
    """What a link allows: to read one object under this name and type; as a `download`, whatever its type."""

    key: str
    filename: str
    mime_type: str
    download: bool = False

    @property
    def inline(self) -> bool:
        return self.mime_type in INLINE_TYPES and not self.download

    @property
    def content_type(self) -> str:
        """The type it is served as: an unknown type is served as a plain download."""
        return self.mime_type if self.mime_type in SERVED_TYPES else UNKNOWN_TYPE


def sign(settings: Settings, grant: Grant, expires: float) -> str:
    facts = json.dumps([*grant[:3], expires, *([True] if grant.download else [])], ensure_ascii=False)
    payload = urlsafe_b64encode(facts.encode()).decode().rstrip("=")
    return f"{payload}.{_mac(settings.signing_keys()[0], payload)}"


def verify(settings: Settings, token: str, now: datetime) -> Grant:
    """The grant of a token that is ours and not expired; anything else is NotFound."""
    payload, _, mac = token.partition(".")
    if not any(hmac.compare_digest(mac.encode(), _mac(key, payload).encode()) for key in settings.signing_keys()):
        raise NotFound("file")
    facts = urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    key, filename, mime_type, expires, *download = json.loads(facts)
    if expires <= now.timestamp():
        raise NotFound("file")
    return Grant(key, filename, mime_type, bool(download))


def _mac(key: str, payload: str) -> str:
    """In hex, over the payload as written: one grant has one valid token text."""
    return hmac.new(key.encode(), b"easel file link\0" + payload.encode(), hashlib.sha256).hexdigest()
