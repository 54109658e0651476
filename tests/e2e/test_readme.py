"""The README's commands and SQL are real."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from click.testing import Result

from loaders.bigearthnet import load_bigearthnet
from loaders.encode import encode_archive

CHECKOUT = Path(__file__).parents[2]
README = (CHECKOUT / "README.md").read_text()


def test_every_command_exists(archive: psycopg.Connection, run_pgearth: Callable[..., Result]) -> None:
    commands = re.findall(
        r"pgearth ((?:load [a-z-]+|[a-z]+)(?= |$))", "\n".join(re.findall(r"```sh(.*?)```", README, re.S)), re.M
    )
    assert len(set(commands)) >= 7
    for command in commands:
        result = run_pgearth(archive, *command.split(), "--help")
        assert result.exit_code == 0, command


def test_every_make_target_exists() -> None:
    for target in set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", README, re.M)):
        subprocess.run(
            ["make", "--dry-run", "--always-make", "".join(target)], cwd=CHECKOUT, check=True, capture_output=True
        )


def test_every_link_leads_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (CHECKOUT / link).exists(), link


def test_the_psql_session_runs(archive: psycopg.Connection, sample: Path) -> None:
    v1 = sample / "bigearthnet-v1"
    load_bigearthnet(archive, v1, lists=v1 / "lists")
    with psycopg.connect(archive.info.dsn, autocommit=True) as reading:
        encode_archive(archive, reading)
    blocks = re.findall(r"```sql(.*?)```", README, re.S)
    assert len(blocks) == 1
    statements = [statement for statement in blocks[0].split(";") if statement.strip()]
    assert len(statements) >= 5
    for statement in statements:
        rows = archive.execute(
            statement.replace("%", "%%").encode() if "%" in statement else statement.encode()
        ).fetchall()
        if "eo.similar" in statement and "countries" not in statement:
            assert len(rows) == 10


@pytest.mark.parametrize("file", ["README.md", "docs/functions.md", "sql/README.md"])
def test_no_machine_paths(file: str) -> None:
    assert not re.search(r"/work/|/tmp/", (CHECKOUT / file).read_text())
