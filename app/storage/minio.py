"""Any S3-compatible server through MinIO's SDK; the only file that knows it."""

import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from xml.etree.ElementTree import ParseError

from minio import Minio
from minio.credentials.providers import StaticProvider
from minio.error import MinioException, S3Error
from urllib3 import PoolManager
from urllib3.exceptions import HTTPError

from app.settings import Settings, SettingsError
from app.storage.blocking import BlockingStore
from app.storage.endpoint import parse_endpoint
from app.storage.keys import check_bucket, check_key, content_disposition
from app.storage.machine_role import MachineRole
from app.storage.s3_faults import failure, no_bucket, rejection
from app.storage.s3_pool import open_pool
from app.storage.store import ObjectMissing, StorageUnavailable, Store, StoredObject

_SINGLE_PUT_BYTES = 5 * 1024 * 1024  # the SDK's smallest part; larger bodies would be cut up
_LARGEST_PUT_BYTES, _PARTS = 64 * 1024 * 1024, 9_999  # and one for the rest: S3 accepts 10,000
_GONE = {"NoSuchKey", "NoSuchVersion", "NoSuchObject"}
_VERSIONS_UNKNOWN = {"AccessDenied", "MethodNotAllowed", "NotImplemented"}
_ALREADY_THERE = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}


def open_store(settings: Settings) -> Store:
    endpoint = settings.minio_endpoint
    if endpoint is None or settings.missing_for_storage():
        raise SettingsError("STORAGE_PROVIDER=minio needs MINIO_ENDPOINT, MINIO_ACCESS_KEY and MINIO_SECRET_KEY.")
    access_key, secret_key = settings.minio_access_key, settings.minio_secret_key
    return MinioStore(
        endpoint=parse_endpoint(endpoint, secure=settings.minio_secure, name="MINIO_ENDPOINT"),
        public_endpoint=parse_endpoint(
            settings.minio_public_endpoint or endpoint, secure=settings.minio_secure, name="MINIO_PUBLIC_ENDPOINT"
        ),
        keys=(access_key.get_secret_value(), secret_key.get_secret_value()) if access_key and secret_key else None,
        bucket=check_bucket(settings.storage_bucket, "STORAGE_BUCKET"),
        region=settings.minio_region,
    )


