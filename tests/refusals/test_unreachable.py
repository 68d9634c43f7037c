"""A server that does not answer is waited for, and named."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest

from replicator.demo.servers import Server
from tests.refusals.site import ROWS, SCHEMA, Ended, Site

_NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
_SAYS = ("source: .*Connection refused", "see that the server is up")


@pytest.fixture(scope="module", autouse=True)
def hopeless(make_site: Callable[[], Site]) -> Iterator[tuple[Site, subprocess.Popen[str]]]:
    """The service with a source that never answers. It takes its time to give up: the other tests run meanwhile."""
    site = make_site()
    with site.start("run", "--source", _NOWHERE) as process:
        yield site, process
        if process.poll() is None:
            process.kill()


def test_source_that_comes_up_later(site: Site, start_server: Callable[..., Server]) -> None:
    """A restart of the machine brings both up in any order."""
    server = start_server(int(site.value("source", "SHOW server_version_num")) // 10_000)
    site.close()
    site.source_dsn = server.create_database("app")
    site.sql("source", SCHEMA + ROWS)
    site.close()
    server.stop()
    with site.start("run", "--until-caught-up") as process:
        assert process.stderr is not None
        said = ""
        while "trying again" not in said:
            line = process.stderr.readline()
            assert line, f"it has ended without another try: {said}"
            said += line
        server.start_again()
        out, err = process.communicate(timeout=60)
    ended = site.decent(Ended(process.returncode, out, said + err))
    assert ended.code == 0, ended.err
    site.assert_equal()


def test_snapshot_does_not_wait(site: Site) -> None:
    site.refused(
        3, "snapshot", "--target", _NOWHERE, says=("target: .*Connection refused", "see that the server is up")
    )
    assert site.slots() == 0


def test_source_that_never_comes_up(hopeless: tuple[Site, subprocess.Popen[str]]) -> None:
    site, process = hopeless
    out, err = process.communicate(timeout=60)
    ended = site.decent(Ended(process.returncode, out, err))
    assert ended.code == 3
    assert ended.err.count("trying again") == 5
    last = ended.err.splitlines()[-1]
    assert last.startswith("replicator: source: ")
    assert "Connection refused" in last
    assert "see that the server is up" in last
    assert site.checkpoint() is None
