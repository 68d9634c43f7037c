"""Which types share a wire form, and the rewriting of those that carry the OIDs of their own server.

Values travel in PostgreSQL's binary format. Most types can be received as they were sent; an array or a composite
names its element types by OID, which differ between servers for everything that is not built in.

Source: PostgreSQL, array_send/array_recv, record_send/record_recv, enum_send.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from replicator.model.row import NULL, UNCHANGED, Field
from replicator.model.schema import Type

Rewrite = Callable[[Field], Field]

FIRST_USER_OID = 16384  # FirstNormalObjectId: below, OIDs are the same on every server
_TEXT_LIKE = frozenset({"text", "character varying", "character"})
INTEGERS = {"smallint": 2, "integer": 4, "bigint": 8}  # bytes; a narrower one may become a wider one
# Their binary form is an OID of one server's catalog: it means something else, or nothing, on the other.
_CATALOG_REFERENCES = frozenset(
    {"regclass", "regtype", "regproc", "regprocedure", "regoper", "regoperator", "regconfig",
     "regdictionary", "regnamespace", "regrole", "regcollation"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fit:
    """How a source type fits a target type: ``fault`` says why not; no ``rewrite`` where bytes pass as they are."""

    fault: str = ""
    rewrite: Rewrite | None = None


AS_IS = Fit()


def fit(source: Type, target: Type) -> Fit:
    """How fields of ``source`` become fields of ``target``."""
    if source.name in _CATALOG_REFERENCES or target.name in _CATALOG_REFERENCES:
        return Fit(f"{source.name} refers to the catalog of its own server and needs a staged route")
    if source.kind == "d" and source.base is not None:
        return fit(source.base, target)
    if target.kind == "d" and target.base is not None:
        return fit(source, target.base)
    for side in (source, target):
        if not side.has_binary:
            return Fit(f"{side.name} has no binary format and needs a staged route")
    if source.element is not None and target.element is not None:
        return _fit_array(source.element, target.element)
    if source.kind == "c" and target.kind == "c":
        return _fit_composite(source, target)
    if _same_wire_form(source, target):
        return AS_IS
    widths = INTEGERS.get(source.name), INTEGERS.get(target.name)
    if widths[0] is not None and widths[1] is not None and widths[0] < widths[1]:
        return Fit(rewrite=_widening(widths[1]))
    return Fit(f"{source.name} → {target.name} needs a staged route")


def _widening(width: int) -> Rewrite:
    length = width.to_bytes(4, "big")

    def rewrite(value: Field) -> Field:
        if value in (NULL, UNCHANGED):
            return value
        return length + int.from_bytes(value[4:], "big", signed=True).to_bytes(width, "big", signed=True)

    return rewrite


def _same_wire_form(source: Type, target: Type) -> bool:
    if source.kind == "e":
        return target.kind == "e" or target.name in _TEXT_LIKE
    if source.name in _TEXT_LIKE and target.name in _TEXT_LIKE:
        return True
    if source.name == "json" and target.name in _TEXT_LIKE:
        return True
    return source.name == target.name


def _fit_array(source: Type, target: Type) -> Fit:
    inner = fit(source, target)
    if inner.fault:
        return inner
    if source.oid == target.oid and inner.rewrite is None:
        return AS_IS
    return Fit(rewrite=_array_rewrite(target.oid, inner.rewrite))


def _array_rewrite(element_oid: int, inner: Rewrite | None) -> Rewrite:
    oid = element_oid.to_bytes(4, "big")

    def rewrite(value: Field) -> Field:
        if value in (NULL, UNCHANGED):
            return value
        # length, dimensions, has-null flag, element OID; then 8 bytes a dimension; then the elements
        dimensions = int.from_bytes(value[4:8], "big")
        body_at = 16 + 8 * dimensions
        body = value[body_at:]
        if inner is not None:
            body = b"".join(inner(element) for element in _fields(body))
        rewritten = value[4:12] + oid + value[16:body_at] + body
        return len(rewritten).to_bytes(4, "big") + rewritten

    return rewrite


def _fit_composite(source: Type, target: Type) -> Fit:
    if [name for name, _ in source.attributes] != [name for name, _ in target.attributes]:
        return Fit(f"{source.name} and {target.name} have different attributes and need a staged route")
    fits = [fit(ours, theirs) for (_, ours), (_, theirs) in zip(source.attributes, target.attributes, strict=True)]
    for inner in fits:
        if inner.fault:
            return inner
    oids = tuple(theirs.oid.to_bytes(4, "big") for _, theirs in target.attributes)
    return Fit(rewrite=_composite_rewrite(oids, tuple(inner.rewrite for inner in fits)))


def _composite_rewrite(oids: tuple[bytes, ...], rewrites: tuple[Rewrite | None, ...]) -> Rewrite:
    def rewrite(value: Field) -> Field:
        if value in (NULL, UNCHANGED):
            return value
        parts = [value[4:8]]
        at = 8
        for oid, inner in zip(oids, rewrites, strict=True):
            at += 4
            attribute = _field_at(value, at)
            at += len(attribute)
            parts += (oid, inner(attribute) if inner is not None else attribute)
        rewritten = b"".join(parts)
        return len(rewritten).to_bytes(4, "big") + rewritten

    return rewrite


def _field_at(data: bytes, at: int) -> Field:
    length = data[at : at + 4]
    return NULL if length == NULL else data[at : at + 4 + int.from_bytes(length, "big")]


def _fields(body: bytes) -> list[Field]:
    fields = []
    at = 0
    while at < len(body):
        element = _field_at(body, at)
        fields.append(element)
        at += len(element)
    return fields
