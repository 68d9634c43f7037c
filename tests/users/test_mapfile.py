"""The map file: existing ones load, faulty ones are refused by position, and no value is repeated."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from replicator.errors import ConfigError, Refused, ReplicatorError
from replicator.users import MapFile, Mapping, read_map_file, write_map_file

A, B, C = (str(uuid.uuid5(uuid.NAMESPACE_OID, name)) for name in "abc")
SECRET = "person@example.org"


def document(*mappings: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"generatedAt": "2026-01-02T03:04:05.678Z", "retainUntil": "2026-04-02T03:04:05.678Z",
            "mappings": list(mappings), **more}  # fmt: skip


def entry(source: object = A, target: object = B, **more: object) -> dict[str, object]:
    return {"supabaseUserId": source, "stackAuthUserId": target, "email": SECRET,
            "migratedAt": "2026-01-02T03:04:05.678Z", **more}  # fmt: skip


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "user-mapping.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_a_file_of_the_migration_scripts_loads(tmp_path: Path) -> None:
    """They write keys that we do not know, e-mails that are null, IDs in capitals, and a byte order mark."""
    content = json.dumps(document(entry(A.upper(), B, displayName="x"), entry(B, C, email=None), summary={"total": 2}))
    file = read_map_file(write(tmp_path, "\ufeff" + content))
    assert [str(m.supabase_user_id) for m in file.mappings] == [A, B]
    assert [m.email for m in file.mappings] == [SECRET, None]
    assert file.retain_until == datetime(2026, 4, 2, 3, 4, 5, 678000, UTC)


def test_mappings_are_all_that_is_needed(tmp_path: Path) -> None:
    file = read_map_file(write(tmp_path, {"mappings": [{"supabaseUserId": A, "stackAuthUserId": B}]}))
    assert file.retain_until is None
    assert file.mappings[0].email is None


FAULTS = {
    "dry run": (document(entry(), entry(B, f"dry-run-{SECRET}")), "mappings[1].stackAuthUserId is of a dry run"),
    "target is no UUID": (document(entry(A, SECRET)), "mappings[0].stackAuthUserId is not a UUID"),
    "source is no UUID": (document(entry(SECRET, B)), "mappings[0].supabaseUserId is not a UUID"),
    "a number": (document(entry(1, B)), "mappings[0].supabaseUserId is not a UUID"),
    "null": (document(entry(A, None)), "mappings[0].stackAuthUserId is not a UUID"),
    "missing": (document({"supabaseUserId": A}), "mappings[0].stackAuthUserId is missing"),
    "no mappings": ({"users": []}, "mappings is missing"),
    "no list": ({"mappings": {SECRET: 1}}, "mappings is not a list"),
    "no object": ({"mappings": [SECRET]}, "mappings[0] is not an object"),
    "another document": ([entry()], "the document is not an object"),
    "e-mail": (document(entry(email=[SECRET])), "mappings[0].email is not a string"),
    "time": (document(entry(), retainUntil=SECRET), "retainUntil is not a time"),
    "no JSON": ('{"mappings": [\n"' + SECRET, "is not JSON: Unterminated string starting at at line 2"),
    "deep": ("[" * 200_000, "nested too deeply"),
    "two targets": (document(entry(A, B), entry(C, B), entry(A.upper(), C)),
                    "mappings[2] maps the user of mappings[0] to another target"),
}  # fmt: skip


@pytest.mark.parametrize("content, fault", FAULTS.values(), ids=FAULTS.keys())
def test_faults_are_named_by_position(tmp_path: Path, content: object, fault: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(Refused) as caught:
        read_map_file(path)
    assert f"{path}" in caught.value.message
    assert fault in caught.value.message
    assert caught.value.hint
    assert SECRET not in caught.value.message + caught.value.hint
    assert caught.value.__cause__ is None  # the parser's error would quote the input


def test_every_fault_is_told_up_to_a_limit(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        read_map_file(write(tmp_path, document(*[entry(A, "x")] * 50)))
    lines = caught.value.message.splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("30 more faults")


def test_an_entry_twice_is_no_contradiction(tmp_path: Path) -> None:
    assert len(read_map_file(write(tmp_path, document(entry(), entry()))).mappings) == 2


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_map_file(tmp_path / "missing.json")
    path = tmp_path / "latin.json"
    path.write_bytes('{"mappings": ["ü"]}'.encode("latin-1"))
    with pytest.raises(Refused, match="not UTF-8"):
        read_map_file(path)


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
    mapping = Mapping(supabaseUserId=uuid.UUID(A), stackAuthUserId=uuid.UUID(B), email="ü@example.org", migratedAt=now)
    file = MapFile(generatedAt=now, retainUntil=now, mappings=(mapping,))
    path = tmp_path / "out.json"
    write_map_file(path, file)
    assert read_map_file(path) == file
    assert json.loads(path.read_text())["mappings"] == [
        {
            "supabaseUserId": A,
            "stackAuthUserId": B,
            "email": "ü@example.org",
            "migratedAt": "2026-01-02T03:04:05.678000Z",
        }
    ]
    assert path.stat().st_mode & 0o077 == 0


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Nobody may be left with half a map."""
    path = tmp_path / "out.json"
    path.mkdir()
    (path / "kept").touch()
    with pytest.raises(ReplicatorError, match="cannot write"):
        write_map_file(path, MapFile(mappings=()))
    assert [each.name for each in tmp_path.iterdir()] == ["out.json"]
    with pytest.raises(ConfigError, match="cannot write"):
        write_map_file(tmp_path / "nowhere" / "out.json", MapFile(mappings=()))
