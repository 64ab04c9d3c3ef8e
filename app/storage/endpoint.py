"""Where a storage server is, as settings say it."""

from urllib.parse import urlsplit

from app.settings import SettingsError


def parse_endpoint(value: str, *, secure: bool, name: str) -> tuple[str, bool]:
    """`host:port` or a URL of it -> (`host:port`, whether to speak TLS); `name` is the setting errors speak of."""
    wanted = SettingsError(f"{name} must be host:port or http(s)://host:port, without a user or a query.")
    try:
        url = urlsplit(value if "://" in value else f"//{value}")
        usable = url.scheme in {"", "http", "https"} and url.hostname and url.port != 0
    except ValueError:
        raise wanted from None
    if not usable or url.username or url.query or url.fragment:
        raise wanted
    if url.path.strip("/"):
        raise SettingsError(f"{name} must not have a path: an S3 server is addressed by host and port alone.")
    return url.netloc, url.scheme == "https" if url.scheme else secure
