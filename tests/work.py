"""How much work a statement is, in rows: what all of its plans handled, which no load on the machine changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg


def rows_handled(connection: psycopg.Connection, work: Callable[[], object]) -> int:
    """Rows that the plans of all statements of `work` handled, those inside functions and of foreign keys included."""
    plans: list[dict[str, Any]] = []

    def keep(notice: psycopg.errors.Diagnostic) -> None:
        _, found, plan = (notice.message_primary or "").partition("plan:\n")
        if found:
            plans.append(json.loads(plan)["Plan"])

    connection.execute("load 'auto_explain'")
    settings = {
        "auto_explain.log_min_duration": "0",
        "auto_explain.log_analyze": "on",
        "auto_explain.log_timing": "off",
        "auto_explain.log_nested_statements": "on",
        "auto_explain.log_format": "json",
        "auto_explain.log_level": "notice",
    }
    connection.add_notice_handler(keep)
    try:
        for name, value in settings.items():
            connection.execute("select set_config(%s, %s, false)", (name, value))
        plans.clear()
        work()
    finally:
        connection.remove_notice_handler(keep)
        connection.execute("select set_config('auto_explain.log_min_duration', '-1', false)")
    return sum(map(handled, plans))


def handled(plan: dict[str, Any]) -> int:
    """Rows that a node and those below it read, kept or not."""
    rows = plan["Actual Rows"] + sum(number for name, number in plan.items() if name.startswith("Rows Removed"))
    return int(rows * plan["Actual Loops"]) + sum(map(handled, plan.get("Plans", [])))


def keep_statistics(connection: psycopg.Connection, analysed: bool) -> None:
    """Keep statistics as they are, whatever autovacuum would do: none, or (`analysed`) what they are now."""
    tables = connection.execute(
        "select oid::regclass::text from pg_class where relnamespace = 'eo'::regnamespace and relkind = 'r' order by 1"
    ).fetchall()
    for (table,) in tables:
        connection.execute(f"alter table {table} set (autovacuum_enabled = false)".encode())
        if analysed:
            connection.execute(f"vacuum analyze {table}".encode())
