"""Every setting of the service, read from the environment and `.env`; `.env.example` shows the same names."""

import ipaddress
import os
import re
import secrets
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from app import EaselError
from app.database_settings import DatabaseSettings
from app.secret_files import secrets_of
from app.setting_checks import SECRET_BYTES, explain_invalid, is_secret, require_http_url, require_sender
from app.setting_groups import ImageSettings, LimitSettings, ReportSettings, StorageSettings

S = TypeVar("S", bound=DatabaseSettings)

_AGENT_MODEL = re.compile(r"agent_[a-z0-9_]+_model").fullmatch
EVERYWHERE = ["0.0.0.0/0", "::/0"]


class Settings(DatabaseSettings, ReportSettings, ImageSettings, StorageSettings, LimitSettings):
    """Typed settings; an empty variable counts as unset."""

    # Extra: AGENT_<KEY>_MODEL, whose names only the specs know, and OTEL_*, which are OpenTelemetry's own.
    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="allow", frozen=True)

    # The service
    port: int = Field(default=8000, ge=0, le=65535)
    web_concurrency: int = Field(default=1, ge=1)
    database_pool_size: int = Field(default=10, ge=1)
    redis_url: SecretStr | None = None
    embedded_worker: bool = True
    worker_concurrency: int = Field(default=20, ge=1)
    secret_key: SecretStr | None = None
    public_url: str | None = None
    cors_origins: Annotated[list[str], NoDecode] = Field(default=[])
    # Its other name is uvicorn's, which many platforms set.
    trusted_proxies: Annotated[list[str], NoDecode] = Field(
        default=[], validation_alias=AliasChoices("trusted_proxies", "forwarded_allow_ips")
    )
    signup: Literal["open", "invite", "closed"] | None = None
    api_docs: bool | None = None
    smtp_url: SecretStr | None = None
    mail_from: Annotated[str, AfterValidator(require_sender)] = "Easel <no-reply@localhost>"
    front_end_url: str | None = None

    # The model provider
    openai_api_key: SecretStr | None = None
    openai_base_url: str | None = None
    agents_dir: Annotated[list[Path], NoDecode] = Field(default=[])
    agent_default_model: str = "gpt-6.1-sol"
    agent_code_model: str | None = None
    prices_file: Path | None = None
    upstream_idle_seconds: float = Field(default=180, gt=0)
    upstream_background: bool = True
    run_timeout_seconds: float = Field(default=900, gt=0)
    run_lease_seconds: float = Field(default=20, ge=1)
    tenant_concurrency: int = Field(default=10, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Of other names the models of agents, and secrets from files: pydantic-settings reads no unknown name."""
        known = (*cls.model_fields, "forwarded_allow_ips")
        extra = {name for name in values if _AGENT_MODEL(name) or name.startswith("otel_")}
        kept = {name: value for name, value in values.items() if name in known or name in extra}
        models = {name.lower(): value for name, value in os.environ.items() if value and _AGENT_MODEL(name.lower())}
        models = {name: value for name, value in models.items() if name not in known}
        return kept | models | secrets_of(cls.model_fields, values)

    @field_validator("cors_origins", "trusted_proxies", "agents_dir", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("cors_origins")
    @classmethod
    def _without_trailing_slashes(cls, value: list[str]) -> list[str]:
        return [origin.rstrip("/") for origin in value]

    @field_validator("trusted_proxies")
    @classmethod
    def _only_networks(cls, value: list[str]) -> list[str]:
        networks = [each for network in value for each in (EVERYWHERE if network == "*" else [network])]
        for network in networks:
            ipaddress.ip_network(network)  # its ValueError names the fault
        return networks

    @field_validator("smtp_url")
    @classmethod
    def _is_smtp(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and urlsplit(value.get_secret_value()).scheme not in ("smtp", "smtps"):
            raise ValueError("give smtp://user:password@host:587 or smtps://user:password@host:465")
        return value

    @field_validator("public_url", "front_end_url", "openai_base_url")
    @classmethod
    def _is_http_url(cls, value: str | None) -> str | None:
        return require_http_url(value.rstrip("/")) if value else value

    @model_validator(mode="after")
    def _require_what_production_needs(self) -> Self:
        missing = self._missing_in_production() if self.environment == "production" else []
        if not self.embedded_worker and self.redis_url is None:
            missing.append("REDIS_URL (EMBEDDED_WORKER=false needs it)")
        if self.web_concurrency > 1 and self.redis_url is None:
            missing.append(f"REDIS_URL (WEB_CONCURRENCY={self.web_concurrency} needs it)")
        missing.extend(self.missing_for_storage())
        if missing:
            raise ValueError("set " + ", ".join(dict.fromkeys(missing)))
        return self

    def _missing_in_production(self) -> list[str]:
        required = {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "SECRET_KEY": self.secret_key,
            "OPENAI_API_KEY": self.openai_api_key,
            "PUBLIC_URL": self.public_url,
        }
        missing = [name for name, value in required.items() if value is None]
        if self.storage_provider == "memory":
            missing.append("STORAGE_PROVIDER (minio or gcs)")
        if self.secret_key is not None and not all(is_secret(key) for key in self.signing_keys()):
            missing.append(f"SECRET_KEY (each of its keys {SECRET_BYTES} random bytes or more: openssl rand -hex 32)")
        return missing

    @property
    def signup_open(self) -> bool:
        """Whether anybody may sign up."""
        return self._signup == "open"

    @property
    def signup_closed(self) -> bool:
        """Whether even who is invited gets no new account."""
        return self._signup == "closed"

    @property
    def _signup(self) -> Literal["open", "invite", "closed"]:
        return self.signup or ("closed" if self.production else "open")

    @property
    def mail_configured(self) -> bool:
        """Whether mail is sent: by SMTP, in development into files."""
        return self.smtp_url is not None or not self.production

    @property
    def warnings(self) -> list[str]:
        """What an operator should know of settings that are allowed."""
        if self.mail_configured:
            return []
        return ["SMTP_URL is not set: nobody can reset a password, and invitations are passed on by their token."]

    @property
    def api_docs_shown(self) -> bool:
        return not self.production if self.api_docs is None else self.api_docs

    def model_for(self, model_key: str | None) -> str:
        """The model's name for an agent's `model_key`: `AGENT_<KEY>_MODEL` (- as _), else `AGENT_DEFAULT_MODEL`."""
        return getattr(self, self.model_setting(model_key).lower())

    def model_setting(self, model_key: str | None) -> str:
        """Which setting names that model."""
        name = f"agent_{(model_key or 'default').replace('-', '_')}_model"
        return (name if getattr(self, name, None) else "agent_default_model").upper()

    def signing_keys(self) -> list[str]:
        """The keys that sign links: the first signs, all verify. Made once (0600) in development."""
        if self.secret_key is not None:
            return [key.strip() for key in self.secret_key.get_secret_value().split(",") if key.strip()]
        path = self.data_dir / "secret_key"
        if not path.exists():
            _write_once(path, secrets.token_urlsafe(32))
        return [path.read_text().strip()]


def _write_once(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    try:
        os.link(temporary, path)  # fails where another process was first: its key stands
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


class SettingsError(EaselError):
    """The settings cannot be used; the message lists every fault at once."""


def load_settings() -> Settings:
    """Read the settings or raise SettingsError with one plain message."""
    return _load(Settings)


def load_database_settings() -> DatabaseSettings:
    """Those of the database alone, whatever else is missing; production has no embedded database."""
    settings = _load(DatabaseSettings)
    if settings.production and settings.database_url is None:
        raise SettingsError("The settings cannot be used: set DATABASE_URL. See .env.example.")
    return settings


def _load(kind: type[S]) -> S:
    try:
        return kind()
    except ValidationError as error:
        raise SettingsError(explain_invalid(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(
            f"{Path('.env').absolute()} cannot be read ({reason}): mend or remove it, or run Easel in another folder."
        ) from None
