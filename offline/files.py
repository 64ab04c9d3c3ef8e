"""Uploaded files, as the Files API keeps them: bytes and what is known of them, side by side until they expire."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from openai.types import FilePurpose

from offline.state import read_bytes, write_bytes
from offline.wire import ApiError, Json, decode, encode, is_id, new_file_id

_PURPOSES = get_args(FilePurpose)
_MIN_SECONDS, _MAX_SECONDS = 3600, 30 * 24 * 3600


def check_form(fields: Mapping[str, object]) -> tuple[str, int | None]:
    """`purpose`, and the seconds of `expires_after` (None without); raises ApiError."""
    purpose = fields.get("purpose")
    if purpose not in _PURPOSES:
        raise ApiError(f"'{purpose}' is not one of {list(_PURPOSES)} - 'purpose'", param="purpose")
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return str(purpose), None
    if anchor != "created_at":
        message = f"Invalid value: '{anchor}'. Supported values are: 'created_at'."
        raise ApiError(message, param="expires_after.anchor", code="invalid_value")
    if not str(seconds).isdecimal() or not _MIN_SECONDS <= int(str(seconds)) <= _MAX_SECONDS:
        message = f"Invalid 'expires_after.seconds': '{seconds}'. Expected {_MIN_SECONDS} to {_MAX_SECONDS}."
        raise ApiError(message, param="expires_after.seconds", code="invalid_value")
    return str(purpose), int(str(seconds))


def save_file(root: Path, data: bytes, filename: str, purpose: str, lifetime: int | None) -> Json:
    """Keep it for `lifetime` seconds (None: for ever); the File object."""
    now = int(time.time())
    about: Json = {
        "object": "file",
        "id": new_file_id(),
        "purpose": purpose,
        "filename": filename,
        "bytes": len(data),
        "created_at": now,
        "expires_at": None if lifetime is None else now + lifetime,
        "status": "processed",
        "status_details": None,
    }
    write_bytes(root / "files" / about["id"], data)
    write_bytes(_about_path(root, about["id"]), encode(about))
    return about


def load_file(root: Path, file_id: str) -> Json | None:
    """The File object, None once it has expired or been deleted."""
    if not is_id(file_id) or not _about_path(root, file_id).exists():
        return None
    about = decode(_about_path(root, file_id).read_bytes())
    if about["expires_at"] is not None and about["expires_at"] <= time.time():
        delete_file(root, file_id)
        return None
    return about


def load_bytes(root: Path, file_id: str) -> bytes | None:
    return read_bytes(root / "files", file_id) if load_file(root, file_id) else None


def delete_file(root: Path, file_id: str) -> bool:
    """Whether there was such a file."""
    if not is_id(file_id) or not _about_path(root, file_id).exists():
        return False
    for path in (_about_path(root, file_id), root / "files" / file_id):
        path.unlink(missing_ok=True)
    return True


def _about_path(root: Path, file_id: str) -> Path:
    return root / "files" / f"{file_id}.json"
