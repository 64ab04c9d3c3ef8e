"""Promise 21: whoever dies and whatever does not answer, an erasure ends with nothing left."""

import os
import random
import threading
import time
import uuid
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from minio import Minio
from PIL import Image

from tests import timeouts
from tests.app_server import ApiUser, AppServer, one, running_server
from tests.cluster import Cluster, running_cluster
from tests.results import Results
from tests.servers import Proxy, s3_server
from tests.tables import rows

Json = dict[str, Any]

SECONDS_BETWEEN_KILLS = 0.4
GONE_AFTER_SECONDS = 300
KEPT = {"erasures", "provider_calls", "usage_counters", "usage_entries"}
TABLES_WITH_TENANT = """
SELECT table_name FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)
WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND column_name = 'tenant_id' ORDER BY 1
"""


@pytest.fixture
def cluster(database_url: str, provider_url: str, tmp_path: Path) -> Generator[Cluster]:
    with running_cluster(database_url, provider_url, tmp_path) as cluster:
        yield cluster


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.prove)])
@pytest.mark.timeout(900)
def test_whoever_dies_an_erased_tenant_is_gone_and_its_neighbour_is_as_before(
    cluster: Cluster, kills: int, results: Results
) -> None:
    seed = int(os.environ.get("EASEL_SEED", random.randrange(10**6)))
    chance = random.Random(seed)
    neighbour = ApiUser(cluster.apis[0][1])
    link = one(neighbour.draw(), "attachment.created")["attachment"]["url"]
    owners = [ApiUser(cluster.apis[0][1]) for _ in range(max(3, kills // 5))]
    links = [
        one(owner.draw(image={"partial_images": 1}), "attachment.created")["attachment"]["url"] for owner in owners
    ]
    timeouts.wait_until(lambda: not rows(cluster.database_url, "SELECT 1 FROM attachments WHERE variants IS NULL"))
    before = found_of(cluster, neighbour)
    for owner in owners:
        fill(cluster, owner, 200)
        owner.start("Draw a house [offline: slow=100]", agent_key="designer")
    stop = threading.Event()
    with ThreadPoolExecutor(len(owners)) as pool:
        uploading = [pool.submit(keep_uploading, cluster, owner, stop) for owner in owners]
        waiting = list(owners)
        for number in range(kills):
            time.sleep(chance.random() * 2 * SECONDS_BETWEEN_KILLS)
            if waiting and number % (kills // len(owners)) == 0:
                threading.Thread(target=erase, args=(cluster, waiting.pop())).start()
            cluster.kill_one(chance)
        for owner in waiting:
            erase(cluster, owner)
        killed = time.monotonic()
        timeouts.wait_until(lambda: len(erasures(cluster)) == len(owners))
        stop.set()
        for one_of_them in uploading:
            one_of_them.result()
    timeouts.wait_until(lambda: all(end for _, end, *_ in erasures(cluster)), GONE_AFTER_SECONDS)
    ended = time.monotonic() - killed
    left = [found_of(cluster, owner) for owner in owners]
    working = [url for url in links if httpx.get(renewed(cluster, url)).status_code == 200]
    removed = sum(number for *_, number in erasures(cluster))
    results(
        21,
        "erase",
        tried=f"{kills} kills of APIs and workers, {len(owners)} tenants, {removed} objects counted",
        kept=f"{sum(sum(counts.values()) for counts, _ in left)} rows, {sum(len(keys) for _, keys in left)} objects,"
        f" {len(working)} links; {ended:.0f} s after the last kill, the neighbour as before",
        seed=seed,
    )
    assert left == [({}, {})] * len(owners)
    assert working == []
    assert found_of(cluster, neighbour) == before
    assert httpx.get(renewed(cluster, link)).status_code == 200
    for user in (*owners, neighbour):
        user.http.close()


@pytest.mark.parametrize("objects", [300, pytest.param(3000, marks=pytest.mark.prove)])
@pytest.mark.timeout(300)
def test_objects_are_removed_several_at_a_time(cluster: Cluster, objects: int, results: Results) -> None:
    owner = ApiUser(cluster.apis[0][1])
    fill(cluster, owner, objects)
    began = time.monotonic()
    erase(cluster, owner)
    timeouts.wait_until(lambda: found_of(cluster, owner)[1] == {}, GONE_AFTER_SECONDS)
    rate = objects / (time.monotonic() - began)
    results(21, "erase: objects", tried=f"{objects} objects of one tenant, S3", kept=f"{rate:.0f} objects/s")
    assert rate > 10
    owner.http.close()


@pytest.mark.slow
def test_while_the_provider_is_away_the_receipt_waits_and_all_else_is_gone(
    database_url: str, provider_url: str, tmp_path: Path
) -> None:
    target = provider_url.removeprefix("http://").removesuffix("/v1")
    with (
        Proxy(target) as proxy,
        running_server(database_url, f"http://{proxy.endpoint}/v1", tmp_path, run_lease_seconds=2) as server,
    ):
        ada = server.sign_up("Ada's")
        url = one(ada.draw(), "attachment.created")["attachment"]["url"]
        proxy.mode = "refuse"
        answer = ada.http.request("DELETE", "/v1/tenants/current", json={"confirm": "Ada's"})
        path = f"/v1/erasures/{answer.json()['receipt']}"
        timeouts.wait_until(lambda: set(counts_of(database_url, ada)) == {"provider_objects"})
        timeouts.wait_until(lambda: httpx.get(url).status_code == 404)
        waiting = server.anyone().get(path).json()
        assert (waiting["status"], waiting["completed_at"], waiting["counts"]["provider"]) == ("running", None, 0)
        assert waiting["counts"]["objects"] >= 1
        proxy.mode = "pass"
        timeouts.wait_until(lambda: server.anyone().get(path).json()["status"] == "completed")
        assert server.anyone().get(path).json()["counts"]["provider"] == 1
        assert counts_of(database_url, ada) == {}


@pytest.mark.slow
def test_an_upload_that_lands_after_its_tenant_is_gone_goes_too(
    database_url: str, provider_url: str, tmp_path: Path
) -> None:
    with s3_server(tmp_path / "s3") as s3, Proxy(s3.endpoint) as proxy:
        settings: Json = {
            "storage_provider": "minio",
            "minio_endpoint": proxy.endpoint,
            "minio_access_key": s3.access_key,
            "minio_secret_key": s3.secret_key,
            "minio_secure": False,
            "run_lease_seconds": 1,
        }
        with (
            running_server(database_url, provider_url, tmp_path / "data", **settings) as server,
            ThreadPoolExecutor(1) as pool,
        ):
            ada = server.sign_up("Ada's")
            member = server.sign_up_invited(ada, "member")
            proxy.mode = "hang"
            uploading = pool.submit(upload, member.http)
            timeouts.wait_until(lambda: bool(rows(database_url, "SELECT 1 FROM attachments")))
            answer = ada.http.delete(f"/v1/members/{member.id}", params={"data": "erase"})
            assert answer.status_code == 202
            timeouts.wait_until(lambda: not rows(database_url, "SELECT 1 FROM attachments"))
            proxy.mode = "pass"
            assert uploading.result().status_code == 404
            timeouts.wait_until(
                lambda: server.anyone().get(f"/v1/erasures/{answer.json()['receipt']}").json()["status"] == "completed"
            )
        assert [path for path in (tmp_path / "s3").rglob("*") if path.is_file()] == []


def test_who_was_removed_while_they_sent_an_image_leaves_none(own_server: AppServer, database_url: str) -> None:
    """The request was let in before; its body comes afterwards."""
    ada = own_server.sign_up()
    member = own_server.sign_up_invited(ada, "member")
    removed = threading.Event()

    def body() -> Generator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        time.sleep(0.5)
        assert ada.http.delete(f"/v1/members/{member.id}", params={"data": "erase"}).status_code == 202
        removed.set()
        yield png() + b"\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = member.http.post("/v1/attachments", content=body(), headers=headers)
    assert removed.is_set()
    assert answer.status_code == 403
    assert rows(database_url, "SELECT 1 FROM attachments") == []


def renewed(cluster: Cluster, url: str) -> str:
    """A link to the same object that has not ended: only a missing object makes it useless."""
    s3 = cluster.s3
    client = Minio(s3.endpoint, s3.access_key, s3.secret_key, secure=False, region="us-east-1")
    _, bucket, key = urlsplit(url).path.split("/", 2)
    return client.presigned_get_object(bucket, key)


def keep_uploading(cluster: Cluster, owner: ApiUser, stop: threading.Event) -> None:
    headers = {"Authorization": owner.http.headers["Authorization"]}
    while not stop.is_set():
        for _, url in list(cluster.apis):
            with suppress(httpx.TransportError):
                files = {"file": ("a.png", png())}
                answer = httpx.post(f"{url}/v1/attachments", files=files, headers=headers, timeout=20)
                assert answer.status_code in (201, 403, 404, 503), answer.text
        time.sleep(0.2)


def erase(cluster: Cluster, owner: ApiUser) -> None:
    """Ask until one of the APIs has taken it; an answer may be lost with its API."""
    headers = {"Authorization": owner.http.headers["Authorization"]}
    deadline = time.monotonic() + timeouts.PATIENCE
    while time.monotonic() < deadline:
        for _, url in list(cluster.apis):
            with suppress(httpx.TransportError):
                body = {"confirm": "Acme"}
                answer = httpx.request("DELETE", f"{url}/v1/tenants/current", json=body, headers=headers, timeout=5)
                if answer.status_code in (202, 403, 404):
                    return
    pytest.fail("nobody took the erasure")


def erasures(cluster: Cluster) -> list[tuple[Any, ...]]:
    return rows(cluster.database_url, "SELECT tenant_id, completed_at, objects FROM erasures")


def fill(cluster: Cluster, owner: ApiUser, number: int) -> None:
    """Objects of the tenant that no row names."""
    folder = cluster.objects / "t" / tenant_of(owner) / "uploads"
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(number):
        (folder / f"{uuid.uuid4()}.png").write_bytes(b"an image")


def found_of(cluster: Cluster, user: ApiUser) -> tuple[dict[str, int], dict[str, bytes]]:
    """Its rows by table, and its objects."""
    folder = cluster.objects / "t" / tenant_of(user)
    objects: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        # It may be removed just now.
        with suppress(FileNotFoundError, IsADirectoryError):
            objects[path.name] = path.read_bytes()
    return counts_of(cluster.database_url, user), objects


def counts_of(database_url: str, user: ApiUser) -> dict[str, int]:
    found: dict[str, int] = {}
    for (table,) in rows(database_url, TABLES_WITH_TENANT):
        query = f"SELECT count(*) FROM {table} WHERE tenant_id = :tenant"  # noqa: S608 - named by the catalogue
        ((number,),) = rows(database_url, query, {"tenant": tenant_of(user)})
        if number and table not in KEPT:
            found[table] = number
    return found


def tenant_of(user: ApiUser) -> str:
    return str(user.signed_up["tenant"]["id"])


def upload(client: httpx.Client) -> httpx.Response:
    return client.post("/v1/attachments", files={"file": ("a.png", png())})


def png() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    return buffer.getvalue()
