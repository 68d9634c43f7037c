"""Both schemas side by side: routes, enum labels, generated columns, sequences, extensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from replicator.model.schema import Type, show_table
from replicator.postgres.connection import Connection, query
from replicator.preflight.check import Check, failed, or_passed, passed, warned
from replicator.routing.route import Fault, Route
from replicator.target.sequences import plan_sequences


def check_routes(routes: Sequence[Route], faults: Sequence[Fault]) -> Iterator[Check]:
    """Each fault of a route is a failed check."""
    for fault in faults:
        message = f"{show_table(fault.table)}: {fault.message}"
        yield failed("routes", "both", message, fault.remedy, fault.table)
    if not routes:
        yield failed("routes", "both", "there is nothing to replicate", "name the tables in the settings")
    elif not faults:
        yield passed("routes", "both", f"{len(routes)} tables can be replicated")
    for route in routes:
        if route.dropped:
            yield warned(
                "dropped_columns",
                "both",
                f"{route}: {', '.join(route.dropped)} of the source has no home on the target",
                "add the columns to the target, or accept that they are left behind",
                route.name,
            )


def check_enums(routes: Sequence[Route]) -> list[Check]:
    """Every label of a source's enum must exist in the target's."""
    found = []
    for route in routes:
        for column in route.columns:
            missing = _missing_labels(column.source.type, column.target.type)
            if missing:
                found.append(
                    failed(
                        "enum_labels",
                        "target",
                        f"{route}.{column.target.name}: {column.target.type.name} lacks {', '.join(missing)}",
                        "ALTER TYPE … ADD VALUE for each",
                        route.name,
                    )
                )
    return or_passed(found, "enum_labels", "target", "every label of the source exists")


def _missing_labels(source: Type, target: Type) -> list[str]:
    if source.base is not None:
        return _missing_labels(source.base, target)
    if target.base is not None:
        return _missing_labels(source, target.base)
    if source.element is not None and target.element is not None:
        return _missing_labels(source.element, target.element)
    if source.kind == "e" and target.kind == "e":
        return [label for label in source.labels if label not in target.labels]
    return []


def check_generated(routes: Sequence[Route]) -> list[Check]:
    """A generated column of the source is not sent: the target must compute it too."""
    found = []
    for route in routes:
        generated = {column.name for column in route.source.columns if column.generated}
        for name in route.defaulted:
            if name in generated:
                found.append(
                    warned(
                        "generated_columns",
                        "target",
                        f"{route}.{name} is generated on the source, and a plain column on the target:"
                        " it keeps its default",
                        "make it GENERATED ALWAYS AS … on the target too",
                        route.name,
                    )
                )
    return or_passed(found, "generated_columns", "target", "each is computed on its own side")


def check_sequences(source: Connection, target: Connection, routes: Sequence[Route]) -> list[Check]:
    """The cutover sets the target's sequences to the source's values: each must have its counterpart."""
    plan = plan_sequences(source, target, routes)
    found = [
        failed("sequences", "target", f"{show_table(fault.table)}: {fault.message}", fault.remedy, fault.table)
        for fault in plan.faults
    ]
    found += [
        warned(
            "sequences",
            "target",
            f"sequence {show_table(name)} belongs to no column, and the target has none of that name",
            "create it on the target if something uses it",
        )
        for name in plan.unmatched
    ]
    return or_passed(found, "sequences", "target", f"{len(plan.pairs)} sequences have their counterpart")


def check_extensions(source: Connection, target: Connection, routes: Sequence[Route]) -> list[Check]:
    """Extensions that the source's tables build on: types, defaults, index operators."""
    rows = query(
        source,
        """
        WITH objects (classid, objid) AS (
            SELECT 'pg_catalog.pg_class'::regclass::oid, o.oid FROM unnest(%s::oid[]) AS o (oid)
            UNION ALL
            SELECT 'pg_catalog.pg_class'::regclass, indexrelid FROM pg_catalog.pg_index WHERE indrelid = ANY (%s::oid[])
            UNION ALL
            SELECT 'pg_catalog.pg_attrdef'::regclass, oid FROM pg_catalog.pg_attrdef WHERE adrelid = ANY (%s::oid[])
            UNION ALL
            SELECT 'pg_catalog.pg_constraint'::regclass, oid FROM pg_catalog.pg_constraint
            WHERE conrelid = ANY (%s::oid[])
        )
        SELECT DISTINCT e.extname::text FROM objects o
        JOIN pg_catalog.pg_depend d ON d.classid = o.classid AND d.objid = o.objid
        JOIN pg_catalog.pg_depend x ON x.classid = d.refclassid AND x.objid = d.refobjid
          AND x.refclassid = 'pg_catalog.pg_extension'::regclass AND x.deptype = 'e'
        JOIN pg_catalog.pg_extension e ON e.oid = x.refobjid
        ORDER BY 1
        """,
        *[[route.source.oid for route in routes]] * 4,
    )
    wanted = [name for (name,) in rows]
    present = {name for (name,) in query(target, "SELECT extname::text FROM pg_catalog.pg_extension")}
    found = [
        warned(
            "extensions",
            "target",
            f"the source's tables build on extension {name}, which the target does not have",
            f"CREATE EXTENSION {name}, unless the target does without",
        )
        for name in wanted
        if name not in present
    ]
    return or_passed(found, "extensions", "target", "all that the tables need are there")


def key_columns(route: Route) -> tuple[str, ...]:
    """Target columns of the source's key; those without a home are faults of the route and left out."""
    homes = {column.source.name: column.target.name for column in route.columns}
    return tuple(homes[name] for name in route.source.key if name in homes)
