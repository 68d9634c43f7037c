"""Rows of somebody else's on the target are nobody's to delete in passing."""

from __future__ import annotations

from tests.refusals.site import ROW_VALUE, Site


def test_tables_that_hold_rows(site: Site) -> None:
    site.sql("target", f"INSERT INTO notes VALUES (-1, '{ROW_VALUE}')")
    site.refused(1, "run", says=("target tables hold rows: notes", "empty them yourself.* --truncate"))
    site.refused(2, "run", "--truncate", says=("no terminal to ask", "--yes"))
    assert site.slots() == 0
    site.done("run", "--truncate", "--yes", "--until-caught-up")
    site.assert_equal()


def test_truncate_with_a_foreign_key_from_outside(site: Site) -> None:
    """TRUNCATE … CASCADE would empty a table that nobody has named."""
    site.sql("target", f"INSERT INTO notes VALUES (-1, '{ROW_VALUE}')")
    site.sql("target", "CREATE TABLE ratings (id int PRIMARY KEY, note_id int REFERENCES notes)")
    site.sql("target", "INSERT INTO ratings VALUES (1, -1)")
    says = ("cannot truncate: .*ratings", "drop their foreign keys for the time being")
    site.refused(1, "run", "--truncate", "--yes", says=says)
    assert site.slots() == 0
    assert site.sql("target", "SELECT * FROM ratings") == [(1, -1)]
    site.sql("target", "ALTER TABLE ratings DROP CONSTRAINT ratings_note_id_fkey")
    site.done("run", "--truncate", "--yes", "--until-caught-up")
    site.assert_equal()
    assert site.sql("target", "SELECT * FROM ratings") == [(1, -1)]
