"""The map file: ``user-mapping.json``, as the migration scripts wrote it.

A fault is named by its position (``mappings[17].stackAuthUserId``), never by its value.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from replicator.errors import ConfigError, Refused

_SHOWN_FAULTS: Final = 20


def _parse_id(value: object, info: ValidationInfo) -> object:
    if isinstance(value, uuid.UUID):
        return value
    if isinstance(value, str):
        try:
            return uuid.UUID(value)
        except ValueError:
            if info.field_name == "stack_auth_user_id" and value.startswith("dry-run-"):
                raise PydanticCustomError("dry_run", "is of a dry run, not a UUID") from None
    raise PydanticCustomError("not_a_uuid", "is not a UUID")


def _aware(value: datetime) -> datetime:
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def _show_time(value: datetime) -> str:
    return _aware(value).astimezone(UTC).isoformat().replace("+00:00", "Z")


UserId = Annotated[uuid.UUID, BeforeValidator(_parse_id)]
Time = Annotated[datetime, PlainSerializer(_show_time, when_used="json-unless-none")]


class _Part(BaseModel):
    # Other tools add keys of their own: what we do not know is left alone.
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class Mapping(_Part):
    """One user on both sides."""

    supabase_user_id: UserId = Field(alias="supabaseUserId")
    stack_auth_user_id: UserId = Field(alias="stackAuthUserId")
    email: str | None = Field(default=None, repr=False)
    migrated_at: Time | None = Field(default=None, alias="migratedAt")


class MapFile(_Part):
    """A whole file. ``retain_until``: when its rows may be purged; None: the importer's default."""

    generated_at: Time | None = Field(default=None, alias="generatedAt")
    retain_until: Time | None = Field(default=None, alias="retainUntil")
    mappings: tuple[Mapping, ...]


def read_map_file(path: Path) -> MapFile:
    """Read and check a map file.

    Raises:
        ConfigError: the file cannot be read.
        Refused: it is not of this form; one line per fault, with its position.
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}", hint="name an existing map file") from exc
    except UnicodeDecodeError:
        raise Refused(f"{path} is not UTF-8 text", hint=_HINT) from None
    try:
        document = json.loads(text)
    except json.JSONDecodeError as exc:
        raise Refused(f"{path} is not JSON: {exc.msg} at line {exc.lineno}", hint=_HINT) from None
    except ValueError:
        raise Refused(f"{path} holds a number with thousands of digits", hint=_HINT) from None
    except RecursionError:
        raise Refused(f"{path} is nested too deeply", hint=_HINT) from None
    try:
        file = MapFile.model_validate(document)
    except ValidationError as exc:
        is_dry_run = any(fault["type"] == "dry_run" for fault in exc.errors(include_url=False, include_input=False))
        raise Refused(_explain(exc, path), hint=_DRY_RUN_HINT if is_dry_run else _HINT) from None
    _refuse_contradictions(file, path)
    return file


def write_map_file(path: Path, file: MapFile) -> None:
    """Write a map file, whole or not at all; only its owner may read it, since it holds e-mail addresses.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = json.dumps(file.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n"
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except OSError as exc:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        raise ConfigError(f"cannot write {path}: {exc.strerror}", hint="name a path in a writable directory") from exc


_HINT: Final = 'a map file is {"retainUntil": …, "mappings": [{"supabaseUserId", "stackAuthUserId", "email"}]}'
_DRY_RUN_HINT: Final = "a dry run creates no users: import the file that the real run wrote"

_MESSAGES: Final = {
    "missing": "is missing",
    "model_type": "is not an object",
    "dict_type": "is not an object",
    "model_attributes_type": "is not an object",
    "tuple_type": "is not a list",
    "string_type": "is not a string",
}


def _explain(exc: ValidationError, path: Path) -> str:
    """One line per fault, without its input: that may be an e-mail address."""
    faults = exc.errors(include_url=False, include_context=False, include_input=False)
    lines = []
    for fault in faults[:_SHOWN_FAULTS]:
        kind = fault["type"]
        known = fault["msg"] if kind in ("dry_run", "not_a_uuid") else _MESSAGES.get(kind)
        what = known or ("is not a time" if kind.startswith("datetime") else "is not valid")
        lines.append(f"{path}: {_position(fault['loc'])} {what}")
    if len(faults) > _SHOWN_FAULTS:
        lines.append(f"{path}: {len(faults) - _SHOWN_FAULTS:,} more faults")
    return "\n".join(lines)


def _position(location: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".") or "the document"


def _refuse_contradictions(file: MapFile, path: Path) -> None:
    first: dict[uuid.UUID, int] = {}
    lines = []
    for at, mapping in enumerate(file.mappings):
        known = first.setdefault(mapping.supabase_user_id, at)
        if file.mappings[known].stack_auth_user_id != mapping.stack_auth_user_id:
            lines.append(f"{path}: mappings[{at}] maps the user of mappings[{known}] to another target")
    if lines:
        shown = lines[:_SHOWN_FAULTS]
        if len(lines) > _SHOWN_FAULTS:
            shown.append(f"{path}: {len(lines) - _SHOWN_FAULTS:,} more contradictions")
        raise Refused("\n".join(shown), hint="keep one entry per supabaseUserId")
