"""What docs/operate.md says: its proxy as written, its commands, settings and alerts as they are."""

import getpass
import io
import os
import re
import secrets
import shlex
import shutil
import ssl
import subprocess
import sys
import textwrap
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image
from typer.main import get_command

from app import __version__
from app.cli import cli
from app.logins import EMBEDDED_LOGIN, as_login
from app.settings import Settings
from app.storage.memory import MemoryStore
from tests.app_server import ApiUser, AppServer, running_server, shared_parts
from tests.conftest import Postgres
from tests.json_log import lines_of
from tests.made_streams import png
from tests.servers import free_port, redis_server, system_binary
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


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_it_is_installed_by_hand_as_written(tmp_path: Path) -> None:
    """On a machine with Python, the lock and the wheel alone: the folders are all that is changed."""
    block = re.findall(r"(?:^    .+\n)+", BOOK.partition("## Install by hand")[2], re.MULTILINE)[0]
    script = textwrap.dedent(block).replace("/opt/easel", f"{tmp_path}/opt").replace("/etc/easel.env", "easel.env")
    shutil.copy(ROOT / "requirements-production.lock", tmp_path)
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["sh", "-euc", script], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "easel.env").read_text() == (ROOT / ".env.example").read_text()
    said = subprocess.run([tmp_path / "opt/bin/easel", "--version"], capture_output=True, text=True, check=True).stdout
    assert said == f"easel {__version__}\n"


@pytest.mark.slow
def test_its_unit_of_systemd_serves_in_production_and_ends_in_time(
    database_url: str, provider_url: str, tmp_path: Path
) -> None:
    """The unit as written, on the settings that `easel settings` prints: paths are all that is changed."""
    unit = re.findall(r"```ini\n(.*?)```", BOOK, re.DOTALL)[0]
    programs, data, variables = Path(sys.executable).parent, tmp_path / "data", tmp_path / "easel.env"
    for written, here in {"/opt/easel/bin": programs, "/etc/easel.env": variables, "/var/lib/easel": data}.items():
        assert written in unit
        unit = unit.replace(written, str(here))
    (tmp_path / "easel-api.service").write_text(unit.replace("User=easel", f"User={getpass.getuser()}"))
    analyze = system_binary("systemd-analyze", package="systemd")
    verified = subprocess.run(
        [analyze, "verify", "--man=no", tmp_path / "easel-api.service"], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    said = dict(re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE))
    with shared_parts(tmp_path) as shared:
        (tmp_path / "s3" / "easel").mkdir()  # production makes no bucket
        given = {name.upper(): str(value) for name, value in shared.items()}
        given |= {"ENVIRONMENT": "production", "DATABASE_URL": as_login(database_url, EMBEDDED_LOGIN)}
        given |= {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": provider_url, "PUBLIC_URL": "https://localhost"}
        given |= {"SECRET_KEY": secrets.token_hex(32), "PORT": str(port := free_port())}
        variables.write_text(_filled_in(_easel("settings"), given))
        environment = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", variables.read_text(), re.MULTILINE))
        environment |= dict([said["Environment"].split("=", 1)])
        process = subprocess.Popen(shlex.split(said["ExecStart"]), env=environment, cwd="/", stderr=subprocess.PIPE)
        try:
            wait_until(lambda: _is_ready(port))
            process.terminate()
            assert process.wait(int(said["TimeoutStopSec"])) == 0
        finally:
            process.kill()
            _, log = process.communicate()
    assert "warning" not in {line["level"] for line in lines_of(log.decode())}


def _easel(*arguments: str) -> str:
    command = [str(Path(sys.executable).parent / "easel"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _filled_in(settings: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        settings, count = re.subn(rf"^{name}=.*$", lambda _, line=f"{name}={value}": line, settings, flags=re.MULTILINE)
        assert count == 1, name
    return settings


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_the_signing_key_is_rotated_as_written_without_a_link_or_a_sign_in_lost(
    postgres: Postgres, migrated_template: str, provider_url: str, tmp_path: Path
) -> None:
    """Two APIs, restarted one after the other by each line: whatever one hands out the other accepts."""
    first, *steps = ["SECRET_KEY=old", *re.findall(r"^    (SECRET_KEY=\S+)$", BOOK, re.MULTILINE)]
    assert len(steps) == 3
    with ExitStack() as stack:
        url = stack.enter_context(postgres.database(migrated_template))
        redis = stack.enter_context(redis_server(tmp_path / "redis"))
        store = MemoryStore()

        def started(line: str, number: int) -> tuple[ExitStack, AppServer]:
            own = ExitStack()
            stack.callback(own.close)
            given: dict[str, Any] = {"redis_url": redis.url, "secret_key": line.removeprefix("SECRET_KEY=")}
            server = own.enter_context(running_server(url, provider_url, tmp_path / str(number), **given))
            # Links by SECRET_KEY are those to a store in memory, which would end with its process.
            server.uvicorn.app.state.store = store
            return own, server

        running = [started(first, number) for number in range(2)]
        ada = ApiUser(running[0][1].base_url)
        image = ada.http.post("/v1/attachments", files={"file": ("red.png", png("red"), "image/png")}).json()
        used = tokens = ada.signed_up
        for line in steps:
            for number in range(2):
                running[number][0].close()
                running[number] = started(line, number)
                origins = [server.base_url for _, server in running]
                links = [_link(origin, image["object_id"], tokens) for origin in origins]
                assert [httpx.get(f"{origin}{link}").status_code for origin in origins for link in links] == [200] * 4
                # A refresh whose answer was lost is repeated, at whichever process.
                pairs = [_refreshed(origin, tokens) for origin in origins]
                assert pairs[0] == pairs[1]
                used, tokens = tokens, pairs[0]
        # Whoever knows none of the keys cannot repeat it, and ends no sign-in over that.
        origin = started("SECRET_KEY=other", 2)[1].base_url
        body = {"refresh_token": used["refresh_token"]}
        assert httpx.post(f"{origin}/v1/tokens/refresh", json=body).status_code == 401
        assert _refreshed(origin, tokens)


def _link(origin: str, object_id: str, tokens: dict[str, Any]) -> str:
    """The path and query of the image's link, as this process makes it."""
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    answer = httpx.get(f"{origin}/v1/attachments/{object_id}", headers=headers)
    assert answer.status_code == 200, answer.text
    return httpx.URL(answer.json()["url"]).raw_path.decode()


def _refreshed(origin: str, tokens: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{origin}/v1/tokens/refresh", json={"refresh_token": tokens["refresh_token"]})
    assert answer.status_code == 201, answer.text
    return answer.json()


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


@pytest.mark.slow
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
