"""Google Cloud Storage, and its emulators; the only file that knows Google's SDK."""

# Neither Google's storage SDK nor parts of google-auth are typed; what comes out of them is Any, kept in this file.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from google.api_core.exceptions import Conflict, Forbidden, GoogleAPICallError, GoogleAPIError, NotFound, Unauthorized
from google.auth import default as application_default
from google.auth.credentials import AnonymousCredentials, Credentials, Signing
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.auth.iam import Signer
from google.auth.transport.requests import Request
from google.cloud.storage import (
    Client,
    _signing,  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]
)
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from google.oauth2 import service_account
from urllib3.exceptions import HTTPError

from app.settings import Settings, SettingsError
from app.storage.blocking import CONNECT_SECONDS, READ_SECONDS, BlockingStore, Threads
from app.storage.keys import check_bucket, check_key, content_disposition
from app.storage.store import ObjectMissing, StorageUnavailable, Store, StoredObject

_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
_TIMEOUT = (CONNECT_SECONDS, READ_SECONDS)
_PIECE_BYTES = 8 * 1024 * 1024  # of a file, held in memory at once; a multiple of 256 KiB
# A failure is repeated only within its first second; what hung for longer is left to the caller.
_RETRY = DEFAULT_RETRY.with_delay(initial=0.1, maximum=0.5, multiplier=2).with_timeout(1.0)
_OPTIONS: dict[str, Any] = {"timeout": _TIMEOUT, "retry": _RETRY}


def open_store(settings: Settings) -> Store:
    """Looks for credentials once, here; raises SettingsError where there are none."""
    setting = "GCS_BUCKET" if settings.gcs_bucket else "STORAGE_BUCKET"
    bucket = check_bucket(settings.gcs_bucket or settings.storage_bucket, setting)
    emulator = _emulator_url(settings.storage_emulator_host)
    found, project = _find_credentials(settings.gcs_credentials_file, emulator)
    signer: Signing | None = None
    # Other credentials call themselves Signing too, but sign over the network under an address of their own choice.
    if isinstance(found, service_account.Credentials):
        signer = found
    elif settings.gcs_signing_email and found:
        signer = IamSigning(found, settings.gcs_signing_email)
    return GcsStore(
        bucket=bucket,
        credentials=AnonymousCredentials() if emulator or not found else found,
        signer=signer,
        project=settings.gcs_project_id or project,
        emulator=emulator,
        cache_control=f"private, max-age={settings.link_ttl_seconds}",
    )


def _find_credentials(file: Path | None, emulator: str | None) -> tuple[Credentials | None, str | None]:
    """The credentials and the project they belong to; an emulator needs none."""
    if file:
        try:
            key = service_account.Credentials.from_service_account_file(str(file), scopes=_SCOPES)
        except (OSError, ValueError, GoogleAuthError) as error:
            raise SettingsError(
                f"GCS_CREDENTIALS_FILE={file} is not a service account's key;"
                " other kinds of credentials are found by GOOGLE_APPLICATION_CREDENTIALS."
            ) from error
        return key, key.project_id
    if emulator:
        return None, None
    try:
        return application_default(scopes=_SCOPES)
    except DefaultCredentialsError as error:
        raise SettingsError(
            "STORAGE_PROVIDER=gcs finds no Google credentials: set GCS_CREDENTIALS_FILE to a service account's key,"
            " or run where application default credentials exist."
        ) from error


def _emulator_url(value: str | None) -> str | None:
    if not value:
        return None
    return value.rstrip("/") if "://" in value else f"http://{value}"


