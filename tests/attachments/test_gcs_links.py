"""Google's signed links. The emulator checks no signature, so these tests check it as Google would."""

import asyncio
import base64
import hashlib
import json
import re
import threading
from collections.abc import Generator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit
from uuid import UUID, uuid4

import httpx
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from google.auth import iam
from google.oauth2.credentials import Credentials

from app.db import now
from app.settings import Settings
from app.storage.gcs import GcsStore, IamSigning
from app.storage.keys import image_key
from app.storage.service import open_store
from app.storage.store import StorageUnavailable, Store
from tests.servers import free_port, gcs_server
from tests.service_account import PRIVATE_KEY, SIGNER, service_account_file

TENANT = UUID("0198c0de-0000-7000-8000-000000000001")
KEY = image_key(TENANT, uuid4(), "png")


async def test_a_service_accounts_link_is_valid_for_one_get_of_one_object(tmp_path: Path) -> None:
    with gcs_server(tmp_path / "gcs") as gcs:
        store = open_store(
            Settings(
                storage_provider="gcs",
                storage_emulator_host=gcs.url,
                gcs_credentials_file=service_account_file(tmp_path),
                storage_bucket="images",
            )
        )
        await store.prepare(create_bucket=True)
        await store.put(KEY, b"bytes", mime_type="image/png")
        link = await _link(store)
        async with httpx.AsyncClient() as client:
            assert (await client.get(link)).content == b"bytes"
        await store.close()
    _verify(link)
    for forged in [
        link.replace(KEY, image_key(TENANT, uuid4(), "png")),
        re.sub(r"X-Goog-Expires=\d+", "X-Goog-Expires=3000", link),
        link.replace("image%2Fpng", "text%2Fhtml"),
    ]:
        with pytest.raises(InvalidSignature):
            _verify(forged)
    with pytest.raises(InvalidSignature):
        _verify(link, method="PUT")


async def test_without_a_private_key_iam_signs(iam_server: str) -> None:
    store = GcsStore(bucket="images", credentials=Credentials("token"), signer=_iam_signing())
    link = await _link(store)
    assert link.startswith("https://storage.googleapis.com/images/t/")
    _verify(link)
    await store.close()


async def test_a_link_that_iam_refuses_is_unavailable(iam_server: str) -> None:
    store = GcsStore(bucket="images", credentials=Credentials("token"), signer=_iam_signing("wrong token"))
    with pytest.raises(StorageUnavailable, match="refused to sign a link"):
        await _link(store)
    await store.close()


@pytest.mark.slow
async def test_a_link_of_the_same_moment_is_the_same_link_whoever_makes_it(tmp_path: Path) -> None:
    links: list[str] = []
    for _ in range(2):
        key_file = service_account_file(tmp_path)
        store = open_store(Settings(storage_provider="gcs", gcs_credentials_file=key_file, storage_bucket="images"))
        links.append(await _link(store, issued_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)))
        await asyncio.sleep(1.1)  # the library would date links by the second
        await store.close()
    assert links[0] == links[1]
    query = parse_qs(urlsplit(links[0]).query)
    assert (query["X-Goog-Date"], query["X-Goog-Expires"]) == (["20260102T030405Z"], ["300"])


@pytest.fixture
def iam_server(monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    """IAM's signBlob on loopback; Google offers no emulator and no setting for its address."""
    gcs = ThreadingHTTPServer(("127.0.0.1", free_port()), _SignBlob)
    url = f"http://127.0.0.1:{gcs.server_port}"
    monkeypatch.setattr(iam, "_IAM_SIGN_ENDPOINT", url + "/{}:signBlob")
    thread = threading.Thread(target=gcs.serve_forever, args=(0.02,))
    thread.start()
    yield url
    gcs.shutdown()
    thread.join()
    gcs.server_close()


class _SignBlob(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        allowed = self.path == f"/{SIGNER}:signBlob" and self.headers["Authorization"] == "Bearer token"
        signature = PRIVATE_KEY.sign(base64.b64decode(question["payload"]), padding.PKCS1v15(), hashes.SHA256())
        answer = json.dumps({"signedBlob": base64.b64encode(signature).decode()}).encode() if allowed else b"{}"
        self.send_response(200 if allowed else 403)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        pass


def _iam_signing(bearer: str = "token") -> IamSigning:
    return IamSigning(Credentials(bearer), SIGNER)


async def _link(store: Store, issued_at: datetime | None = None) -> str:
    issued_at = issued_at or now()
    link = await store.link(
        KEY, filename="Bär.png", mime_type="image/png", inline=True, issued_at=issued_at, expires_in=300
    )
    assert link
    return link


def _verify(link: str, *, method: str = "GET") -> None:
    """V4 as Google's reference describes it: https://cloud.google.com/storage/docs/authentication/canonical-requests."""
    url = urlsplit(link)
    query = {name: values[0] for name, values in parse_qs(url.query, strict_parsing=True).items()}
    signature = bytes.fromhex(query.pop("X-Goog-Signature"))
    canonical_query = "&".join(f"{quote(name, safe='')}={quote(query[name], safe='')}" for name in sorted(query))
    canonical = "\n".join([method, url.path, canonical_query, f"host:{url.netloc}", "", "host", "UNSIGNED-PAYLOAD"])
    scope = query["X-Goog-Credential"].removeprefix(f"{SIGNER}/")
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    message = "\n".join(["GOOG4-RSA-SHA256", query["X-Goog-Date"], scope, digest])
    PRIVATE_KEY.public_key().verify(signature, message.encode(), padding.PKCS1v15(), hashes.SHA256())
