"""`pgearth migrate`: bring a database's schema to this checkout's version, or back to an older one."""

from __future__ import annotations

import click
import sqlalchemy

from pgearth import pyfuncs
from pgearth.loaders.server.connection import sqlalchemy_url
from pgearth.loaders.server.migrate import downgrade, losses, upgrade
from pgearth.loaders.server.revisions import BASE, HEAD, describe
from pgearth.migrations.surroundings import warnings
from pgearth.pyfuncs.errors import PgearthError


@click.command()
@click.argument("revision", required=False)
@click.option("--down", is_flag=True, help="Downgrade to REVISION (`base` removes everything) instead of upgrading.")
@click.option("--yes", is_flag=True, help="With --down: do not ask.")
@click.option("--extensions", is_flag=True, help="Upgrade PostGIS and pgvector to what the server has installed, too.")
def migrate(revision: str | None, down: bool, yes: bool, extensions: bool) -> None:
    """Upgrade the schema to REVISION (head unless given), and make functions, roles and privileges whole.

    Running it again changes nothing. It is one transaction: whatever ends it early leaves the database as it was.
    """
    if extensions and down:
        raise click.UsageError("--extensions upgrades: it does not go with --down.")
    if down and revision is None:
        raise click.UsageError("--down needs a REVISION: the older one to go to, or base, no schema.")
    revision = revision or HEAD
    url = sqlalchemy_url()
    if down:
        lost = losses(url, revision, click.echo)
        click.echo("\n  ".join([f"A downgrade to {revision} deletes:", *(lost or ["no stored data"])]))
        if not yes and not confirmed():
            raise PgearthError("Nothing was changed.", "Answer y, or pass --yes.")
        downgrade(url, revision, click.echo)
        click.echo(f"The database holds {describe(revision)}.")
        if revision != BASE:
            click.echo("Its functions come from the checkout of that revision: pgearth migrate")
    else:
        reached = upgrade(url, revision, click.echo, extensions=extensions)
        warn(url)
        click.echo(f"The database holds {describe(reached)} (pgearth {pyfuncs.__version__}).")


def confirmed() -> bool:
    """Whether the user wants it; one who cannot be asked does not."""
    try:
        return click.confirm("Go on?")
    except click.Abort:
        return False


def warn(url: sqlalchemy.URL | str) -> None:
    """Say what an administrator should know of the database at `url`."""
    with sqlalchemy.create_engine(url).connect() as connection:
        for fault in warnings(connection):
            click.echo(f"Warning: {fault.message}\nHint: {fault.hint}", err=True)
