"""Which store the settings name."""

import re
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from app.settings import Settings, SettingsError
from app.storage.gcs import open_gcs_store
from app.storage.memory import DRAFTS, MemoryStore
from app.storage.minio import MinioStore
from app.storage.store import Store

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")


def open_store(settings: Settings) -> Store:
    """Raises SettingsError in one sentence; reaches no server: `prepare` does."""
    if settings.storage_provider == "minio":
        return _open_minio_store(settings)
    if settings.storage_provider == "gcs":
        name = "GCS_BUCKET" if settings.gcs_bucket else "STORAGE_BUCKET"
        return open_gcs_store(settings, bucket=_bucket(settings.gcs_bucket or settings.storage_bucket, name))
    # Rows and pictures live and die together: files beside the embedded Postgres, else nothing outlives the process.
    return MemoryStore(_objects(settings) if settings.database_url is None else None)


def leftover_drafts(settings: Settings, *, before: datetime) -> list[Path]:
    """Files that killed processes were writing for a memory store."""
    drafts = _objects(settings) / DRAFTS
    found: list[Path] = []
    for draft in drafts.iterdir() if drafts.is_dir() else ():
        with suppress(FileNotFoundError):  # written meanwhile
            if draft.stat().st_mtime <= before.timestamp():
                found.append(draft)
    return found


def _objects(settings: Settings) -> Path:
    return settings.data_dir / "objects"


def _open_minio_store(settings: Settings) -> MinioStore:
    if not (settings.minio_endpoint and settings.minio_access_key and settings.minio_secret_key):
        raise SettingsError("STORAGE_PROVIDER=minio needs MINIO_ENDPOINT, MINIO_ACCESS_KEY and MINIO_SECRET_KEY.")
    return MinioStore(
        endpoint=settings.minio_endpoint,
        public_endpoint=settings.minio_public_endpoint,
        access_key=settings.minio_access_key.get_secret_value(),
        secret_key=settings.minio_secret_key.get_secret_value(),
        bucket=_bucket(settings.storage_bucket, "STORAGE_BUCKET"),
        region=settings.minio_region,
        secure=settings.minio_secure,
    )


def _bucket(name: str, setting: str) -> str:
    if not _BUCKET.fullmatch(name) or ".." in name:
        raise SettingsError(
            f"{setting}={name!r} cannot be a bucket's name:"
            " it takes 3 to 63 small letters, digits, dots and dashes, and starts and ends with a letter or digit."
        )
    return name
