"""What a setting's value must be like, beyond its type."""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from pydantic import ValidationError

SECRET_BYTES = 32
_EXPORTER = "OTEL_TRACES_EXPORTER"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_PLACEHOLDER = re.compile(
    r"change.?(me|this|it)|example|placeholder|your.?(secret|key)|development", re.IGNORECASE
).search
_SENDER = re.compile(r"([^<>\r\n]*<)?[^\s<>@]+@[^\s<>@]+(?(1)>)").fullmatch


def is_secret(key: str) -> bool:
    """Whether it is long enough and no example of somebody's documentation."""
    return len(key.encode()) >= SECRET_BYTES and len(set(key)) >= 10 and not _PLACEHOLDER(key)


def require_http_url(value: str | None) -> str | None:
    """The value itself; ValueError where no address can be made of it."""
    if value is None:
        return None
    if not _is_http_url(value):
        raise ValueError("give http://host or https://host, without a user, a query or a fragment")
    return value


def _is_http_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        address = parts.hostname and parts.port != 0
    except ValueError:  # the port is no number
        return False
    return bool(address) and parts.scheme in ("http", "https") and not (parts.username or parts.query or parts.fragment)


def require_sender(value: str) -> str:
    """The value itself; ValueError where no mail can come from it."""
    if _SENDER(value) is None:
        raise ValueError("give an address, or Name <address>, such as Easel <hello@example.com>")
    return value


def is_dsn(value: str) -> bool:
    """Whether Sentry would take it: https://KEY@HOST/PROJECT."""
    try:
        parts = urlsplit(value)
        address = parts.username and parts.hostname and parts.port != 0
    except ValueError:  # the port is no number
        return False
    return bool(address) and parts.scheme in ("http", "https") and parts.path.rpartition("/")[2].isdigit()


def traces_wanted(variables: Mapping[str, str]) -> bool:
    """Whether the variables of OpenTelemetry ask for spans: they name an endpoint or an exporter.

    https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/. Raises ValueError for what Easel
    cannot do.
    """
    exporter = variables.get(_EXPORTER, "").strip().lower()
    named = any(variables.get(name) for name in _ENDPOINTS) or bool(exporter)
    if not named or exporter == "none" or variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    off = f"; {_EXPORTER}=none sends none"
    if exporter not in ("", "otlp"):
        raise ValueError(f"{_EXPORTER} is {exporter!r}, but traces are sent by otlp alone{off}")
    for name in _PROTOCOLS:
        if (protocol := variables.get(name, _PROTOCOL)) != _PROTOCOL:
            raise ValueError(
                f"{name} is {protocol!r}, but traces are sent by {_PROTOCOL} alone, mostly to port 4318{off}"
            )
    for name in _ENDPOINTS:
        try:
            require_http_url(variables.get(name))
        except ValueError as error:
            raise ValueError(f"{name}: {error}{off}") from None
    return True


def secret_fault(keys: list[str]) -> str | None:
    """What makes a key of SECRET_KEY unfit to sign links."""
    if all(is_secret(key) for key in keys):
        return None
    shortest = min((len(key.encode()) for key in keys), default=0)
    return (
        f"SECRET_KEY holds a key that can be guessed (the shortest has {shortest} bytes): give each of its keys"
        f" {SECRET_BYTES} random bytes or more (openssl rand -hex 32)."
    )


def origin_fault(public_url: str) -> str | None:
    """Why browsers should not be sent to PUBLIC_URL."""
    parts = urlsplit(public_url)
    if parts.scheme == "https" and not parts.path:
        return None
    return f"PUBLIC_URL={public_url} is no https origin: give https://HOST, as browsers reach it, without a path."


def explain_invalid(error: ValidationError) -> str:
    """One sentence that lists every fault of the settings, without what was given: it may be a secret."""
    faults: list[str] = []
    for fault in error.errors(include_input=False, include_url=False):
        name = ".".join(str(part) for part in fault["loc"]).upper()
        message = fault["msg"].removeprefix("Value error, ")
        faults.append(f"{name}: {message}" if name else message)
    return "The settings cannot be used: " + "; ".join(faults) + ". See .env.example."
