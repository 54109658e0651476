"""How many pieces of work are run, as options of a command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import click

from pgearth.loaders.work.task import Engine


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options --jobs, --engine and --spark-master; it takes them as one argument, `engine`."""

    @click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Number of processes.")
    @click.option(
        "--engine",
        type=click.Choice(["local", "spark"]),
        default="local",
        show_default=True,
        help="local: processes of this machine. spark: a Spark cluster's.",
    )
    @click.option(
        "--spark-master",
        metavar="URL",
        envvar="SPARK_MASTER",
        help="With --engine spark: spark://HOST:PORT, yarn, ...; default: a cluster of --jobs workers on this machine.",
    )
    @functools.wraps(command)
    def wrapper(
        *args: Any, jobs: int, engine: Literal["local", "spark"], spark_master: str | None, **kwargs: Any
    ) -> Any:
        return command(*args, engine=Engine(engine, jobs, spark_master), **kwargs)

    return wrapper
