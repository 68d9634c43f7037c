"""Settings: ``replicator.toml``, environment and options, validated by pydantic."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from replicator.errors import ConfigError
from replicator.model.schema import TableName, parse_column_name, parse_table_name
from replicator.routing.idmap import MapSpec, OnUnmapped
from replicator.routing.route import RouteSpec

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(value: object) -> object:
    """Bytes from ``16MiB``, ``256MB``, ``1g`` or a plain number; units are powers of 1024, as PostgreSQL's are."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+)\s*(?:([kmgt]?)(?:i?b)?)\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError("write a size such as 16MiB or 256MB")
    return int(match[1]) * _UNITS[match[2].lower()]


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Section):
    """``[source]``."""

    dsn: str = Field(default="", repr=False)
    slot: str = Field(default="replicator", pattern=r"^[a-z0-9_]{1,63}$")
    publication: str = Field(default="replicator", min_length=1, max_length=63)
    failover: bool = True


class Target(_Section):
    """``[target]``."""

    dsn: str = Field(default="", repr=False)


class Snapshot(_Section):
    """``[snapshot]``."""

    workers: int = Field(default=4, ge=1, le=64)
    split_above: Size = 256 << 20
    defer_indexes: bool = True


class Stream(_Section):
    """``[stream]``."""

    max_batch_rows: int = Field(default=20_000, ge=1)
    max_batch_bytes: Size = 16 << 20
    on_new_column: Literal["stop", "ignore"] = "stop"
    on_rejected_row: Literal["stop", "quarantine"] = "stop"
    max_quarantined: int = Field(default=10_000, ge=1)


class Metrics(_Section):
    """``[metrics]``; an empty ``listen`` turns the endpoint off."""

    listen: str = "127.0.0.1:9187"


class IdMapSettings(_Section):
    """``[id_maps.NAME]``."""

    kind: Literal["table", "lookup"]
    columns: list[str] = Field(min_length=1)
    on_unmapped: Literal["keep", "null", "stop"] = "keep"
    table: str = ""
    key: str = ""
    value: str = ""

    @model_validator(mode="after")
    def _lookups_name_their_table(self) -> IdMapSettings:
        named = bool(self.table), bool(self.key), bool(self.value)
        if self.kind == "lookup" and not all(named):
            raise ValueError("a lookup needs table, key and value")
        if self.kind == "table" and any(named):
            raise ValueError("table, key and value belong to a lookup")
        return self


class RouteSettings(_Section):
    """``[routes.TABLE]``, by target table."""

    source: str = ""
    columns: dict[str, str] = Field(default_factory=dict)


class Settings(BaseSettings):
    """All settings. Precedence: option, environment (``REPLICATOR_SOURCE__DSN``), file, default."""

    model_config = SettingsConfigDict(env_prefix="REPLICATOR_", env_nested_delimiter="__", extra="forbid", frozen=True)

    source: Source = Source()
    target: Target = Target()
    snapshot: Snapshot = Snapshot()
    stream: Stream = Stream()
    metrics: Metrics = Metrics()
    tables: tuple[str, ...] = ()
    id_maps: dict[str, IdMapSettings] = Field(default_factory=dict)
    routes: dict[str, RouteSettings] = Field(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings passes all of them by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The file's values arrive as init settings, so the environment comes before them."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _a_column_has_one_map(self) -> Settings:
        seen: dict[tuple[str, str, str], str] = {}
        for spec in self.map_specs:
            for column in spec.columns:
                if column in seen:
                    raise ValueError(f"column {'.'.join(column[1:])} is in two id_maps: {seen[column]}, {spec.name}")
                seen[column] = spec.name
        return self

    @property
    def map_specs(self) -> tuple[MapSpec, ...]:
        """The ID maps as the routing floor knows them."""
        return tuple(
            MapSpec(
                name=name,
                columns=frozenset(parse_column_name(text) for text in settings.columns),
                on_unmapped=OnUnmapped(settings.on_unmapped),
                table=parse_table_name(settings.table) if settings.table else None,
                key=settings.key,
                value=settings.value,
            )
            for name, settings in self.id_maps.items()
        )

    def route_specs(self, all_tables: list[TableName]) -> list[RouteSpec]:
        """One spec per table; ``all_tables`` of the source stand in where the settings name none."""
        names = [parse_table_name(name) for name in self.tables] or all_tables
        special = {parse_table_name(name): settings for name, settings in self.routes.items()}
        names += [name for name in special if name not in names]
        specs = []
        for name in names:
            settings = special.get(name, RouteSettings())
            source = parse_table_name(settings.source) if settings.source else name
            specs.append(RouteSpec(source, name, settings.columns))
        return specs


_REFERENCE = "see the settings reference in the README"


def load(path: Path | None = None, *, source_dsn: str | None = None, target_dsn: str | None = None) -> Settings:
    """Read and validate the settings. ``path`` None: ``REPLICATOR_CONFIG``, else ``./replicator.toml`` if present.

    Raises:
        ConfigError: one line per fault: where, what, how to mend.
    """
    if path is None:
        named = os.environ.get("REPLICATOR_CONFIG")
        path = Path(named) if named else Path("replicator.toml")
        values = _read(path) if named or path.exists() else {}
    else:
        values = _read(path)
    try:
        settings = Settings(**values)
    except ValidationError as exc:
        raise ConfigError(_explain(exc, path), hint=_REFERENCE) from None
    except SettingsError as exc:
        # Its own words name the setting; its cause quotes the value.
        raise ConfigError(f"environment: {exc}: it is not JSON", hint=_REFERENCE) from None
    source, target = settings.source, settings.target
    if source_dsn:
        source = source.model_copy(update={"dsn": source_dsn})
    if target_dsn:
        target = target.model_copy(update={"dsn": target_dsn})
    return settings.model_copy(update={"source": source, "target": target})


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"cannot read the settings file {path}: {exc.strerror}",
                          hint="name it with --config or REPLICATOR_CONFIG") from exc  # fmt: skip
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", hint=_REFERENCE) from None
    except ValueError as exc:  # also of a number with thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {exc}", hint=_REFERENCE) from exc
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply", hint=_REFERENCE) from None


def _explain(exc: ValidationError, path: Path) -> str:
    """One line per fault. Inputs are left out: a DSN may hold a password."""
    lines = []
    for error in exc.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in error["loc"]) or "settings"
        what = "unknown key" if error["type"] == "extra_forbidden" else error["msg"].removeprefix("Value error, ")
        remedy = "; remove it or correct its name" if error["type"] == "extra_forbidden" else ""
        lines.append(f"{path}: {where}: {what}{remedy}")
    return "\n".join(lines)
