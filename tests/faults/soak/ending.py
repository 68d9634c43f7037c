"""The end of a round: a cutover that is killed, cut and disturbed until one is left alone, and what must hold then."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable

import psycopg

from tests.endurance.process import tail
from tests.faults.soak import failures
from tests.faults.soak.site import Site

_COMMAND_S = 240.0
_UNDISTURBED = 4  # attempts that nobody disturbs; the lag or a lock may make one of them refuse

Sabotage = Callable[[Site, subprocess.Popen[str]], None]


def cut_over(site: Site) -> None:
    """Writers go on writing; sooner or later it is finalized, and both sides are equal."""
    for _ in range(site.rng.randrange(0, 4)):
        if _attempt(site, disturbed=True):
            break
        if site.rng.random() < 0.3:
            _abort(site)
    else:
        for _ in range(_UNDISTURBED):
            if _attempt(site, disturbed=False):
                break
        else:
            raise AssertionError("no cutover came through though nothing disturbed it")
    _finish(site)


def _attempt(site: Site, *, disturbed: bool) -> bool:
    """Whether the cutover is finalized."""
    rig = site.rig
    site.watch()
    rig.wait_until_near()
    rig.wait_until(lambda: not site.unfinished(), "tables are still being copied")
    points = (
        failures.fault(site.rng, site.rng.choice(failures.CUTOVER)) if disturbed and site.rng.random() < 0.5 else ""
    )
    process = rig.popen("cutover", "--yes", "--report", str(rig.directory / "cutover.json"), failpoints=points)
    if points:
        site.tally.fault("cutover: failpoint", points)
    elif disturbed:
        sabotage = site.rng.choice(_SABOTAGE)
        time.sleep(site.rng.uniform(0.3, 3.0))
        site.tally.fault(f"cutover: {sabotage.__name__.strip('_')}")
        sabotage(site, process)
    try:
        out, err = process.communicate(timeout=_COMMAND_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the cutover does not end\n{out}\n{err}\n{tail(rig.service.log)}") from None
    code = process.returncode
    done = rig.phase() == "cut_over"
    site.tally.event("cutover", f"exit code {code}, {'finalized' if done else 'not finalized'}")
    assert code in (0, 1, 3, -9, -15, 130) and (done or code != 0), f"exit code {code}, {done}\n{out}\n{err}"
    assert disturbed or code in (0, 1), f"exit code {code}\n{out}\n{err}"
    if not done:
        _require_open(site, after_death=code < 0)
    return done


def _require_open(site: Site, *, after_death: bool) -> None:
    """The source takes writes again: at once for all, or, if the command died, for those that were connected."""
    if after_death:
        return
    with psycopg.connect(site.rig.writers_dsn, connect_timeout=10) as conn:
        [(read_only,)] = conn.execute("SHOW default_transaction_read_only").fetchall()
        assert read_only == "off", "the cutover was given up, and the source is still read-only"
        conn.execute("SET lock_timeout = '20s'")
        conn.execute("LOCK TABLE public.organizations IN ROW EXCLUSIVE MODE")


def _abort(site: Site) -> None:
    process = site.rig.popen("cutover", "abort")
    out, err = process.communicate(timeout=_COMMAND_S)
    assert process.returncode in (0, 1), f"cutover abort: {process.returncode}\n{out}\n{err}"
    site.tally.event("cutover abort", f"exit code {process.returncode}")
    _require_open(site, after_death=False)


def _finish(site: Site) -> None:
    rig = site.rig
    # Once more: the report of a finalized cutover, made whole if the command died on the way.
    file = rig.directory / "cutover.json"
    rig.run("cutover", "--yes", "--report", str(file))
    if not rig.service.running and rig.service.process is not None and rig.service.process.returncode != 0:
        site.start()  # it was killed: a new life sees that it is over
    site.down = True
    report = rig.cutover_done(file)
    site.stop_writing()
    if site.users_pending:
        site.users_pending = False
    assert report["writes_after_fence"] in (0, None), report
    site.tally.longest_downtime_s = max(site.tally.longest_downtime_s, report["write_downtime_seconds"])
    site.compare()
    rig.assert_same_sequences()
    with psycopg.connect(rig.target_dsn) as conn:
        conn.execute("INSERT INTO tickets (payload) VALUES ('first')")
        conn.execute("INSERT INTO invoice_numbers (reference) VALUES ('first')")
        conn.execute("INSERT INTO bulk (batch, note) VALUES (1, 'first')")
        conn.rollback()
    site.tally.cutovers += 1


def clear_away(site: Site) -> None:
    """`teardown` leaves nothing on either side."""
    rig = site.rig
    rig.run("teardown", "--yes")
    assert rig.ask("source", "SELECT slot_name FROM pg_replication_slots") == []
    assert rig.ask("source", "SELECT pubname FROM pg_publication") == []
    assert rig.ask("target", "SELECT 1 FROM pg_namespace WHERE nspname = 'replicator'") == []


# ── what happens to a cutover ──────────────────────────────────────────────────────────────────────────


def _kill(site: Site, process: subprocess.Popen[str]) -> None:
    process.kill()


def _interrupt(site: Site, process: subprocess.Popen[str]) -> None:
    process.send_signal(site.rng.choice((signal.SIGINT, signal.SIGTERM)))


def _kill_service(site: Site, process: subprocess.Popen[str]) -> None:
    site.kill()
    time.sleep(site.rng.choice((0.0, 1.0)))
    site.start()


def _pause_service(site: Site, process: subprocess.Popen[str]) -> None:
    if site.rig.service.running:
        site.pause_service()
        time.sleep(site.rng.uniform(0.5, 5.0))
        site.resume_service()


def _end_sessions(site: Site, process: subprocess.Popen[str]) -> None:
    side = site.rng.choice(("source", "target"))
    with contextlib.suppress(psycopg.OperationalError):
        site.rig.ask(
            side,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'replicator cutover%'",
        )


def _restart_target(site: Site, process: subprocess.Popen[str]) -> None:
    site.strained = True
    site.target.restart("immediate")


def _restart_source(site: Site, process: subprocess.Popen[str]) -> None:
    site.strained = True
    site.source.restart("immediate")


def _pause_target(site: Site, process: subprocess.Popen[str]) -> None:
    site.target.pause()
    time.sleep(site.rng.uniform(0.5, 4.0))
    site.target.resume()


def _pause_source(site: Site, process: subprocess.Popen[str]) -> None:
    site.source.pause()
    time.sleep(site.rng.uniform(0.5, 4.0))
    site.source.resume()


def _cut_network(site: Site, process: subprocess.Popen[str]) -> None:
    site.proxies[site.rng.choice(("source", "target"))].cut(only=site.rng.choice(("", "replicator cutover")))


def _stall_network(site: Site, process: subprocess.Popen[str]) -> None:
    proxy = site.proxies[site.rng.choice(("source", "target"))]
    proxy.stall()
    time.sleep(site.rng.uniform(0.5, 4.0))
    proxy.resume()


def _lose_an_answer(site: Site, process: subprocess.Popen[str]) -> None:
    proxy = site.proxies["target"]
    proxy.lose_answer(only="replicator cutover")
    time.sleep(3.0)
    proxy.resume()


_SABOTAGE: tuple[Sabotage, ...] = (
    _kill, _kill, _interrupt, _kill_service, _kill_service, _pause_service, _end_sessions, _restart_target,
    _restart_source, _pause_target, _pause_source, _cut_network, _stall_network, _lose_an_answer,
)  # fmt: skip
