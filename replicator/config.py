"""Settings: ``replicator.toml``, environment and options, validated by pydantic."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from replicator.errors import ConfigError
from replicator.model.schema import TableName, parse_column_name, parse_table_name
from replicator.routing import lanes
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


# Names of sessions end with the slot's, and PostgreSQL cuts them: lanes could not be told apart.
_LANE_SLOT_LENGTH: Final = 63 - len("replicator analyze ")
_NAME_BYTES: Final = 63

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
    lanes: dict[int, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(default_factory=dict)
    _lane: int = PrivateAttr(default=0)  # whose settings these are; 0: those of all lanes

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

    @model_validator(mode="after")
    def _lanes_are_sound(self) -> Settings:
        if not self.lanes:
            return self
        lane_of = self.lane_of
        if self.tables:
            lanes.refuse_strangers(lane_of, {spec.target for spec in self._all_specs([])})
        lanes.refuse_split_lookups(lane_of, self.map_specs, self._renamed_specs())
        last = f"_{max(self.lanes)}"
        if len(self.source.slot + last) > _LANE_SLOT_LENGTH:
            length = _LANE_SLOT_LENGTH - len(last)
            raise ValueError(f"lanes: source.slot is too long for lanes, whose slots are called …{last}: choose one of "
                             f"at most {length} characters")  # fmt: skip
        if len((self.source.publication + last).encode()) > _NAME_BYTES:
            raise ValueError(f"lanes: source.publication is too long for lanes, whose publications are called …{last}: "
                             f"choose one of at most {_NAME_BYTES - len(last)} bytes")  # fmt: skip
        _later_port(self.metrics.listen, max(self.lanes) - lanes.FIRST)
        return self

    @cached_property
    def lane_of(self) -> Mapping[TableName, int]:
        """The lane of each target table that ``[lanes]`` names; all others are in lane 1."""
        return lanes.assign(self.lanes)

    @property
    def lane_number(self) -> int:
        """Which lane these settings are of; 0: all of them, or there is only one."""
        return self._lane

    @property
    def lane_numbers(self) -> tuple[int, ...]:
        """The lanes that there are."""
        return (lanes.FIRST, *sorted(self.lanes))

    @property
    def run_command(self) -> str:
        """What starts the service of these settings."""
        return f"replicator run --lane {self._lane}" if self._lane else "replicator run"

    @property
    def prefix(self) -> str:
        """What tells messages of one lane from those of another: ``lane 2: ``; empty where there is only one."""
        return f"lane {self._lane}: " if self._lane else ""

    def lane(self, number: int) -> Settings:
        """The settings of one lane: its slot, publication, tables, ID maps and port. These, where there is one alone.

        Raises:
            ConfigError: there is no such lane.
        """
        if number not in self.lane_numbers:
            raise ConfigError(f"there is no lane {number}: the settings have {_show_lanes(self.lane_numbers)}",
                              hint="name one of these with --lane, or add it to [lanes]")  # fmt: skip
        if not self.lanes:
            return self
        source, metrics = self.source, self.metrics
        if number != lanes.FIRST:
            names = {"slot": f"{source.slot}_{number}", "publication": f"{source.publication}_{number}"}
            source = source.model_copy(update=names)
            metrics = Metrics(listen=_later_port(metrics.listen, number - lanes.FIRST))
        found = self.model_copy(update={"source": source, "metrics": metrics})
        found._lane = number
        return found

    def split(self) -> tuple[Settings, ...]:
        """The settings of every lane; these alone where there is one, or where they are of one already."""
        return (self,) if self._lane else tuple(self.lane(number) for number in self.lane_numbers)

    def require_one_lane(self) -> Settings:
        """These settings, if they are of one service.

        Raises:
            ConfigError: there are several lanes, and none was chosen.
        """
        if self.lanes and not self._lane:
            raise ConfigError(
                f"the settings have {_show_lanes(self.lane_numbers)}, each with a service of its own",
                hint="choose one: " + ", ".join(f"`{lane.run_command}`" for lane in self.split()),
            )
        return self

    @property
    def map_specs(self) -> tuple[MapSpec, ...]:
        """The ID maps as the routing floor knows them; of a lane those that its columns pass through."""
        specs = tuple(
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
        if not self._lane:
            return specs
        kept = (replace(spec, columns=frozenset(c for c in spec.columns if self.takes(c[:2]))) for spec in specs)
        return tuple(spec for spec in kept if spec.columns)

    def route_specs(self, all_tables: list[TableName]) -> list[RouteSpec]:
        """One spec per table; ``all_tables`` of the source stand in where the settings name none."""
        return [spec for spec in self._all_specs(all_tables) if self.takes(spec.target)]

    def lane_specs(self) -> list[RouteSpec]:
        """One spec per table that ``[lanes]`` names, for whichever lane."""
        return [spec for spec in self._all_specs([]) if spec.target in self.lane_of]

    def elsewhere(self, all_tables: list[TableName]) -> frozenset[TableName]:
        """Target tables that other lanes than this one take; ``all_tables`` as of `route_specs`."""
        return frozenset(spec.target for spec in self._all_specs(all_tables) if not self.takes(spec.target))

    def takes(self, table: TableName) -> bool:
        """Whether a target table, if it is replicated at all, is of these settings' lane."""
        return self._lane in (0, self.lane_of.get(table, lanes.FIRST))

    def _all_specs(self, all_tables: list[TableName]) -> list[RouteSpec]:
        names = [parse_table_name(name) for name in self.tables] or all_tables
        special = {spec.target: spec for spec in self._renamed_specs()}
        names = list(dict.fromkeys([*names, *special, *(() if self.tables else self.lane_of)]))
        return [special.get(name) or RouteSpec(name, name) for name in names]

    def _renamed_specs(self) -> list[RouteSpec]:
        """Of the tables that have settings of their own."""
        found = []
        for text, settings in self.routes.items():
            name = parse_table_name(text)
            found.append(
                RouteSpec(parse_table_name(settings.source) if settings.source else name, name, settings.columns)
            )
        return found


def _show_lanes(numbers: tuple[int, ...]) -> str:
    if len(numbers) == 1:
        return "lane 1 alone"
    return f"lanes {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _later_port(listen: str, step: int) -> str:
    """``listen`` with its port raised; one that means “any free one”, or is none, stays as it is."""
    host, colon, port = listen.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port)):
        return listen
    if int(port) + step > 65535:
        raise ValueError(f"lanes: metrics.listen: each lane listens on the next port, and {port} leaves no room: "
                         "choose a lower one")  # fmt: skip
    return f"{host}{colon}{int(port) + step}"


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
