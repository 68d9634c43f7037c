"""Source and target differ in shape, from the start or all of a sudden: stop, and go on once both are mended."""

from __future__ import annotations

from tests.refusals.site import ROW_VALUE, Site


def go_on(site: Site) -> None:
    site.run()
    site.assert_equal()


def test_column_renamed_under_the_running_service(streamed: Site) -> None:
    """To add the new name as a column of its own, as for a new column, would leave it half empty."""
    with streamed.service() as service:
        streamed.write()
        service.wait_until_caught_up()
        streamed.sql("source", "ALTER TABLE notes RENAME body TO content")
        lsn = streamed.source_lsn()
        streamed.write()
        service.ends(3, says=("column body .* is called content now", "ALTER TABLE notes RENAME body TO content"))
    streamed.assert_not_past(lsn)
    streamed.sql("target", "ALTER TABLE notes RENAME body TO content")
    go_on(streamed)


def test_column_renamed_while_stopped(streamed: Site) -> None:
    """Changes in the slot have the old name for ever: they are told by the column's place."""
    streamed.write()
    streamed.sql("source", "ALTER TABLE notes RENAME heading TO title")
    lsn = streamed.source_lsn()
    streamed.write()
    streamed.refused(3, "run", says=("column heading .* is called title now", "rename it on the target too"))
    streamed.assert_not_past(lsn)
    streamed.sql("target", "ALTER TABLE notes RENAME heading TO title")
    go_on(streamed)


def test_column_dropped_on_the_target(streamed: Site) -> None:
    """Planned anew, the table would fit without it, and its values would be left out in silence."""
    with streamed.service() as service:
        streamed.write()
        service.wait_until_caught_up()
        streamed.sql("target", "ALTER TABLE notes DROP mood")
        lsn = streamed.source_lsn()
        streamed.write()
        service.ends(3, says=("notes: the target no longer has a column for mood", "snapshot --table notes"))
    streamed.assert_not_past(lsn)
    streamed.refused(3, "run", says=("no longer has a column for mood",))
    streamed.sql("target", "ALTER TABLE notes ADD mood text")
    streamed.done("snapshot", "--table", "notes")
    go_on(streamed)


def test_column_renamed_on_the_target(streamed: Site) -> None:
    """Nothing of it is lost: to route it is enough."""
    streamed.sql("target", "ALTER TABLE notes RENAME colour TO color")
    streamed.write()
    streamed.refused(3, "run", says=("notes: the target no longer has a column for colour", "route it"))
    streamed.more = '[routes.notes.columns]\ncolor = "colour"\n'
    streamed.run()
    streamed.sql("target", "ALTER TABLE notes RENAME color TO colour")
    streamed.more = ""
    streamed.write()
    go_on(streamed)


def test_column_added_on_the_source(streamed: Site) -> None:
    """What is written to it meanwhile waits in the slot, and arrives."""
    with streamed.service() as service:
        streamed.write()
        service.wait_until_caught_up()
        lsn = streamed.source_lsn()
        streamed.sql("source", f"ALTER TABLE notes ADD extra text; UPDATE notes SET extra = '{ROW_VALUE}' WHERE id < 9")
        service.ends(3, says=("notes: .* does not know: extra", "add it to the target", "on_new_column"))
    streamed.assert_not_past(lsn)
    streamed.write()
    streamed.sql("source", f"UPDATE notes SET extra = '{ROW_VALUE} late' WHERE id % 3 = 0")
    streamed.sql("target", "ALTER TABLE notes ADD extra text")
    go_on(streamed)
    assert streamed.value("target", "SELECT count(*) FROM notes WHERE extra IS NOT NULL") > 9


def test_table_missing_on_the_target(site: Site) -> None:
    site.sql("target", "DROP TABLE notes")
    assert "there is no table notes on the target — create it" in site.refused(1, "plan", says=()).out
    site.refused(3, "run", says=("there is no table notes on the target", "create it", "replicator plan"))
    assert site.slots() == 0
    site.sql("target", "CREATE TABLE notes (id int PRIMARY KEY, body text, heading text, mood text, colour text)")
    go_on(site)


def test_types_that_do_not_fit(site: Site) -> None:
    site.sql("target", "ALTER TABLE orders ALTER amount TYPE boolean USING NULL")
    assert "column amount: numeric → boolean" in site.refused(1, "plan", says=()).out
    site.sql("target", "ALTER TABLE orders ALTER amount TYPE numeric(10, 2) USING NULL")
    go_on(site)
