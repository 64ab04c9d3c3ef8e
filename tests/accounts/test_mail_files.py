"""Mail in development: files, from which a developer copies the link."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.app_server import AppServer, running_server
from tests.mails import token_in, wait_for_mail

LONG_URL = "https://chat.example.com/a/path/that/makes/the/link/longer/than/the/line/of/a/mail/usually/is"


@pytest.fixture
def server(database_url: str, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    with running_server(database_url, provider_url, tmp_path, front_end_url=LONG_URL) as server:
        yield server


@pytest.mark.parametrize("tenant_name", ["Acme", "Bücher"])
def test_a_link_stands_in_the_file_as_it_is(server: AppServer, tenant_name: str) -> None:
    token = server.sign_up(tenant_name).invite("grace@example.com")["token"]
    wait_for_mail(server, "grace@example.com")
    written = file_of(server)
    assert f"\r\n{LONG_URL}/invitation#token={token}\r\n".encode() in written
    assert f"to join {tenant_name} as member".encode() in written


@pytest.mark.parametrize(
    ("address", "written"),
    [
        ("grace@bücher.example", "grace@xn--bcher-kva.example"),
        ("größe@bücher.example", "größe@xn--bcher-kva.example"),
    ],
)
def test_an_address_of_another_script_stands_in_a_valid_header(server: AppServer, address: str, written: str) -> None:
    server.sign_up().invite(address)
    wait_for_mail(server, written)
    assert f"\r\nTo: {written}\r\n".encode() in file_of(server)


def test_a_sender_of_another_script_is_written_as_every_server_takes_it(
    database_url: str, provider_url: str, tmp_path: Path
) -> None:
    sender: dict[str, Any] = {"mail_from": "Easel <hello@bücher.example>"}
    with running_server(database_url, provider_url, tmp_path / "sender", **sender) as server:
        server.sign_up().invite("grace@example.com")
        wait_for_mail(server, "grace@example.com")
        written = file_of(server)
    assert b"From: Easel <hello@xn--bcher-kva.example>\r\n" in written
    assert b"@xn--bcher-kva.example>\r\n" in written.partition(b"Message-ID: ")[2]


@pytest.mark.parametrize(("kind", "purpose"), [("invitation", "invitations"), ("reset", "new passwords")])
def test_a_mail_without_a_link_says_what_its_token_is_for(own_server: AppServer, kind: str, purpose: str) -> None:
    ada = own_server.sign_up()
    if kind == "invitation":
        ada.invite("grace@example.com")
    else:
        own_server.anyone().post("/v1/password-resets", json={"email": ada.email})
    to = "grace@example.com" if kind == "invitation" else ada.email
    mail = wait_for_mail(own_server, to).replace("\r\n", "\n")
    expected = f"\n\nOpen the app's page for {purpose} and enter this token there:\n\n{token_in(mail)}\n"
    assert mail.endswith(expected)
    assert "\n\n\n" not in mail


def file_of(server: AppServer) -> bytes:
    (path,) = (server.settings.data_dir / "mail").glob("*.eml")
    return path.read_bytes()
