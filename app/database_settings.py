"""The settings of the database alone: a job that migrates, backs up or restores is given no others."""

from pathlib import Path
from typing import Any, Literal

from pydantic import SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.secret_files import secrets_of


class DatabaseSettings(BaseSettings):
    """Typed settings; an empty variable counts as unset."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True)

    environment: Literal["development", "production"] = "development"
    data_dir: Path = Path("var")
    database_url: SecretStr | None = None
    migration_database_url: SecretStr | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        return values | secrets_of(cls.model_fields, values)

    @property
    def production(self) -> bool:
        return self.environment == "production"

    @property
    def owner_url(self) -> SecretStr | None:
        """Of the user that owns the tables."""
        return self.migration_database_url or self.database_url

    @property
    def owner_setting(self) -> str:
        return "DATABASE_URL" if self.migration_database_url is None else "MIGRATION_DATABASE_URL"
