"""Every setting of the service, read from the environment and `.env`; `.env.example` shows the same names."""

import ipaddress
import os
import re
import secrets
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app import EaselError
from app.database_settings import DatabaseSettings

ImageQuality = Literal["low", "medium", "high", "xhigh", "max", "auto"]
ImageFormat = Literal["png", "jpeg", "webp", "gif", "svg"]
ImageBackground = Literal["auto", "opaque", "transparent"]
S = TypeVar("S", bound=BaseSettings)

SECRET_BYTES = 32
_PLACEHOLDER = re.compile(
    r"change.?(me|this|it)|example|placeholder|your.?(secret|key)|development", re.IGNORECASE
).search
_AGENT_MODEL = re.compile(r"agent_[a-z0-9_]+_model").fullmatch


class ImageSettings(BaseSettings):
    image_model: str | None = None
    image_default_size: str = "1024x1024"
    image_default_quality: ImageQuality = "high"
    image_default_format: ImageFormat = "png"
    image_default_background: ImageBackground = "auto"
    image_default_compression: int | None = Field(default=None, ge=0, le=100)
    image_output_max_mb: float = Field(default=6, gt=0, le=64)
    image_max_partial_images: int = Field(default=2, ge=0, le=3)

    @property
    def image_output_max_bytes(self) -> int:
        return int(self.image_output_max_mb * 1024 * 1024)


class StorageSettings(BaseSettings):
    storage_provider: Literal["memory", "minio", "gcs"] = "memory"
    storage_bucket: str = "easel"
    minio_endpoint: str | None = None
    minio_public_endpoint: str | None = None
    minio_access_key: SecretStr | None = None
    minio_secret_key: SecretStr | None = None
    minio_region: str = "us-east-1"
    minio_secure: bool = True
    gcs_project_id: str | None = None
    gcs_bucket: str | None = None
    gcs_credentials_file: Path | None = None
    gcs_signing_email: str | None = None
    storage_emulator_host: str | None = None

    def missing_for_storage(self) -> list[str]:
        if self.storage_provider != "minio":
            return []
        required = {
            "MINIO_ENDPOINT": self.minio_endpoint,
            "MINIO_ACCESS_KEY": self.minio_access_key,
            "MINIO_SECRET_KEY": self.minio_secret_key,
        }
        return [f"{name} (STORAGE_PROVIDER=minio needs it)" for name, value in required.items() if value is None]


class LimitSettings(BaseSettings):
    link_ttl_seconds: int = Field(default=300, ge=1, le=300)
    stream_ttl_seconds: int = Field(default=3600, ge=600)
    access_token_seconds: int = Field(default=3600, ge=60)
    refresh_token_days: int = Field(default=30, ge=1)
    request_body_max_mb: float = Field(default=1, gt=0)
    upload_max_mb: float = Field(default=50, gt=0)
    connections_max: int = Field(default=2000, ge=1)
    anonymous_requests_per_minute: int = Field(default=60, ge=1)
    user_streams: int = Field(default=20, ge=1)
    default_plan: str = "unlimited"
    tenant_queued_runs: int = Field(default=100, ge=1)
    conversation_queued_runs: int = Field(default=10, ge=1)
    tenant_uploads: int = Field(default=8, ge=1)
    tenant_uploads_mb: float = Field(default=200, gt=0)

    @property
    def upload_max_bytes(self) -> int:
        return int(self.upload_max_mb * 1024 * 1024)

    @property
    def tenant_upload_bytes(self) -> int:
        return int(self.tenant_uploads_mb * 1024 * 1024)


class Settings(DatabaseSettings, ImageSettings, StorageSettings, LimitSettings):
    """Typed settings; an empty variable counts as unset."""

    # Extra: AGENT_<KEY>_MODEL, whose names only the specs know.
    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="allow", frozen=True)

    # The service
    database_pool_size: int = Field(default=10, ge=1)
    redis_url: SecretStr | None = None
    embedded_worker: bool = True
    worker_concurrency: int = Field(default=20, ge=1)
    secret_key: SecretStr | None = None
    public_url: str | None = None
    cors_origins: Annotated[list[str], NoDecode] = []
    trusted_proxies: Annotated[list[str], NoDecode] = []
    signup: Literal["open", "invite", "closed"] | None = None
    api_docs: bool | None = None
    smtp_url: SecretStr | None = None
    mail_from: str = "Easel <no-reply@localhost>"
    front_end_url: str | None = None

    # The model provider
    openai_api_key: SecretStr | None = None
    openai_base_url: str | None = None
    agents_dir: Annotated[list[Path], NoDecode] = []
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
    def _keep_models_of_agents(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Of what else `.env` holds, only these; pydantic-settings reads no unknown name from the environment."""
        known = {name: value for name, value in values.items() if name in cls.model_fields or _AGENT_MODEL(name)}
        given = {name.lower(): value for name, value in os.environ.items() if value and _AGENT_MODEL(name.lower())}
        return known | {name: value for name, value in given.items() if name not in cls.model_fields}

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
        for network in value:
            ipaddress.ip_network(network)  # its ValueError names the fault
        return value

    @field_validator("smtp_url")
    @classmethod
    def _is_smtp(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and urlsplit(value.get_secret_value()).scheme not in ("smtp", "smtps"):
            raise ValueError("give smtp://user:password@host:587 or smtps://user:password@host:465")
        return value

    @field_validator("public_url", "front_end_url", "openai_base_url")
    @classmethod
    def _without_trailing_slash(cls, value: str | None) -> str | None:
        return value.rstrip("/") if value else value

    @model_validator(mode="after")
    def _require_what_production_needs(self) -> Self:
        missing = self._missing_in_production() if self.environment == "production" else []
        if not self.embedded_worker and self.redis_url is None:
            missing.append("REDIS_URL (EMBEDDED_WORKER=false needs it)")
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
        if self.secret_key is not None and not all(_is_secret(key) for key in self.signing_keys()):
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
        name = f"agent_{(model_key or 'default').replace('-', '_')}_model"
        return getattr(self, name, None) or self.agent_default_model

    def signing_keys(self) -> list[str]:
        """The keys that sign links: the first signs, all verify. Made once (0600) in development."""
        if self.secret_key is not None:
            return [key.strip() for key in self.secret_key.get_secret_value().split(",") if key.strip()]
        path = self.data_dir / "secret_key"
        if not path.exists():
            _write_once(path, secrets.token_urlsafe(32))
        return [path.read_text().strip()]


def _is_secret(key: str) -> bool:
    """Whether it is long enough and no example of somebody's documentation."""
    return len(key.encode()) >= SECRET_BYTES and len(set(key)) >= 10 and not _PLACEHOLDER(key)


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
        raise SettingsError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    faults: list[str] = []
    for fault in error.errors(include_input=False, include_url=False):
        name = ".".join(str(part) for part in fault["loc"]).upper()
        message = fault["msg"].removeprefix("Value error, ")
        faults.append(f"{name}: {message}" if name else message)
    return "The settings cannot be used: " + "; ".join(faults) + ". See .env.example."
