"""The README's commands and links are real; test_demo.py runs its SQL."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from click.testing import Result

CHECKOUT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "sql/README.md", *sorted(f"docs/{path.name}" for path in (CHECKOUT / "docs").glob("*.md"))]
TEXT = {name: (CHECKOUT / name).read_text() for name in DOCUMENTS}


def test_every_command_exists(archive: psycopg.Connection, run_pgearth: Callable[..., Result]) -> None:
    blocks = "\n".join(re.findall(r"```sh(.*?)```", "\n".join(TEXT.values()), re.S))
    commands = set(re.findall(r"pgearth ((?:load |index )?[a-z-]+)(?=[ \n])([^#\n]*)", blocks))
    assert len(commands) >= 9
    for command, arguments in commands:
        result = run_pgearth(archive, *command.split(), "--help")
        assert result.exit_code == 0, command
        for option in re.findall(r"--[a-z-]+", arguments):
            assert f"  {option} " in result.output, f"{command} {option}"


def test_every_make_target_exists() -> None:
    targets = re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", "\n".join(TEXT.values()), re.M)
    assert len(set(targets)) >= 5
    for target in set(targets):
        subprocess.run(
            ["make", "--dry-run", "--always-make", "".join(target)], cwd=CHECKOUT, check=True, capture_output=True
        )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT[document]):
        assert ((CHECKOUT / document).parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_machine_paths(document: str) -> None:
    assert not re.search(r"/work/|/tmp/", TEXT[document])
