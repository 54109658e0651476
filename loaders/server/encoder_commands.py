"""`pgearth encoder start|stop|status`: the process that owns the device and encodes for all sessions of a database."""

from __future__ import annotations

import sys

import click

from pgearth.loaders.option_types import Number
from pgearth.loaders.server.connection import connect
from pgearth.loaders.server.encoder_process import EncoderProcess

ROWS = "select component, version, note from eo.runtime() where component like '%encod%' or component = 'device'"


@click.command()
@click.option("--foreground", is_flag=True, help="Stay in the foreground, log to the terminal: for service managers.")
@click.option(
    "--memory-limit",
    type=click.IntRange(min=1),
    metavar="MEGABYTES",
    default=2048,
    show_default=True,
    help="Weights to keep loaded; those used least recently are dropped.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    help="Patches to encode at a time (default: 64 on a GPU, 16 on the CPU).",
)
@click.option(
    "--max-wait",
    type=Number(0, 1000),
    metavar="MILLISECONDS",
    default=2,
    show_default=True,
    help="How long a batch waits for one more request, where several sessions ask.",
)
def start(foreground: bool, memory_limit: int, max_batch: int | None, max_wait: float) -> None:
    """Start the process that encodes by networks for all sessions of this database.

    It owns the GPU, if there is one, and reads encoders from the database when they are asked for. Sessions find it by
    themselves; without it, they compute on the CPU. It is to be started on the server's machine, by root or the
    server's OS user, as whom it runs.
    """
    options = ["--memory-limit", str(memory_limit), "--max-wait", str(max_wait)]
    if max_batch:
        options += ["--max-batch", str(max_batch)]
    with connect(autocommit=True) as connection:
        process = EncoderProcess.of(connection)
        if not foreground:
            pid = process.start(connection, options)
            click.echo(f"Started: process {pid}, log {process.log}")
    if foreground:
        process.become(options)


@click.command()
def stop() -> None:
    """Stop the process, if it is running, after the batch that it is at."""
    with connect(autocommit=True) as connection:
        process = EncoderProcess.of(connection)
    click.echo("Stopped." if process.stop() else "The encoder process is not running.")


@click.command()
def status() -> None:
    """Say how the process is, as eo.runtime() does; exit status 3 when no session reaches it."""
    with connect(autocommit=True) as connection:
        rows = connection.execute(ROWS).fetchall()
    for component, version, note in rows:
        click.echo(f"{component + ':':17}{version}" + (f"; {note}" if note else ""))
    if ("encoder process", "running") not in [row[:2] for row in rows]:
        sys.exit(3)
