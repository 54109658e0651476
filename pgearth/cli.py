"""The `pgearth` command and its groups; a subcommand lives in the module of its topic, imported on use."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import traceback

import click

from pgearth.loaders.work.explain import RUN_AGAIN, TRACEBACK, explained, interrupted


class TopicGroup(click.Group):
    """A group whose subcommands are imported on use, so that `pgearth --help` does not import torch or GDAL."""

    def __init__(self, *args: object, topics: dict[str, str], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.topics = topics

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all subcommands, in the order of their declaration."""
        del ctx
        return list(self.topics)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand `cmd_name`, or return None when there is no such subcommand."""
        del ctx
        if cmd_name not in self.topics:
            return None
        module, attribute = self.topics[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(
    cls=TopicGroup,
    topics={
        "server": "pgearth.loaders.server.commands:server",
        "migrate": "pgearth.loaders.server.migrate_command:migrate",
        "load": "pgearth.cli:load",
        "annotate": "pgearth.loaders.reference.commands:annotate",
        "train": "pgearth.cli:train",
        "encoder": "pgearth.cli:encoder",
        "encode": "pgearth.loaders.models.commands:encode",
        "index": "pgearth.cli:index",
        "export": "pgearth.loaders.export.commands:export",
        "demo": "pgearth.loaders.demo.demo:demo",
        "synthetic": "pgearth.loaders.demo.synthetic.commands:synthetic",
    },
)
@click.version_option(package_name="pgearth")
def pgearth() -> None:
    """Satellite-image archives that live in PostgreSQL.

    Every command works on the server that PGEARTH_DSN (or libpq's PG* variables) names, else on the checkout's own
    private server (`pgearth server start`).
    """


@click.group(
    cls=TopicGroup,
    topics={
        "nomenclature": "pgearth.loaders.reference.commands:nomenclature",
        "corine": "pgearth.loaders.reference.commands:corine",
        "nuts": "pgearth.loaders.reference.commands:nuts",
        "bigearthnet": "pgearth.loaders.datasets.bigearthnet.commands:bigearthnet",
        "bigearthnet-metadata": "pgearth.loaders.datasets.bigearthnet.commands:bigearthnet_metadata",
        "export": "pgearth.loaders.export.commands:load_export",
        "product": "pgearth.loaders.products.commands:product",
    },
)
def load() -> None:
    """Bring data into the archive. Each load may be interrupted and run again."""


@click.group(
    cls=TopicGroup,
    topics={
        "encoder": "pgearth.loaders.models.training_commands:encoder",
        "hash": "pgearth.loaders.models.training_commands:hash_function",
    },
)
def train() -> None:
    """Train encoders and hash functions on the archive. Each training may be interrupted and run again."""


@click.group(
    cls=TopicGroup,
    topics={
        "add": "pgearth.loaders.models.commands:add",
        "list": "pgearth.loaders.models.commands:list_versions",
        "retire": "pgearth.loaders.models.commands:retire",
        "start": "pgearth.loaders.server.encoder_commands:start",
        "stop": "pgearth.loaders.server.encoder_commands:stop",
        "status": "pgearth.loaders.server.encoder_commands:status",
    },
)
def encoder() -> None:
    """Versions of encoders and hash functions."""


@click.group(
    cls=TopicGroup,
    topics={
        "codes": "pgearth.loaders.models.commands:codes",
        "vectors": "pgearth.loaders.models.commands:vectors",
    },
)
def index() -> None:
    """Build what makes searches by content fast: derived from the archive, and never needed for a right answer."""


def main() -> None:
    """Run the command; an error ends it in one message and a hint instead of a traceback."""
    # Threads of OpenMP otherwise spin while they wait, and take the cores from the server that they wait for: networks
    # are then trained at a third of the rate. To be said before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # What it warns of when a connection is lost is raised, too.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminate)
    try:
        sys.exit(pgearth(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, click.Abort) or interrupted(error):
            click.echo(f"Interrupted. {RUN_AGAIN}", err=True)
            sys.exit(130)
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        click.echo(f"Error: {explained(error)}", err=True)
        sys.exit(1)


def terminate(*_: object) -> None:
    """End the command as Ctrl-C does, where whoever supervises it asks it to end."""
    raise KeyboardInterrupt
