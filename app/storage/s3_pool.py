"""The HTTP connections to an S3 server: their time limits, and what is sent again."""

import os
from types import TracebackType
from typing import Any, Self

import certifi
import urllib3
from urllib3.connectionpool import ConnectionPool
from urllib3.exceptions import NewConnectionError
from urllib3.exceptions import TimeoutError as TooSlow
from urllib3.response import BaseHTTPResponse

from app.storage.blocking import CONNECT_SECONDS, READ_SECONDS, THREADS


def open_pool() -> urllib3.PoolManager:
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
