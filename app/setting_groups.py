"""The settings of reports, of images, of storage and of limits, which app/settings.py puts together with the rest."""

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings

from app.setting_checks import is_dsn, traces_wanted

ImageQuality = Literal["low", "medium", "high", "xhigh", "max", "auto"]
ImageFormat = Literal["png", "jpeg", "webp", "gif", "svg"]
ImageBackground = Literal["auto", "opaque", "transparent"]

# How pods and tasks learn where their role's credentials are.
_ROLE_VARIABLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


class ReportSettings(BaseSettings):
    """What a process tells its operators beside its log."""

    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    metrics_host: str = "127.0.0.1"
    sentry_dsn: SecretStr | None = None

    @property
    def telemetry(self) -> dict[str, str]:
        """The variables of OpenTelemetry, those of the environment before those of `.env`."""
        written = {name.upper(): str(value) for name, value in (self.model_extra or {}).items()}
        known = {**written, **os.environ}
        return {name: value for name, value in known.items() if value and name.startswith("OTEL_")}

    @property
    def traces_wanted(self) -> bool:
        return traces_wanted(self.telemetry)

    @field_validator("sentry_dsn")
    @classmethod
    def _is_dsn(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not is_dsn(value.get_secret_value()):
            raise ValueError("give https://KEY@HOST/PROJECT, as Sentry shows it")
        return value

    @model_validator(mode="after")
    def _can_send_traces(self) -> Self:
        traces_wanted(self.telemetry)  # its ValueError names the fault
        return self


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

    @property
    def minio_by_role(self) -> bool:
        """Whether the machine's role stands in for the two keys: neither is set, and the machine may have a role."""
        if self.minio_access_key or self.minio_secret_key:
            return False
        host = (self.minio_endpoint or "").rpartition("//")[2].partition(":")[0]
        return host.endswith((".amazonaws.com", ".amazonaws.com.cn")) or any(map(os.environ.get, _ROLE_VARIABLES))

    def missing_for_storage(self) -> list[str]:
        if self.storage_provider != "minio":
            return []
        required: dict[str, object] = {"MINIO_ENDPOINT": self.minio_endpoint}
        if not self.minio_by_role:
            required |= {"MINIO_ACCESS_KEY": self.minio_access_key, "MINIO_SECRET_KEY": self.minio_secret_key}
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
