"""Updates that the target's own foreign keys carry on to other rows. Such a one must not come late.

Set aside and applied afterwards, it would overwrite its dependents, whatever they have become since.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from replicator.model.change import Op
from replicator.model.row import UNCHANGED
from replicator.model.schema import ForeignKey, Table, TableName
from replicator.stream.batch import RowEvent

_ACTS = frozenset("cnd")  # cascade, set null, set default


class Cascades:
    """By referenced table, the foreign keys whose ON UPDATE does something to the rows that refer to it."""

    def __init__(self, tables: Iterable[Table]) -> None:
        """``tables``: of the target, where foreign keys act."""
        self._acting: dict[TableName, list[tuple[Table, ForeignKey]]] = defaultdict(list)
        for table in tables:
            for key in table.foreign_keys:
                if key.on_update in _ACTS:
                    self._acting[key.references].append((table, key))

    def of(self, event: RowEvent) -> tuple[Table, ForeignKey] | None:
        """A table that the change would be carried on to, and by which key.

        Of a column that is not of the row's key the former value is not known: then it counts as changed.
        """
        op, table, _, _ = event
        if op is not Op.UPDATE:
            return None
        changed = [(*each, _may_change(event, each[1])) for each in self._acting.get(table.route.name, ())]
        return next(((referencing, key) for referencing, key, may_change in changed if may_change), None)


def _may_change(event: RowEvent, key: ForeignKey) -> bool:
    _, table, old, new = event
    assert new is not None
    columns = table.route.target_columns
    known = table.route.key if table.has_key else tuple(range(len(columns)))
    for name in key.ref_columns:
        if name not in columns:
            continue
        at = columns.index(name)
        if at not in known:
            if new[at] is not UNCHANGED:
                return True
        elif old is not None and new[at] is not UNCHANGED and old[known.index(at)] != new[at]:
            return True
    return False
