"""Settings, map files and words of the command line, mutated: a clear error and nothing else."""

from __future__ import annotations

import os

import pytest

from tests.security import fuzz_files


@pytest.mark.parametrize("seed", range(3))
def test_a_mutated_file_is_taken_or_refused(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a password or an e-mail address in the message; `python -m tests.security.fuzz_files` does more."""
    for name in [name for name in os.environ if name.startswith("REPLICATOR_")]:
        monkeypatch.delenv(name)
    found = fuzz_files.fuzz(1_500, seed)
    assert min(found["taken"], found["ConfigError"], found["Refused"]) > 30
