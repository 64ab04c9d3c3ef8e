"""The mails that a server in development has written into files."""

import re
import time
from email import message_from_bytes
from email.policy import default

from tests import timeouts
from tests.app_server import AppServer


def mails(server: AppServer, address: str) -> list[str]:
    """The texts of all to the address, oldest first."""
    found: list[str] = []
    for path in sorted((server.settings.data_dir / "mail").glob("*.eml")):
        message = message_from_bytes(path.read_bytes(), policy=default)
        if message["To"] == address:
            assert path.stat().st_mode & 0o777 == 0o600
            found.append(str(message.get_content()))
    return found


def wait_for_mail(server: AppServer, address: str, *, count: int = 1) -> str:
    """The newest mail to the address, once there are `count`."""
    deadline = time.monotonic() + timeouts.PATIENCE
    while len(found := mails(server, address)) < count:
        assert time.monotonic() < deadline, f"{len(found)} mails to {address}"
        time.sleep(0.05)
    return found[-1]


def token_in(mail: str) -> str:
    (token,) = set(re.findall(r"easel_[a-z]{2}_[\w-]+", mail))
    return token
