"""Settings of the server: flag > AFDC_SERVICE_* variable > afdc-server.toml > default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from afdc.engine_config import EngineConfig
from afdc.errors import UsageError
from afdc.presets import build_config
from afdc.task import first_fault

CONFIG_FILE = "afdc-server.toml"
ENV_PREFIX = "AFDC_SERVICE_"
MIB = 1 << 20
WORK, SERVED, CACHE = "work", "served", "cache"
"""Folders of the data folder: jobs under way, adapters as the engine loads them, files of a store elsewhere."""
OPERATORS = ("engine", "model", "preset")
"""Settings of a run that no job of a server may set."""
ADDRESS = ("url", "served_model", "patience_s")
"""Settings of the engine that say where it is: jobs do without them, so that no tenant hears of the network behind."""


class Limits(BaseModel):
    """What one request or one tenant may take. A request past a limit is refused before it costs anything."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    json_bytes: int = Field(default=8 * MIB, ge=1024, description="largest JSON body")
    upload_bytes: int = Field(default=1024 * MIB, ge=1024, description="largest JSONL or CSV body")
    review_bytes: int = Field(default=64 * MIB, ge=1024, description="largest export of Label Studio as reviews")
    body_idle_s: float = Field(default=30.0, gt=0, description="longest pause inside a request's body, seconds")
    seed_rows: int = Field(default=100_000, ge=1, description="examples of a seed set")
    unlabeled_rows: int = Field(default=5_000_000, ge=1, description="texts of a set without labels")
    draws: int = Field(default=2_000_000, ge=1, description="texts that one job may generate")
    queued_jobs: int = Field(default=1000, ge=1, description="jobs waiting, all tenants together; more get 503")
    tenant_jobs: int = Field(default=200, ge=1, description="unfinished jobs of one tenant; more get 429")
    tenant_running: int = Field(default=4, ge=1, description="jobs of one tenant that run at once")
    tenant_tokens: int | None = Field(default=None, ge=1, description="tokens that a tenant may spend in all")
    requests_per_minute: int = Field(default=6000, ge=1, description="a key's requests; more get 429")
    streams: int = Field(default=20_000, ge=1, description="open event streams; more get 503")
    engine_texts: int = Field(default=4096, ge=1, description="texts of predict, score and generate under way at once")


class ServerSettings(BaseSettings):
    """`afdc-server`. Paths are relative to the working directory."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, toml_file=CONFIG_FILE
    )

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8741, ge=0, le=65535, description="port to listen on; 0: any free one")
    data: Path = Field(default=Path("afdc-data"), description="folder of everything that the server keeps")
    database_url: str = Field(default="", repr=False, description="postgresql://…; default: SQLite in the data folder")
    artifacts: str = Field(
        default="", repr=False, description="s3://… or file://…; default: a folder in the data folder"
    )
    secret_file: Path | None = Field(default=None, description="secret of the API keys; default: in the data folder")
    model: str = Field(default="", description="base model; default: that of the device")
    engine: EngineConfig = EngineConfig()
    limits: Limits = Limits()
    jobs: dict[str, Any] = Field(default={}, description="settings over a job's preset, unless its request has others")
    running_jobs: int = Field(default=8, ge=1, le=256, description="jobs that run at once")
    lease_s: float = Field(default=30.0, gt=0, description="seconds without a sign of life until a job is taken over")
    shutdown_s: float = Field(default=25.0, gt=0, description="seconds that running jobs get to stop")
    paused_days: float = Field(default=30.0, gt=0, description="days after which a paused job expires")
    keep_work_days: float = Field(default=30.0, ge=0, description="days that the files of a job stay after its end")
    log_format: str = Field(default="auto", pattern="^(auto|json|text)$", description="auto: text on a terminal")

    @field_validator("jobs")
    @classmethod
    def _known(cls, jobs: dict[str, Any]) -> dict[str, Any]:
        taken = next((key for key in OPERATORS if key in jobs), None)
        if taken is not None:
            raise ValueError(f"{taken} is a setting of the server itself")
        try:
            build_config("default", jobs)
        except ValidationError as exc:
            where, _, message = first_fault(exc)
            raise ValueError(f"{where}: {message}") from exc
        return jobs

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def database(self) -> str:
        """URL of the database."""
        return self.database_url or f"sqlite:///{(self.data / 'afdc.db').resolve()}"

    @property
    def artifact_url(self) -> str:
        """URL of the artifact store."""
        return self.artifacts or (self.data / "artifacts").resolve().as_uri()

    @property
    def secret_path(self) -> Path:
        return self.secret_file or self.data / "secret"

    @property
    def work(self) -> Path:
        """Folders of jobs under way: their inputs, chunks, adapters, logs."""
        return (self.data / WORK).resolve()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")


def without_address(config: dict[str, Any]) -> dict[str, Any]:
    """A job's settings without what says where the engine is."""
    engine = {name: value for name, value in config.get("engine", {}).items() if name not in ADDRESS}
    return {**config, "engine": engine}


def load_settings(flags: dict[str, Any], file: Path | None = None) -> ServerSettings:
    """Merge flags, environment and file.

    Raises:
        UsageError: a setting that is unknown or out of range; a file that is missing or broken.
    """
    if file is not None and not file.is_file():
        raise UsageError(f"{file}: no such file", remedy="Check --config")

    class FromFile(ServerSettings):
        model_config = SettingsConfigDict(toml_file=file or CONFIG_FILE)

    try:
        return FromFile(**flags)
    except ValidationError as exc:
        where, _, message = first_fault(exc)
        raise UsageError(f"server setting {where}: {message}", remedy="See docs/service.md") from exc
    except (ValueError, OSError) as exc:  # broken TOML, or JSON in a variable
        raise UsageError(f"the server's settings cannot be read: {exc}", remedy="Correct the file") from exc
