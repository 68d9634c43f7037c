"""Commands at the wrong time: while the service runs, while it does not, after it has handed over."""

from __future__ import annotations

from tests.refusals.site import Site


def test_commands_beside_the_running_service(streamed: Site) -> None:
    """A second writer and a teardown are refused; the first one goes on unharmed."""
    with streamed.service() as service:
        another = ("another replicator is already running", "stop it first")
        for command in ("run", "snapshot"):
            streamed.ends(3, command, says=another)
        streamed.ends(1, "teardown", "--yes", says=(*another, "nothing was removed"))
        assert streamed.slots() == 1
        streamed.write()
        service.wait_until_caught_up()
        service.stop()
    streamed.assert_equal()


def test_cutover_without_the_service(streamed: Site) -> None:
    """Nobody would bring the last change over. The source stays open."""
    says = ("the service does not run", "start `replicator run`", "cutover --dry-run")
    streamed.refused(1, "cutover", "--yes", says=says)
    streamed.refused(1, "cutover", "abort", says=("there is no unfinished cutover",))
    streamed.write()
    streamed.run()
    streamed.assert_equal()


def test_cutover_before_anything_was_begun(site: Site) -> None:
    site.refused(1, "cutover", "--yes", says=("nothing has been replicated yet", "replicator run"))


def test_commands_after_the_cutover(streamed: Site) -> None:
    """The target has taken over: nothing may overwrite what is written there from now on."""
    with streamed.service() as service:
        streamed.write()
        service.wait_until_caught_up()
        streamed.assert_equal()
        streamed.done("cutover", "--yes")
        service.ends(0)
    streamed.sql("target", "INSERT INTO notes VALUES (-7, 'written after the cutover')")
    before = streamed.contents()
    streamed.refused(1, "snapshot", "--table", "notes", says=("phase cut_over",))
    streamed.refused(1, "cutover", "abort", says=("is finalized", "no way back"))
    assert "finalized" in streamed.done("run", "--truncate", "--yes").err
    assert streamed.contents() == before
    assert streamed.phase() == "cut_over"
