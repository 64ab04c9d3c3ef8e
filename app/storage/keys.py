"""Names: buckets, keys and files. Keys consist of our own ids only, so the same object always has the same key."""

import hashlib
import re
import unicodedata
from urllib.parse import quote
from uuid import UUID

from app.settings import SettingsError

FILENAME_MAX_CHARACTERS = 150

IMAGES, UPLOADS, VARIANTS, PREVIEWS, EXPORTS = "images", "uploads", "variants", "previews", "exports"
"""The folders of a tenant."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_ID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_EXTENSION = "[a-z0-9]{1,8}"
_KEY = re.compile(
    rf"t/{_ID}/(?:(?:{IMAGES}|{UPLOADS})/{_ID}|(?:{VARIANTS}|{EXPORTS})/{_ID}/[0-9]{{1,5}}"
    rf"|{PREVIEWS}/{_ID}/[0-9a-f]{{32}}/[0-9]{{1,3}})"
    rf"\.{_EXTENSION}"
)


def image_key(tenant_id: UUID, object_id: UUID, extension: str) -> str:
    return check_key(f"{tenant_prefix(tenant_id)}{IMAGES}/{object_id}.{extension}")


def upload_key(tenant_id: UUID, object_id: UUID, extension: str) -> str:
    return check_key(f"{tenant_prefix(tenant_id)}{UPLOADS}/{object_id}.{extension}")


def variant_key(tenant_id: UUID, object_id: UUID, width: int) -> str:
    return check_key(f"{variant_prefix(tenant_id, object_id)}{width}.webp")


def variant_prefix(tenant_id: UUID, object_id: UUID) -> str:
    return f"{tenant_prefix(tenant_id)}{VARIANTS}/{object_id}/"


def preview_key(tenant_id: UUID, run_id: UUID, tool_call_id: str, index: int, extension: str) -> str:
    """The provider chooses `tool_call_id`, so only its hash becomes part of a key."""
    return check_key(f"{preview_prefix(tenant_id, run_id, tool_call_id)}{index}.{extension}")


def preview_prefix(tenant_id: UUID, run_id: UUID, tool_call_id: str | None = None) -> str:
    """Of all previews of a run, or of those of one tool call."""
    of_run = f"{tenant_prefix(tenant_id)}{PREVIEWS}/{run_id}/"
    if tool_call_id is None:
        return of_run
    return f"{of_run}{hashlib.sha256(tool_call_id.encode()).hexdigest()[:32]}/"


def export_prefix(tenant_id: UUID, export_id: UUID) -> str:
    """Of the archives of all attempts at an export."""
    return f"{tenant_prefix(tenant_id)}{EXPORTS}/{export_id}/"


def parse(key: str) -> tuple[str, UUID]:
    """The folder a key of ours lies in, and whose it is: a run's in `previews`, an export's, else an attachment's."""
    _, _, folder, owner, *_ = key.split("/")
    return folder, UUID(owner.partition(".")[0])


def tenant_prefix(tenant_id: UUID) -> str:
    return f"t/{tenant_id}/"


def check_key(key: str) -> str:
    """The key itself, or ValueError where it is none of ours (`../`, absolute paths, other prefixes)."""
    if not is_key(key):
        raise ValueError(f"{key[:200]!r} is not a key of this service")
    return key


def is_key(key: str) -> bool:
    return _KEY.fullmatch(key) is not None


def check_bucket(name: str, setting: str) -> str:
    """The name itself, or SettingsError that names the setting."""
    if not _BUCKET.fullmatch(name) or ".." in name:
        raise SettingsError(
            f"{setting}={name!r} is not a valid bucket name: 3 to 63 lower-case letters, digits, dots, dashes and"
            " underscores are, with a letter or digit first and last."
        )
    return name


def content_disposition(filename: str, *, inline: bool) -> str:
    """RFC 6266: a plain `filename` for old clients beside RFC 5987's `filename*`, where the name needs it."""
    kind = "inline" if inline else "attachment"
    name = _clean(filename)
    plain = re.sub(r"[^A-Za-z0-9 ._()-]", "_", name)
    if plain == name:
        return f'{kind}; filename="{plain}"'
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _clean(filename: str) -> str:
    """Without path separators and without the control, format and surrogate characters that disguise names."""
    composed = unicodedata.normalize("NFC", filename).replace("/", "_").replace("\\", "_")
    visible = "".join(character for character in composed if not unicodedata.category(character).startswith("C"))
    stem, dot, extension = visible.strip(" .").rpartition(".")
    if not dot:
        return extension[:FILENAME_MAX_CHARACTERS] or "file"
    return f"{stem[: FILENAME_MAX_CHARACTERS - 1 - len(extension[:16])]}.{extension[:16]}"
