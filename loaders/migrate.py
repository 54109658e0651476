"""`pgearth migrate`: bring a database's schema to this checkout's version."""

from __future__ import annotations

from pathlib import Path

import alembic.command
import alembic.config
import click
import sqlalchemy

import migrations
import pyfuncs
from loaders.database import sqlalchemy_url
from loaders.errors import InputError
from migrations.surroundings import obstacle, warnings


def configuration(connection: sqlalchemy.Connection) -> alembic.config.Config:
    """Alembic's configuration for `connection`, without a file."""
    config = alembic.config.Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return config


def upgrade(url: sqlalchemy.URL | str, revision: str = "head") -> None:
    """Upgrade the database at `url` to `revision` in one transaction; at head, functions and privileges follow.

    Raises InputError, before anything is changed, where the extensions are not in public or may not be what they seem.
    """
    with sqlalchemy.create_engine(url).begin() as connection:
        if fault := obstacle(connection):
            raise InputError(fault.message, fault.hint)
        alembic.command.upgrade(configuration(connection), revision)


def downgrade(url: sqlalchemy.URL | str, revision: str) -> None:
    """Downgrade the database at `url` to `revision` in one transaction."""
    with sqlalchemy.create_engine(url).begin() as connection:
        alembic.command.downgrade(configuration(connection), revision)


def warn(url: sqlalchemy.URL | str) -> None:
    """Say what an administrator should know of the database at `url`."""
    with sqlalchemy.create_engine(url).connect() as connection:
        for fault in warnings(connection):
            click.echo(f"Warning: {fault.message}\nHint: {fault.hint}", err=True)


@click.command()
@click.argument("revision", default="head")
@click.option("--down", is_flag=True, help="Downgrade to REVISION (`base` removes everything) instead of upgrading.")
def migrate(revision: str, down: bool) -> None:
    """Upgrade the schema to REVISION (head unless given) and apply the functions. Running it again changes nothing."""
    (downgrade if down else upgrade)(sqlalchemy_url(), revision)
    warn(sqlalchemy_url())
    click.echo(f"The schema is at {revision} (pgearth {pyfuncs.__version__}).")
