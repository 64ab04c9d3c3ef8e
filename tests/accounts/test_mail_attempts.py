"""A mail that no server takes: when it is tried again, and what the log says of it."""

import logging
from collections.abc import Generator
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from app.worker.mail_tasks import INVITATION_PATIENCE, LONGEST_PAUSE, RESET_PATIENCE, Attempt
from tests.app_server import AppServer, running_server
from tests.json_log import attached
from tests.mail_server import ADDRESS, Refusing, mail_server, serving
from tests.servers import free_port


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def server(database_url: str, provider_url: str, tmp_path: Path, port: int) -> Generator[AppServer]:
    with running_server(database_url, provider_url, tmp_path, smtp_url=f"smtp://127.0.0.1:{port}") as server:
        yield server


@pytest.mark.parametrize("patience", [INVITATION_PATIENCE, RESET_PATIENCE], ids=["invitation", "reset"])
def test_a_mail_is_tried_for_its_time_and_at_least_every_twenty_minutes(patience: timedelta) -> None:
    pauses = pauses_of(patience)
    assert pauses[:3] == [timedelta(seconds=2), timedelta(seconds=4), timedelta(seconds=8)]
    assert max(pauses) == LONGEST_PAUSE == timedelta(minutes=20)
    assert patience - LONGEST_PAUSE < sum(pauses, timedelta()) <= patience


def test_an_invitation_is_tried_for_four_hours_and_a_reset_for_one() -> None:
    assert (timedelta(hours=4), timedelta(hours=1)) == (INVITATION_PATIENCE, RESET_PATIENCE)


def test_an_attempt_that_is_delivered_twice_has_one_successor() -> None:
    first = attempt(1, INVITATION_PATIENCE)
    assert first.next_key == "invitation:1:2"
    second = Attempt(first.task, first.arguments, first.next_key, 2, first.patience)
    assert second.next_key == "invitation:1:3"


@pytest.mark.parametrize("kind", ["invitation", "password_reset"])
def test_each_attempt_that_fails_is_one_line_without_addresses_and_tokens(
    server: AppServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("app.worker.mail_tasks.FIRST_PAUSE", timedelta(seconds=0.1))
    for patience in ("INVITATION_PATIENCE", "RESET_PATIENCE"):
        monkeypatch.setattr(f"app.worker.mail_tasks.{patience}", timedelta(seconds=0.1))
    with attached(logging.WARNING) as log:
        secret = ask(server, kind)
        given_up = log.wait_for("mail.given_up")
    postponed, last = log.lines
    assert (postponed["event"], postponed["level"], postponed["seconds"]) == ("mail.postponed", "warning", 0.1)
    assert (last, last["level"], last["attempt"], last["kind"]) == (given_up, "error", 2, kind)
    assert (postponed["error"], last["error"]) == ("ConnectionRefusedError", "ConnectionRefusedError")
    assert not any(word in log.text for word in (ADDRESS, secret, "Traceback", "exception"))


def test_a_mail_that_is_refused_for_good_is_tried_once(server: AppServer, port: int) -> None:
    refusing = Refusing("550 5.1.1 no such mailbox")
    with serving(refusing, port), attached(logging.WARNING) as log:
        server.sign_up().invite(ADDRESS)
        given_up = log.wait_for("mail.given_up")
    assert (given_up["attempt"], given_up["error"]) == (1, "SMTPRecipientsRefused")
    assert refusing.asked == len(log.lines) == 1


def test_a_mail_that_is_refused_for_now_is_tried_again(server: AppServer, port: int) -> None:
    with serving(Refusing("451 4.7.1 greylisted, come again"), port), attached(logging.WARNING) as log:
        server.sign_up().invite(ADDRESS)
        assert log.wait_for("mail.postponed", attempt=1)["error"] == "SMTPRecipientsRefused"


@pytest.mark.slow
def test_a_mail_is_sent_once_the_server_is_back(server: AppServer, port: int) -> None:
    with attached(logging.WARNING) as log:
        server.sign_up().invite(ADDRESS)
        log.wait_for("mail.postponed", attempt=1)
    with mail_server(port) as mailbox:
        mailbox.wait()
    assert len(mailbox.mails) == 1


def ask(server: AppServer, kind: str) -> str:
    """Have a mail of that kind sent; what of it must stay secret."""
    user = server.sign_up()
    if kind == "invitation":
        return str(user.invite(ADDRESS)["token"])
    assert server.anyone().post("/v1/password-resets", json={"email": user.email}).status_code == 202
    return user.email


def attempt(number: int, patience: timedelta) -> Attempt:
    return Attempt("send_invitation", ("1", "2"), "invitation:1", number, patience)


def pauses_of(patience: timedelta) -> list[timedelta]:
    found: list[timedelta] = []
    for number in count(1):
        pause = attempt(number, patience).pause
        if pause is None:
            break
        found.append(pause)
    return found
