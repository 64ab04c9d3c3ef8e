"""An SMTP server that keeps what it takes."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from email.message import Message
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message as MessageHandler

from tests import timeouts

ADDRESS = "grace@example.com"


class Refusing:
    """Answers every recipient with that reply."""

    def __init__(self, reply: str) -> None:
        self._reply = reply
        self.asked = 0

    async def handle_RCPT(self, *_: object) -> str:  # noqa: N802 - aiosmtpd's name
        self.asked += 1
        return self._reply


class Mailbox(MessageHandler):
    """An SMTP server's mails."""

    def __init__(self) -> None:
        super().__init__()
        self.mails: list[Message] = []

    def handle_message(self, message: Message) -> None:
        self.mails.append(message)

    def wait(self, recipient: str = ADDRESS) -> Message:
        """The newest mail whose envelope names that recipient."""
        deadline = time.monotonic() + timeouts.PATIENCE
        while not (found := [mail for mail in self.mails if str(mail["X-RcptTo"]) == recipient]):
            assert time.monotonic() < deadline, "no mail came"
            time.sleep(0.05)
        return found[-1]


def text_of(mail: Message) -> str:
    text = mail.get_payload(decode=True)
    assert isinstance(text, bytes)
    return text.decode()


@contextmanager
def mail_server(port: int, **options: Any) -> Generator[Mailbox]:
    """On that port of loopback; `options` are those of aiosmtpd's `SMTP`."""
    mailbox = Mailbox()
    with serving(mailbox, port, **options):
        yield mailbox


@contextmanager
def serving(handler: object, port: int, **options: Any) -> Generator[None]:
    controller = Controller(handler, hostname="127.0.0.1", port=port, **options)
    controller.start()
    try:
        yield
    finally:
        controller.stop()
