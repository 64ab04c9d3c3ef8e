"""Sending mail: by SMTP, in development into files."""

import asyncio
import os
import smtplib
import ssl
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTPUTF8
from email.utils import format_datetime, make_msgid, parseaddr
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from app import EaselError
from app.db import now, uuid7
from app.loading import load
from app.settings import Settings

SMTP_SECONDS = 10.0
PORTS = {"smtp": 587, "smtps": 465}


class MailError(EaselError):
    """The mail server did not take the message; it may later.

    `cause` is the type of the error alone: its text may repeat the address.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(f"The mail server did not take a message ({cause}).")
        self.cause = cause


class MailRefused(MailError):
    """The mail server will not take it, however often it is asked (a reply of 5xx, RFC 5321, section 4.2.1)."""


def new_message(sender: str, to: str, subject: str, text: str) -> EmailMessage:
    """Plain text from `sender`, as in `Easel <hello@example.com>`, to the address `to`.

    Domains are written as A-labels (RFC 5890). A line of `text` has at most 998 bytes (RFC 5322).
    """
    message = EmailMessage()
    author = _address(sender)
    message["From"], message["To"], message["Subject"] = author, _address(to), subject
    message["Date"] = format_datetime(now())
    message["Message-ID"] = make_msgid(domain=author.domain or "localhost")
    # Quoted-printable breaks long links; without ASCII it is what every server takes.
    message.set_content(text, cte="7bit" if text.isascii() else "quoted-printable")
    return message


def _address(text: str) -> Address:
    name, address = parseaddr(text)
    user, _, domain = address.partition("@")
    if not domain.isascii():
        checked = _email_validator().validate_email(f"postmaster@{domain}", check_deliverability=False)
        domain = checked.ascii_domain
    return Address(name, user, domain)


@cache
def _email_validator() -> Any:
    return load("email_validator")


class Mailer(Protocol):
    async def send(self, message: EmailMessage) -> None:
        """Raises MailError, or MailRefused where it would do so again."""
        ...


class SmtpMailer:
    """`smtp://user:password@host:587`, with STARTTLS where the server offers it; `smtps://` is TLS from the start."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)

    async def send(self, message: EmailMessage) -> None:
        try:
            await asyncio.to_thread(self._send, message)
        except (OSError, smtplib.SMTPException) as error:
            kind = MailRefused if _is_for_good(error) else MailError
            raise kind(type(error).__name__) from None

    def _send(self, message: EmailMessage) -> None:
        host, port = self._url.hostname or "localhost", self._url.port or PORTS[self._url.scheme]
        secure = self._url.scheme == "smtps"
        server = (
            smtplib.SMTP_SSL(host, port, timeout=SMTP_SECONDS, context=ssl.create_default_context())
            if secure
            else smtplib.SMTP(host, port, timeout=SMTP_SECONDS)
        )
        with server:
            server.ehlo()
            if not secure and server.has_extn("starttls"):
                server.starttls(context=ssl.create_default_context())
            if self._url.username:
                server.login(unquote(self._url.username), unquote(self._url.password or ""))
            server.send_message(message)


def _is_for_good(error: Exception) -> bool:
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return all(code >= 500 for code, _ in error.recipients.values())
    # A login may be put right while the message waits.
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return False
    return isinstance(error, smtplib.SMTPResponseException) and error.smtp_code >= 500


class FileMailer:
    """One file for each message, which only its owner may read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def send(self, message: EmailMessage) -> None:
        await asyncio.to_thread(self._write, message)

    def _write(self, message: EmailMessage) -> None:
        # No server has to take it: its links are to be copied as they are.
        message.set_content(message.get_content(), cte="8bit")
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / f"{uuid7()}.eml"
        temporary = path.with_suffix(".part")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(message.as_bytes(policy=SMTPUTF8))
        temporary.rename(path)


def open_mailer(settings: Settings) -> Mailer | None:
    """None where production has no `SMTP_URL`."""
    if settings.smtp_url is not None:
        return SmtpMailer(settings.smtp_url.get_secret_value())
    return None if settings.production else FileMailer(settings.data_dir / "mail")
