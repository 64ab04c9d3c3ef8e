"""Sending mail: by SMTP, in development into files."""

import asyncio
import os
import smtplib
import ssl
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from app import EaselError
from app.db import uuid7
from app.settings import Settings

SMTP_SECONDS = 10.0
PORTS = {"smtp": 587, "smtps": 465}


class MailError(EaselError):
    """The mail server did not take the message; it may later."""


class Mailer(Protocol):
    async def send(self, message: EmailMessage) -> None:
        """Raises MailError."""
        ...


class SmtpMailer:
    """`smtp://user:password@host:587`, with STARTTLS where the server offers it; `smtps://` is TLS from the start."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)

    async def send(self, message: EmailMessage) -> None:
        try:
            await asyncio.to_thread(self._send, message)
        except (OSError, smtplib.SMTPException) as error:
            # The server's answer may repeat the address.
            raise MailError(f"The mail server did not take a message ({type(error).__name__}).") from None

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


class FileMailer:
    """One file for each message, which only its owner may read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def send(self, message: EmailMessage) -> None:
        await asyncio.to_thread(self._write, message)

    def _write(self, message: EmailMessage) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / f"{uuid7()}.eml"
        temporary = path.with_suffix(".part")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(message.as_bytes(policy=SMTP))
        temporary.rename(path)


def open_mailer(settings: Settings) -> Mailer | None:
    """None where production has no `SMTP_URL`."""
    if settings.smtp_url is not None:
        return SmtpMailer(settings.smtp_url.get_secret_value())
    return None if settings.production else FileMailer(settings.data_dir / "mail")
