"""Any S3-compatible server through MinIO's SDK; the only file that knows it."""

import io
import itertools
import os
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError

import certifi
import urllib3
from minio import Minio
from minio.datatypes import Object
from minio.error import MinioException, S3Error
from urllib3.connectionpool import ConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, NewConnectionError, SSLError
from urllib3.exceptions import TimeoutError as TooSlow
from urllib3.response import BaseHTTPResponse

from app.settings import SettingsError
from app.storage.keys import check_key, content_disposition, is_key
from app.storage.store import ObjectMissing, StorageUnavailable, StoredObject
from app.storage.threads import CONNECT_SECONDS, READ_SECONDS, THREADS, Threads

_PAGE = 1000
_SINGLE_PUT_BYTES = 5 * 1024 * 1024  # the SDK's smallest part; larger bodies would be cut up
_GONE = {"NoSuchKey", "NoSuchVersion", "NoSuchObject"}
_VERSIONS_UNKNOWN = {"AccessDenied", "MethodNotAllowed", "NotImplemented"}
_ALREADY_THERE = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}


class MinioStore:
    def __init__(
        self,
        *,
        endpoint: str,
        access_key: str,
        secret_key: str,
        bucket: str,
        public_endpoint: str | None = None,
        region: str = "us-east-1",
        secure: bool = True,
    ) -> None:
        """`secure` counts for endpoints without a scheme. Raises SettingsError for an endpoint that cannot be one."""
        self._bucket = bucket
        self._pool = _open_pool()
        self._versioned: bool | None = None
        self._threads = Threads("minio")
        self._host, secure_here = parse_endpoint(endpoint, secure=secure, name="MINIO_ENDPOINT")
        public_host, public_secure = parse_endpoint(
            public_endpoint or endpoint, secure=secure, name="MINIO_PUBLIC_ENDPOINT"
        )

        def connect(host: str, tls: bool) -> Minio:
            # The region is always given: without it the SDK asks the server for it, even to sign a link.
            return Minio(host, access_key, secret_key, secure=tls, region=region, http_client=self._pool)

        try:
            self._client = connect(self._host, secure_here)
            self._signer = connect(public_host, public_secure)
        except ValueError as error:
            raise SettingsError(f"The MINIO_ settings cannot be used: {error}.") from error

    async def prepare(self, *, create_bucket: bool) -> None:
        await self._threads.run(self._prepare, create_bucket)

    async def put(self, key: str, data: bytes | Path, *, mime_type: str) -> None:
        if isinstance(data, Path):
            await self._threads.run(self._put_file, check_key(key), data, mime_type)
        else:
            await self._threads.run(self._put, check_key(key), data, mime_type)

    async def get(self, key: str) -> bytes:
        return await self._threads.run(self._get, check_key(key))

    async def delete(self, key: str) -> None:
        await self._threads.run(self._delete, check_key(key))

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        objects = self._client.list_objects(self._bucket, prefix=prefix, recursive=True)
        while page := await self._threads.run(self._next_page, objects):
            for item in page:
                if item.object_name and item.last_modified and is_key(item.object_name):
                    yield StoredObject(item.object_name, item.size or 0, item.last_modified)

    async def link(self, key: str, *, filename: str, mime_type: str, inline: bool, expires_in: int) -> str | None:
        return self._signer.presigned_get_object(
            self._bucket,
            check_key(key),
            expires=timedelta(seconds=expires_in),
            response_headers={
                "response-content-type": mime_type,
                "response-content-disposition": content_disposition(filename, inline=inline),
                "response-cache-control": f"private, max-age={expires_in}",
            },
        )

    async def close(self) -> None:
        self._threads.close()
        self._pool.clear()

    def _prepare(self, create_bucket: bool) -> None:
        with self._explained("open the bucket"):
            if self._client.bucket_exists(self._bucket):
                return
            if not create_bucket:
                raise StorageUnavailable(
                    f"The bucket {self._bucket!r} does not exist at {self._host}: create it, or correct STORAGE_BUCKET."
                )
            try:
                self._client.make_bucket(self._bucket)
            except S3Error as error:
                # Another process may have been first; a bucket of someone else answers the second look with 403.
                if error.code not in _ALREADY_THERE or not self._client.bucket_exists(self._bucket):
                    raise

    def _put(self, key: str, data: bytes, mime_type: str) -> None:
        with self._explained("store an object"):
            self._client.put_object(
                self._bucket,
                key,
                io.BytesIO(data),
                len(data),
                content_type=mime_type,
                part_size=max(len(data), _SINGLE_PUT_BYTES),
            )

    def _put_file(self, key: str, path: Path, mime_type: str) -> None:
        """By a link of our own, as the SDK would hold the whole file in memory to hash it."""
        with self._explained("store an object"), path.open("rb") as file:
            link = self._client.presigned_put_object(self._bucket, key, expires=timedelta(minutes=1))
            headers = {"Content-Type": mime_type, "Content-Length": str(path.stat().st_size)}
            response = self._pool.request("PUT", link, body=file, headers=headers)
            if response.status != HTTPStatus.OK:
                raise S3Error.fromxml(response)

    def _get(self, key: str) -> bytes:
        with self._explained("read an object", key):
            response = self._client.get_object(self._bucket, key)
            try:
                return response.read()
            finally:
                # Not handed back to the pool unless read to its end: a half-read connection is of no use.
                response.close()
                response.release_conn()

    def _delete(self, key: str) -> None:
        with self._explained("delete an object"):
            if not self._is_versioned():
                self._client.remove_object(self._bucket, key)
                return
            for version in self._client.list_objects(self._bucket, prefix=key, include_version=True):
                if version.object_name == key:
                    self._client.remove_object(self._bucket, key, version_id=version.version_id)

    def _is_versioned(self) -> bool:
        """Asked once; servers that know no versions, and accounts that may not ask, count as without."""
        if self._versioned is None:
            try:
                self._versioned = self._client.get_bucket_versioning(self._bucket).status is not None
            except S3Error as error:
                if error.code not in _VERSIONS_UNKNOWN:
                    raise
                self._versioned = False
        return self._versioned

    def _next_page(self, objects: Iterator[Object]) -> Sequence[Object]:
        with self._explained("list objects"):
            return list(itertools.islice(objects, _PAGE))

    @contextmanager
    def _explained(self, doing: str, key: str | None = None) -> Generator[None]:
        """Turns what the SDK and urllib3 raise into our errors, without their texts: those quote requests."""
        try:
            yield
        except S3Error as error:
            if key and error.code in _GONE:
                raise ObjectMissing(key) from error
            raise StorageUnavailable(self._refusal(doing, error.code)) from error
        except (MinioException, ParseError) as error:
            raise StorageUnavailable(f"The object storage at {self._host} failed to {doing}.") from error
        except (HTTPError, OSError) as error:
            raise StorageUnavailable(self._silence(error)) from error

    def _refusal(self, doing: str, code: str | None) -> str:
        if code == "NoSuchBucket":
            return f"The bucket {self._bucket!r} does not exist at {self._host}: create it, or correct STORAGE_BUCKET."
        refused = f"The object storage at {self._host} refused to {doing} ({code})"
        if code in {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}:
            return f"{refused}: check MINIO_ACCESS_KEY, MINIO_SECRET_KEY and this account's rights on the bucket."
        return f"{refused}."

    def _silence(self, error: HTTPError | OSError) -> str:
        reason = error.reason if isinstance(error, MaxRetryError) else error
        if isinstance(reason, SSLError):
            return (
                f"The object storage at {self._host} cannot be reached over TLS: set MINIO_SECURE=false for a server"
                " without TLS, or SSL_CERT_FILE to the authority that signed its certificate."
            )
        if isinstance(reason, ConnectTimeoutError):
            return f"The object storage at {self._host} cannot be reached: start it, or correct MINIO_ENDPOINT."
        how = "answered too slowly" if isinstance(reason, TooSlow) else "broke the connection"
        return f"The object storage at {self._host} {how}."


