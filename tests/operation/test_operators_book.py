"""What docs/operate.md says: its proxy as written, its commands, settings and alerts as they are."""

import io
import os
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image
from typer.main import get_command

from app.cli import cli
from app.logins import EMBEDDED_LOGIN
from app.settings import Settings
from tests.app_server import AppServer, running_server
from tests.conftest import Postgres
from tests.servers import free_port, system_binary
from tests.timeouts import wait_until

ROOT = Path(__file__).resolve().parents[2]
BOOK = (ROOT / "docs/operate.md").read_text()
# Names of others: Postgres', Prometheus', the machine's.
FOREIGN = {"SSL_CERT_FILE"}


def test_every_alert_is_explained_in_the_words_of_its_rule() -> None:
    rules = yaml.safe_load((ROOT / "docs/monitoring/alerts.yml").read_text())["groups"][0]["rules"]
    told = BOOK.partition("## Alerts")[2]
    for rule in rules:
        notes = rule["annotations"]
        steps = "\n".join(line.strip() for line in notes["steps"].strip().splitlines())
        assert f"**{rule['alert']}**: {notes['description'].strip()}\n\n{steps}\n" in told
    assert told.count("**: ") == len(rules)


def test_the_commands_that_it_names_are_there() -> None:
    known = set(getattr(get_command(cli), "commands"))  # noqa: B009 - the type has no commands
    named = set(re.findall(r"\beasel ([a-z]+)", BOOK))
    assert {"backup", "doctor", "migrate", "reconcile", "restore", "serve", "settings", "worker"} <= named
    assert named - known == set()


def test_the_settings_that_it_names_are_there() -> None:
    named = set(re.findall(r"\b[A-Z]{3,}(?:_[A-Z0-9]+)+\b", BOOK))
    assert named - {name.upper() for name in Settings.model_fields} - FOREIGN == set()


@dataclass(frozen=True)
class Proxied:
    server: AppServer
    origin: str
    trust: ssl.SSLContext


@pytest.fixture(scope="module")
def proxied(
    postgres: Postgres, migrated_template: str, provider_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Proxied]:
    """The service behind nginx with the page's own configuration: ports and paths are all that is changed."""
    nginx, folder = system_binary("nginx"), tmp_path_factory.mktemp("nginx")
    settings: dict[str, Any] = {"trusted_proxies": ["127.0.0.1"], "upload_max_mb": 2}
    with (
        postgres.database(migrated_template) as url,
        running_server(url, provider_url, folder / "easel", login=EMBEDDED_LOGIN, **settings) as server,
        _running_nginx(nginx, folder, server.base_url) as (origin, trust),
    ):
        yield Proxied(server, origin, trust)


@contextmanager
def _running_nginx(nginx: str, folder: Path, upstream: str) -> Generator[tuple[str, ssl.SSLContext]]:
    port = free_port()
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    openssl += ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        [*openssl, "-keyout", folder / "key", "-out", folder / "pem"], check=True, capture_output=True, timeout=30
    )
    (site,) = re.findall(r"```nginx\n(.*?)```", BOOK, re.DOTALL)
    for written, here in {
        "127.0.0.1:8000": upstream.removeprefix("http://"),
        "listen 443": f"listen 127.0.0.1:{port}",
        "api.example.com;": "localhost;",
        "/etc/ssl/api.example.com.pem": str(folder / "pem"),
        "/etc/ssl/private/api.example.com.key": str(folder / "key"),
    }.items():
        assert site.count(written) == 1, written
        site = site.replace(written, here)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    (folder / "conf").write_text(
        f"pid {folder}/pid;\nerror_log stderr;\ndaemon off;\nmaster_process off;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{places}{site}}}\n"
    )
    process = subprocess.Popen([nginx, "-p", folder, "-c", folder / "conf"], stderr=subprocess.DEVNULL)
    origin, trust = f"https://localhost:{port}", ssl.create_default_context(cafile=str(folder / "pem"))
    try:
        wait_until(lambda: _answers(origin, trust))
        yield origin, trust
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder / "proxy", ignore_errors=True)


def _answers(origin: str, trust: ssl.SSLContext) -> bool:
    try:
        return httpx.get(f"{origin}/livez", verify=trust, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def browser(proxied: Proxied) -> Generator[httpx.Client]:
    user = proxied.server.sign_up("Ada's")
    headers = {"Authorization": user.http.headers["Authorization"]}
    with httpx.Client(base_url=proxied.origin, headers=headers, verify=proxied.trust, timeout=30) as client:
        yield client
    user.http.close()


def test_behind_nginx_events_arrive_as_they_are_sent(browser: httpx.Client) -> None:
    body = {"input": "Draw something slow [offline: slow=2]", "agent_key": "designer"}
    times: dict[str, float] = {}
    with browser.stream("POST", "/v1/runs", json=body, headers={"Accept": "text/event-stream"}) as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                times.setdefault(line.removeprefix("event: "), time.monotonic())
    assert times["run.completed"] - times["run.started"] > 1


def test_behind_nginx_links_name_what_the_browser_reached(browser: httpx.Client, proxied: Proxied) -> None:
    upload = browser.post("/v1/attachments", files={"file": ("noise.png", _noise(1_200_000), "image/png")})
    assert upload.status_code == 201, upload.text
    url = upload.json()["url"]
    assert url.startswith(f"{proxied.origin}/")
    assert httpx.get(url, verify=proxied.trust, timeout=30).headers["Content-Type"] == "image/png"


def test_behind_nginx_what_is_too_large_gets_our_answer(browser: httpx.Client) -> None:
    refused = browser.post("/v1/attachments", files={"file": ("noise.png", b"\x89PNG" + bytes(3_000_000), "image/png")})
    assert (refused.status_code, refused.headers["Content-Type"]) == (413, "application/problem+json")


def test_behind_nginx_nobody_chooses_an_address(browser: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "app.middleware"):
        browser.get("/v1/me", headers={"X-Forwarded-For": "203.0.113.9"})
        wait_until(lambda: any(record.message == "request" for record in caplog.records))
    assert [vars(record)["client"] for record in caplog.records if record.message == "request"] == ["127.0.0.1"]


def _noise(size: int) -> bytes:
    """A PNG of about so many bytes."""
    side = int((size / 3) ** 0.5)
    with io.BytesIO() as file:
        Image.frombytes("RGB", (side, side), os.urandom(side * side * 3)).save(file, "PNG", compress_level=0)
        return file.getvalue()
