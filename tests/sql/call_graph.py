"""What the archive's routines call, read from their bodies: names in SQL and plpgsql text, plpy in PL/Python's."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

import psycopg

OWN_SCHEMAS = ("eo", "eo_internal")
CALL = re.compile(r'(?:("?)(\w+)\1\s*\.\s*)?("?)\b(\w+)\3\s*\(')
RELATION = re.compile(r'\b(eo|eo_internal)\."?(\w+)"?(?!\s*\()')
# Comments, hints to people, and questions whether a function exists.
NO_CALLS = re.compile(
    r"--[^\n]*|/\*.*?\*/|\bhint\s*=\s*(coalesce\(\s*)?'([^']|'')*'|\bto_reg\w+\('[^']*'(::text)?\)", re.S | re.I
)
WRITE = re.compile(
    r"\b(insert\s+into|delete\s+from|update\s+[\w.%]+(\s+\w+)?\s+set|for\s+(no\s+key\s+)?(update|share|key\s+share)"
    r"|truncate|(create|alter|drop)\s+(or\s+replace\s+)?(table|index|view|schema|extension|type|function|trigger|policy)"
    r"|lock\s+table|(begin|then|loop|else|;)\s+(analyze|copy|commit|rollback|grant|revoke))\b",
    re.I,
)
SUBTRANSACTION = re.compile(r"\bexception\s+when\b", re.I)
OVERLOADS = {("public", "_st_valuecount"): "s"}
"""Labels of names whose overloads differ, of those that the archive calls: here of rasters, not of a table's name."""


@dataclass(frozen=True)
class Routine:
    """A function or procedure: `text` is its body without comments, a view's definition where it is a view."""

    oid: int
    signature: str
    schema: str
    name: str
    language: str
    parallel: str
    text: str

    def names(self) -> set[tuple[str | None, str]]:
        """Schema (or None) and name of whatever looks like a call in the text."""
        return {(match[2] and match[2].lower(), match[4].lower()) for match in CALL.finditer(self.text)}

    def relations(self) -> set[tuple[str, str]]:
        """Schema and name of whatever looks like a table or view of the archive in the text."""
        return {(match[1], match[2]) for match in RELATION.finditer(self.text)}

    def needs(self) -> str:
        """The strictest label that what it does itself asks for, in pg_proc's letters, calls apart."""
        if self.language == "plpython3u":
            return "u" if python_queries(self.text) else "s"
        return "u" if WRITE.search(self.text) or SUBTRANSACTION.search(self.text) else "s"


def read_routines(connection: psycopg.Connection) -> dict[int, Routine]:
    """Every routine of every schema by its oid, those of the archive with their bodies; and its views, for what they call."""
    with connection.transaction():
        # Bodies that PostgreSQL writes out then name everything outside pg_catalog with its schema.
        connection.execute("set local search_path = pg_catalog")
        rows = connection.execute(
            """
            select p.oid, p.oid::regprocedure::text, n.nspname, p.proname, l.lanname, p.proparallel::text,
                   case
                       when p.oid = to_regprocedure('eo_internal.examples()') then ''  -- statements that it does not run
                       when n.nspname = any (%(own)s) then coalesce(pg_get_function_sqlbody(p.oid), p.prosrc) else '' end
            from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang
            union all
            select c.oid, c.oid::regclass::text, n.nspname, c.relname, 'view', 's', pg_get_viewdef(c.oid)
            from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where c.relkind = 'v' and n.nspname = any (%(own)s)
            """,
            {"own": list(OWN_SCHEMAS)},
        ).fetchall()
    return {row[0]: Routine(*row[:6], NO_CALLS.sub(" ", row[6]) if row[4] != "plpython3u" else row[6]) for row in rows}


def callees(routines: dict[int, Routine]) -> dict[int, set[int]]:
    """What each routine of the archive may call: every overload of a name that its text calls.

    A name without a schema means pg_catalog's routines, as in every body of the archive, or else those of public.
    """
    by_name: dict[tuple[str, str], set[int]] = {}
    views: dict[tuple[str, str], int] = {}
    for routine in routines.values():
        if routine.language == "view":
            views[routine.schema, routine.name] = routine.oid
        else:
            by_name.setdefault((routine.schema, routine.name.lower()), set()).add(routine.oid)
    called = {}
    for routine in routines.values():
        if routine.schema in OWN_SCHEMAS and routine.language != "plpython3u":
            called[routine.oid] = {views[relation] for relation in routine.relations() if relation in views}
            for schema, name in routine.names():
                found = by_name.get((schema or "pg_catalog", name)) or (
                    set() if schema else by_name.get(("public", name))
                )
                called[routine.oid] |= found or set()
    return called


def parallel_labels(routines: dict[int, Routine]) -> dict[int, str]:
    """The least strict label that is true of each routine: as strict as what it does and as anything that it calls."""
    called = callees(routines)
    labels = {
        oid: routine.needs()
        if routine.schema in OWN_SCHEMAS
        else OVERLOADS.get((routine.schema, routine.name), routine.parallel)
        for oid, routine in routines.items()
    }
    order = "sru"
    changed = True
    while changed:
        changed = False
        for oid, targets in called.items():
            label = max([labels[oid], *(labels[target] for target in targets)], key=order.index)
            changed |= label != labels[oid]
            labels[oid] = label
    return labels


def python_queries(body: str) -> bool:
    """Whether the body of a PL/Python function reaches a query: all that gets plpy may, and first looks at the version."""
    tree = ast.parse("def body():\n" + "\n".join("    " + line for line in body.strip().splitlines()))
    return any(isinstance(node, ast.Name) and node.id == "plpy" for node in ast.walk(tree))