class MinioStore(BlockingStore):
    def __init__(
        self,
        *,
        endpoint: tuple[str, bool],
        public_endpoint: tuple[str, bool],
        keys: tuple[str, str] | None,
        bucket: str,
        region: str,
    ) -> None:
        """The endpoints are those of `parse_endpoint`; without keys (access, secret) the machine's role stands in.

        Raises SettingsError for what the SDK does not accept.
        """
        super().__init__("minio")
        self._bucket = bucket
        self._host, _ = endpoint
        self._pool = open_pool()
        self._versioned: bool | None = None

        self._role = MachineRole(self._pool, region) if keys is None else None
        provider = StaticProvider(*keys) if keys else self._role

        def connect(host: str, secure: bool) -> Minio:
            # The region is always given: without it the SDK asks the server for it, even to sign a link.
            return Minio(host, secure=secure, region=region, http_client=self._pool, credentials=provider)

        try:
            self._client = connect(*endpoint)
            self._signer = connect(*public_endpoint)
        except ValueError as error:
            raise SettingsError(f"The MINIO_ settings cannot be used: {error}.") from error

    async def link(
        self, key: str, *, filename: str, mime_type: str, inline: bool, issued_at: datetime, expires_in: int
    ) -> str | None:
        sign = partial(
            self._signer.presigned_get_object,
            self._bucket,
            check_key(key),
            expires=timedelta(seconds=expires_in),
            request_date=issued_at,
            response_headers={
                "response-content-type": mime_type,
                "response-content-disposition": content_disposition(filename, inline=inline),
                "response-cache-control": f"private, max-age={expires_in}",
            },
        )
        # Only a role that must be asked for new credentials takes more than a computation.
        return await self._call("sign a link", sign) if self._role is not None and self._role.is_due() else sign()

    async def close(self) -> None:
        await super().close()
        self._pool.clear()

    def _prepare(self, create_bucket: bool) -> None:
        if self._client.bucket_exists(self._bucket):
            return
        if not create_bucket:
            raise StorageUnavailable(no_bucket(self._host, self._bucket))
        try:
            self._client.make_bucket(self._bucket)
        except S3Error as error:
            # Another process may have been first; a bucket of another account answers the second request with 403.
            if error.code not in _ALREADY_THERE or not self._client.bucket_exists(self._bucket):
                raise

    def _put(self, key: str, data: bytes | Path, mime_type: str) -> None:
        if isinstance(data, Path):
            _put_file(self._client, self._pool, self._bucket, key, data, mime_type)
            return
        size, part_size = len(data), max(len(data), _SINGLE_PUT_BYTES)
        self._client.put_object(self._bucket, key, io.BytesIO(data), size, content_type=mime_type, part_size=part_size)

    def _get(self, key: str, part: range | None) -> bytes:
        offset, length = (part.start, len(part)) if part is not None else (0, 0)
        with self._missing(key):
            response = self._client.get_object(self._bucket, key, offset, length)
        try:
            return response.read()
        finally:
            # Closed before it goes back to the pool: a connection that was not read to its end cannot be used again.
            response.close()
            response.release_conn()

    def _size(self, key: str) -> int:
        with self._missing(key):
            return self._client.stat_object(self._bucket, key).size or 0

    @contextmanager
    def _missing(self, key: str) -> Generator[None]:
        try:
            yield
        except S3Error as error:
            if error.code in _GONE:
                raise ObjectMissing(key) from error
            raise

    def _delete(self, key: str) -> None:
        if not self._is_versioned():
            self._client.remove_object(self._bucket, key)
            return
        for version in self._client.list_objects(self._bucket, prefix=key, include_version=True):
            if version.object_name == key:
                self._client.remove_object(self._bucket, key, version_id=version.version_id)

    def _is_versioned(self) -> bool:
        """Asked once; servers without versions, and accounts that may not ask, count as without."""
        if self._versioned is None:
            try:
                self._versioned = self._client.get_bucket_versioning(self._bucket).status is not None
            except S3Error as error:
                if error.code not in _VERSIONS_UNKNOWN:
                    raise
                self._versioned = False
        return self._versioned

    def _list_versions(self, prefix: str) -> Iterator[StoredObject]:
        return self._list(prefix, versions=self._is_versioned())

    def _list(self, prefix: str, *, versions: bool = False) -> Iterator[StoredObject]:
        for item in self._client.list_objects(self._bucket, prefix=prefix, recursive=True, include_version=versions):
            if item.object_name and item.last_modified:
                yield StoredObject(item.object_name, item.size or 0, item.last_modified)

    @contextmanager
    def _translated(self, action: str) -> Generator[None]:
        try:
            yield
        except S3Error as error:
            raise StorageUnavailable(rejection(self._host, self._bucket, action, error.code)) from error
        except (MinioException, ParseError) as error:
            raise StorageUnavailable(f"The object storage at {self._host} failed to {action}.") from error
        except (HTTPError, OSError) as error:
            raise StorageUnavailable(failure(self._host, error)) from error


def _put_file(client: Minio, pool: PoolManager, bucket: str, key: str, path: Path, mime_type: str) -> None:
    """With a presigned link, or a large one in parts: the SDK holds in memory what it sends at once."""
    with path.open("rb") as file:
        if (size := path.stat().st_size) > _LARGEST_PUT_BYTES:
            client.put_object(bucket, key, file, size, mime_type, part_size=max(size // _PARTS, _SINGLE_PUT_BYTES))
            return
        link = client.presigned_put_object(bucket, key, expires=timedelta(minutes=1))
        headers = {"Content-Type": mime_type, "Content-Length": str(size)}
        if (response := pool.request("PUT", link, body=file, headers=headers)).status != HTTPStatus.OK:
            raise S3Error.fromxml(response)
