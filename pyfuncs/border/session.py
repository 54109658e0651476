"""A session of PostgreSQL, as the functions see it that PL/Python bodies call: queries, plans, caches, cancels, errors.

Every body calls one function of this folder, decorated by `answer` or `answers`, with plpy, GD and its arguments;
nothing else in pyfuncs knows plpy. These modules import the standard library and what is written here only, because an
error of an import would leave as an exception.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from pgearth import pyfuncs
from pgearth.pyfuncs import interrupts, queries
from pgearth.pyfuncs.border.failure import Failure, described
from pgearth.pyfuncs.errors import OBJECT_NOT_IN_PREREQUISITE_STATE, PgearthError

Result = TypeVar("Result")


class Session:
    """A session, by `plpy` and `GD` of the body that is called. What is kept is kept in GD, until the session ends."""

    def __init__(self, plpy: Any, GD: dict[str, Any]) -> None:
        self.plpy = plpy
        self.GD = GD

    def rows(self, query: str, types: Sequence[str] = (), values: Sequence[Any] = ()) -> Any:
        """Rows of a query with parameters of these types, planned once per session."""
        return self.plpy.execute(self.kept("plans", query, lambda: self.plpy.prepare(query, types)), values)

    def row(self, query: str, types: Sequence[str] = (), values: Sequence[Any] = ()) -> Any:
        """The first row."""
        return self.rows(query, types, values)[0]

    def kept(self, kind: str, key: object, make: Callable[[], Result]) -> Result:
        """What `make` returned when it was first asked for in this session."""
        things: dict[object, Result] = self.GD.setdefault(f"pgearth.{kind}", {})
        if key not in things:
            things[key] = make()
        return things[key]

    def database(self) -> int:
        """The database's oid."""
        return int(self.row(queries.DATABASE_QUERY)["oid"])

    def pause(self) -> None:
        """To be called now and then: raises where the statement was cancelled or its time is up."""
        self.plpy.execute("select 1")

    def interruptibly(
        self, compute: Callable[[Callable[[], None]], Result], stop: Callable[[], object] = lambda: None
    ) -> Result:
        """What `compute` returns, in a thread of its own, or what a cancel raises: see interrupts.interruptibly."""
        return interrupts.interruptibly(compute, self.pause, stop)

    def check_version(self) -> None:
        """Raise PgearthError unless the package is of the schema's version, looked up once per session."""
        schema = self.kept("version", None, lambda: self.row(queries.SCHEMA_VERSION_QUERY)["version"])
        if schema != pyfuncs.__version__:
            raise PgearthError(
                f"the Python package is pgearth {pyfuncs.__version__}, the schema is of {schema}",
                sqlstate=OBJECT_NOT_IN_PREREQUISITE_STATE,
                hint="Run pgearth migrate with the installed package, then open a new session.",
            )


def answer(function: Callable[..., Any], any_version: bool = False) -> Callable[..., Any]:
    """Make a function of a session and arguments one that a PL/Python body returns one row from: see failure.py.

    A tuple that it returns is the columns but the last, None no answer (all columns are null), anything else the only
    column but the last. The package must be of the schema's version, unless `any_version`.
    """

    @functools.wraps(function)
    def wrapper(plpy: Any, GD: dict[str, Any], *arguments: Any) -> Any:
        try:
            result = function(opened(plpy, GD, any_version), *arguments)
        except BaseException as error:  # Rust's panics are no Exceptions
            return Failure(described(plpy, error))
        return None if result is None else as_row(result)

    return wrapper


def answers(function: Callable[..., Iterable[Any]]) -> Callable[..., list[Any]]:
    """As `answer`, for a function that returns several rows."""

    @functools.wraps(function)
    def wrapper(plpy: Any, GD: dict[str, Any], *arguments: Any) -> list[Any]:
        try:
            return [as_row(row) for row in function(opened(plpy, GD), *arguments)]
        except BaseException as error:
            return [Failure(described(plpy, error))]

    return wrapper


def opened(plpy: Any, GD: dict[str, Any], any_version: bool = False) -> Session:
    """The session, its version checked."""
    session = Session(plpy, GD)
    if not any_version:
        session.check_version()
    return session


def as_row(result: Any) -> tuple[Any, ...]:
    """The columns of an answer, with no failure in the last."""
    return (*result, None) if isinstance(result, tuple) else (result, None)