def parse_endpoint(value: str, *, secure: bool, name: str) -> tuple[str, bool]:
    """`host:port` or a URL of it -> (`host:port`, whether to speak TLS); `name` is the setting errors speak of."""
    wanted = SettingsError(f"{name} must be host:port or http(s)://host:port, without a user or a query.")
    try:
        url = urlsplit(value if "://" in value else f"//{value}")
        usable = url.scheme in {"", "http", "https"} and url.hostname and url.port != 0
    except ValueError:
        raise wanted from None
    if not usable or url.username or url.query or url.fragment:
        raise wanted
    if url.path.strip("/"):
        raise SettingsError(f"{name} must not have a path: an S3 server is addressed by host and port alone.")
    return url.netloc, url.scheme == "https" if url.scheme else secure


class _RetryBroken(urllib3.Retry):
    """Repeats once what broke (a kept connection the server had closed), never what timed out."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: BaseHTTPResponse | None = None,
        error: Exception | None = None,
        _pool: ConnectionPool | None = None,
        _stacktrace: TracebackType | None = None,
    ) -> Self:
        if isinstance(error, TooSlow) and not isinstance(error, NewConnectionError):
            raise error
        return super().increment(method, url, response, error, _pool, _stacktrace)


class _Pool(urllib3.PoolManager):
    def urlopen(self, method: str, url: str, redirect: bool = True, **options: Any) -> BaseHTTPResponse:
        response = super().urlopen(method, url, redirect, **options)
        # Some servers call their errors text/xml; the SDK reads an error's code from application/xml only.
        if response.headers.get("content-type", "").startswith("text/xml"):
            response.headers["content-type"] = "application/xml"
        return response


def _open_pool() -> urllib3.PoolManager:
    return _Pool(
        maxsize=THREADS,
        timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
        retries=_RetryBroken(
            total=1,
            redirect=False,  # a redirect would carry the request's signature elsewhere
            backoff_factor=0.2,
            status_forcelist=[500, 502, 503, 504],
            respect_retry_after_header=False,  # it may ask for hours
            raise_on_status=False,
        ),
    )
