"""Mail by SMTP: sent after the commit, again where the server does not take it, and never in the way of a request."""

import secrets
import time
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from app.logins import EMBEDDED_LOGIN
from tests import timeouts
from tests.app_server import AppServer, running_server, shared_parts
from tests.json_log import attached
from tests.mail_server import ADDRESS, mail_server, text_of
from tests.servers import free_port
from tests.tables import rows

AT_ONCE = 1.0


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def server(database_url: str, provider_url: str, tmp_path: Path, port: int) -> Generator[AppServer]:
    settings: dict[str, Any] = {
        "smtp_url": f"smtp://127.0.0.1:{port}",
        "mail_from": "Easel <hello@example.com>",
        "front_end_url": "https://chat.example.com/",
    }
    with running_server(database_url, provider_url, tmp_path, **settings) as server:
        yield server


def test_an_invitation_goes_to_its_address_by_smtp(server: AppServer, port: int) -> None:
    ada = server.sign_up()
    with mail_server(port) as mailbox:
        token = ada.invite(ADDRESS)["token"]
        mail = mailbox.wait()
    assert (mail["To"], mail["From"]) == (ADDRESS, "Easel <hello@example.com>")
    assert f"https://chat.example.com/invitation#token={token}" in text_of(mail)
    assert f"https://chat.example.com/invitation#token={token}" in str(mail.get_payload())  # not broken up


def test_a_mail_says_when_it_was_written_and_has_an_id_of_its_senders_domain(server: AppServer, port: int) -> None:
    ada = server.sign_up()
    with mail_server(port) as mailbox:
        ada.invite(ADDRESS)
        mail = mailbox.wait()
    assert abs(datetime.now(UTC) - parsedate_to_datetime(mail["Date"])) < timedelta(minutes=5)
    assert mail["Message-ID"].endswith("@example.com>")


def test_a_domain_of_another_script_is_written_as_every_mail_server_takes_it(server: AppServer, port: int) -> None:
    ada = server.sign_up()
    with mail_server(port, enable_SMTPUTF8=False) as mailbox:
        ada.invite("grace@straße.example")
        mail = mailbox.wait("grace@xn--strae-oqa.example")
    assert mail["To"] == "grace@xn--strae-oqa.example"


def test_a_name_of_another_script_is_left_as_it_is(server: AppServer, port: int) -> None:
    ada = server.sign_up()
    with mail_server(port) as mailbox:
        ada.invite("größe@bücher.example")
        mailbox.wait("größe@xn--bcher-kva.example")


def test_a_mail_is_written_in_ascii_whatever_the_tenant_is_called(server: AppServer, port: int) -> None:
    ada = server.sign_up("Bücher")
    with mail_server(port, enable_SMTPUTF8=False) as mailbox:
        ada.invite(ADDRESS)
        mail = mailbox.wait()
    assert mail.as_bytes().isascii()
    assert "Bücher" in text_of(mail)


def test_a_mail_for_a_new_password_says_how_long_it_is_good(server: AppServer, port: int) -> None:
    ada = server.sign_up()
    with mail_server(port) as mailbox:
        server.anyone().post("/v1/password-resets", json={"email": ada.email})
        assert "within one hour" in text_of(mailbox.wait(ada.email))


@pytest.mark.slow
def test_a_mail_server_that_is_away_delays_no_request_and_gets_the_mail_later(server: AppServer, port: int) -> None:
    ada = server.sign_up()
    began = time.monotonic()
    token = ada.invite(ADDRESS)["token"]
    assert server.anyone().post("/v1/password-resets", json={"email": ada.email}).status_code == 202
    assert time.monotonic() - began < AT_ONCE * timeouts.SCALE
    time.sleep(0.5)
    with mail_server(port) as mailbox:
        assert token in text_of(mailbox.wait())


@pytest.mark.slow
def test_an_invitation_that_is_revoked_in_the_meantime_is_not_mailed(server: AppServer, port: int) -> None:
    ada = server.sign_up()
    revoked, kept = ada.invite(ADDRESS), ada.invite("hopper@example.com")
    assert ada.http.delete(f"/v1/invitations/{revoked['id']}").status_code == 204
    with mail_server(port) as mailbox:
        assert kept["token"] in text_of(mailbox.wait("hopper@example.com"))
    assert [mail["To"] for mail in mailbox.mails] == ["hopper@example.com"]


@pytest.mark.slow
def test_an_invitation_that_has_expired_in_the_meantime_is_not_mailed(
    server: AppServer, port: int, database_url: str
) -> None:
    ada = server.sign_up()
    with attached() as log:
        log.wait_for("mail.postponed", invitation_id=ada.invite(ADDRESS)["id"], attempt=1)
        rows(database_url, "UPDATE invitations SET expires_at = now()")
        log.wait_for("mail.postponed", invitation_id=ada.invite("hopper@example.com")["id"], attempt=1)
    with mail_server(port) as mailbox:
        mailbox.wait("hopper@example.com")
        time.sleep(1)  # it was to be sent before the other
    assert [mail["To"] for mail in mailbox.mails] == ["hopper@example.com"]


def test_production_without_smtp_resets_no_passwords_and_invites_by_token(
    database_url: str, provider_url: str, tmp_path: Path
) -> None:
    with shared_parts(tmp_path / "parts") as parts:
        (tmp_path / "parts" / "s3" / "easel").mkdir()  # production makes no bucket
        settings: dict[str, Any] = {
            **parts,
            "environment": "production",
            "signup": "open",
            "openai_api_key": "sk-test",
            "public_url": "https://api.example.com",
            "secret_key": secrets.token_hex(32),
        }
        with running_server(database_url, provider_url, tmp_path, login=EMBEDDED_LOGIN, **settings) as server:
            ada = server.sign_up()
            answer = server.anyone().post("/v1/password-resets", json={"email": ada.email})
            assert (answer.status_code, answer.json()["code"]) == (503, "mail_unavailable")
            body = {"token": ada.invite(ADDRESS)["token"], "password": "a long password"}
            assert server.anyone().post("/v1/invitations/acceptance", json=body).status_code == 201
