"""`pgearth server start|stop|status|psql`: the checkout's own server."""

from __future__ import annotations

import os
import shutil
import sys

import click
import psycopg

from pgearth.loaders.server.cluster import Cluster
from pgearth.loaders.server.connection import dsn, require_server
from pgearth.loaders.server.installation import INSTALL_HINT
from pgearth.loaders.server.place import default_home
from pgearth.loaders.server.settings import MEGABYTE
from pgearth.pyfuncs.errors import PgearthError


@click.group()
def server() -> None:
    """Run the checkout's own database server.

    It lies in .pgearth in the checkout, or in PGEARTH_HOME, and is reached through a Unix socket. Root may start it
    too: it then runs as the OS user `postgres`, because PostgreSQL refuses to run as root, and what that user cannot
    reach is kept below /var/lib/pgearth (`status` says where).
    """


@server.command()
@click.option(
    "--listen",
    metavar="ADDRESS[:PORT]",
    help="Open TCP too, for all roles with a password; postgres has that in PGEARTH_PASSWORD.",
)
@click.option(
    "--memory",
    type=click.IntRange(256),
    metavar="MEGABYTES",
    help="Memory that the server may plan with: give a large archive most of the machine's. "
    "Without: an eighth of it, at most 4096.",
)
def start(listen: str | None, memory: int | None) -> None:
    """Start the server; create the cluster and the database `pgearth` where missing.

    When the server runs already nothing happens.
    """
    cluster = Cluster(default_home())
    started = cluster.start(listen=listen, memory=memory * MEGABYTE if memory else None)
    click.echo("Started." if started else "The server is running already.")
    click.echo(f"DSN: {cluster.dsn()}")


@server.command()
def stop() -> None:
    """Stop the server, if it is running."""
    click.echo("Stopped." if Cluster(default_home()).stop() else "The server is not running.")


@server.command()
def status() -> None:
    """Say whether the server runs, where it lies and how to reach it; exit status 3 when it is stopped."""
    cluster = Cluster(default_home())
    running = cluster.running()
    click.echo(f"state:   {'running' if running else 'stopped'}")
    click.echo(f"folder:  {cluster.folder}")
    if cluster.folder != cluster.home:
        click.echo(f"         not {cluster.home}, which the OS user running the server cannot reach")
    if (mirror := cluster.folder / "python").exists():
        click.echo(f"python:  {mirror}\n         a mirror of {sys.prefix}; `pgearth server start` refreshes it")
    click.echo(f"log:     {cluster.log}")
    click.echo(f"socket:  {cluster.socket_directory}, port {cluster.port}")
    if not running:
        sys.exit(3)
    with psycopg.connect(cluster.dsn()) as connection:
        version, size, addresses = connection.execute(
            """
            select current_setting('server_version'), pg_size_pretty(pg_database_size('pgearth')),
                current_setting('listen_addresses')
            """
        ).fetchone() or ("", "", "")
    click.echo(f"TCP:     {addresses or 'off'}")
    click.echo(f"server:  PostgreSQL {version}, OS user {cluster.account.pw_name}")
    click.echo(f"size:    {size} in the database pgearth")
    click.echo(f"DSN:     {cluster.dsn()}")


@server.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS]")
def psql(arguments: tuple[str, ...]) -> None:
    """Open psql on the database; ARGS go to psql, as in `pgearth server psql -- -c 'select 1'`."""
    require_server()
    program = shutil.which("psql")
    if program is None:
        raise PgearthError("psql is not installed.", INSTALL_HINT)
    target = [f"--dbname={dsn()}"] if dsn() else []
    os.execv(program, [program, *target, *arguments])