class GcsStore(BlockingStore):
    def __init__(
        self,
        *,
        bucket: str,
        credentials: Credentials,
        signer: Signing | None = None,
        project: str | None = None,
        emulator: str | None = None,
        cache_control: str | None = None,
    ) -> None:
        """`project` is needed only to make the bucket; without a `signer` there are no links.

        Objects are stored with `cache_control`, as Google documents no link that sets this header.
        """
        super().__init__("gcs")
        options = {"api_endpoint": emulator} if emulator else None
        self._client: Any = Client(project=project, credentials=credentials, client_options=options)
        self._bucket: Any = self._client.bucket(bucket)
        self._project = project
        self._signer = signer
        self._cache_control = cache_control
        self._host = emulator or "Google Cloud Storage"
        self._no_bucket = f"The bucket {bucket!r} does not exist at {self._host}: create it, or correct GCS_BUCKET."
        # Links are made from rows alone: a hung bucket must not delay them.
        self._signing_threads = Threads("gcs signing")

    async def link(
        self, key: str, *, filename: str, mime_type: str, inline: bool, issued_at: datetime, expires_in: int
    ) -> str | None:
        check_key(key)
        if self._signer is None:
            return None
        disposition = content_disposition(filename, inline=inline)
        return await self._signing_threads.run(
            self._sign, key, mime_type, disposition, issued_at, timedelta(seconds=expires_in)
        )

    async def close(self) -> None:
        await super().close()
        self._signing_threads.close()
        self._client.close()

    def _prepare(self, create_bucket: bool) -> None:
        if self._bucket_exists():
            return
        if not create_bucket:
            raise StorageUnavailable(self._no_bucket)
        if self._project is None:
            raise StorageUnavailable(f"{self._no_bucket} Making it here needs GCS_PROJECT_ID.")
        try:
            self._client.create_bucket(self._bucket, project=self._project, **_OPTIONS)
        except Conflict:
            # Another process may have been first; a bucket of another account answers the second request with 403.
            if not self._bucket_exists():
                raise

    def _bucket_exists(self) -> bool:
        """By listing: reading the bucket itself needs a permission that an account for objects lacks."""
        try:
            next(self._blobs(max_results=1), None)
        except NotFound:
            return False
        return True

    def _put(self, key: str, data: bytes | Path, mime_type: str) -> None:
        blob = self._bucket.blob(key, chunk_size=_PIECE_BYTES if isinstance(data, Path) else None)
        blob.cache_control = self._cache_control
        if isinstance(data, Path):
            blob.upload_from_filename(str(data), content_type=mime_type, **_OPTIONS)
        else:
            blob.upload_from_string(data, content_type=mime_type, **_OPTIONS)

    def _get(self, key: str, part: range | None) -> bytes:
        # The checksum is that of the whole object.
        place = {"start": part.start, "end": part.stop - 1, "checksum": None} if part is not None else {}
        with self._missing(key):
            return self._bucket.blob(key).download_as_bytes(**place, **_OPTIONS)

    def _size(self, key: str) -> int:
        blob = self._bucket.blob(key)
        with self._missing(key):
            blob.reload(**_OPTIONS)
        return blob.size

    @contextmanager
    def _missing(self, key: str) -> Generator[None]:
        try:
            yield
        except NotFound as error:
            # An object of a missing bucket is 404, too; only a missing object may count as lost.
            if self._bucket_exists():
                raise ObjectMissing(key) from error
            raise

    def _delete(self, key: str) -> None:
        for blob in self._blobs(prefix=key, versions=True, fields="items(name,generation),nextPageToken"):
            if blob.name == key:
                with suppress(NotFound):
                    self._bucket.blob(key, generation=blob.generation).delete(**_OPTIONS)

    def _list_versions(self, prefix: str) -> Iterator[StoredObject]:
        return self._list(prefix, versions=True)

    def _list(self, prefix: str, *, versions: bool = False) -> Iterator[StoredObject]:
        fields = "items(name,size,updated),nextPageToken"
        for blob in self._blobs(prefix=prefix, versions=versions, fields=fields):
            yield StoredObject(blob.name, blob.size, blob.updated)

    def _blobs(self, **query: Any) -> Iterator[Any]:
        return iter(self._client.list_blobs(self._bucket, **query, **_OPTIONS))

    def _sign(self, key: str, mime_type: str, disposition: str, issued_at: datetime, lifetime: timedelta) -> str:
        # The blob's own method dates each link by the machine's clock, so that no two would be the same.
        with self._translated("sign a link"):
            return _signing.generate_signed_url_v4(
                self._signer,
                resource=f"/{self._bucket.name}/{key}",
                api_access_endpoint=self._client.api_endpoint,
                expiration=lifetime,
                response_type=mime_type,
                response_disposition=disposition,
                _request_timestamp=issued_at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ"),
            )

    @contextmanager
    def _translated(self, action: str) -> Generator[None]:
        try:
            yield
        except NotFound as error:
            raise StorageUnavailable(self._no_bucket) from error
        except (Unauthorized, Forbidden, GoogleAuthError) as error:
            raise StorageUnavailable(
                f"{self._host} refused to {action}: check GCS_CREDENTIALS_FILE and this account's rights on the bucket."
            ) from error
        except GoogleAPICallError as error:
            raise StorageUnavailable(f"{self._host} failed to {action} (HTTP {error.code}).") from error
        except (GoogleAPIError, InvalidResponse, DataCorruption, HTTPError, OSError) as error:
            message = f"{self._host} cannot be reached, or broke the connection, to {action}."
            raise StorageUnavailable(message) from error


class IamSigning(Signing):
    """Signs as `email` by IAM's signBlob, under `credentials` that may create its tokens; each link is a request."""

    def __init__(self, credentials: Credentials, email: str) -> None:
        request = functools.partial(Request(), timeout=int(READ_SECONDS))
        self._email = email
        self._signer = Signer(request, credentials, email)

    def sign_bytes(self, message: bytes) -> bytes:
        return self._signer.sign(message)

    @property
    def signer_email(self) -> str:
        return self._email

    @property
    def signer(self) -> Signer:
        return self._signer
