"""The README's commands and links are real; test_demo.py runs its SQL."""

from __future__ import annotations

import re
import shlex
import subprocess

import click
import pytest

from pgearth.cli import pgearth
from tests.conftest import CHECKOUT

DOCUMENTS = ["README.md", "sql/README.md", *sorted(f"docs/{path.name}" for path in (CHECKOUT / "docs").glob("*.md"))]
TEXT = {name: (CHECKOUT / name).read_text() for name in DOCUMENTS}


def test_every_command_exists() -> None:
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", "\n".join(TEXT.values()), re.S)).replace("\\\n", " ")
    lines = re.findall(r"^(?:\S*/)?pgearth (.*)$", blocks, re.M)
    assert len(lines) >= 30
    for line in lines:
        words = shlex.split(line, comments=True)
        command: click.Command | None = pgearth
        while isinstance(command, click.Group):
            command = command.get_command(click.Context(command), words.pop(0))
        assert command, line
        options = {"--"} | {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


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
    assert not re.search(r"(?<!\w)/work/|/tmp/", TEXT[document])
