"""Collect the older heads of the schema from git history into data/heads.json.xz.

A head is a state of migrations/versions and sql/ that a commit had. Run in a clone with the whole history, after the
newest head was committed on main: .venv/bin/python tests/migrations/collect_heads.py
"""

from __future__ import annotations

import hashlib
import json
import lzma
import subprocess
from pathlib import Path

FOLDERS = ("migrations/versions", "sql")
DATA = Path(__file__).parent / "data" / "heads.json.xz"


def git(*arguments: str) -> str:
    """Return what a git command prints."""
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def collect() -> dict[str, dict[str, dict[str, str]] | dict[str, str]]:
    """Return `heads`, file names with hashes by commit of main, oldest first and each state once, and `texts` by hash."""
    heads: dict[str, dict[str, str]] = {}
    texts: dict[str, str] = {}
    for commit in git("log", "--first-parent", "--reverse", "--format=%h", "--", *FOLDERS).split():
        head = {}
        for name in git("ls-tree", "-r", "--name-only", commit, "--", *FOLDERS).splitlines():
            if name.endswith(".sql") or (name.endswith(".py") and not name.endswith("__init__.py")):
                text = git("show", f"{commit}:{name}")
                digest = hashlib.sha256(text.encode()).hexdigest()[:16]
                texts[digest] = text
                head[name] = digest
        if head not in heads.values():
            heads[commit] = head
    return {"heads": heads, "texts": texts}


if __name__ == "__main__":
    DATA.write_bytes(lzma.compress(json.dumps(collect(), sort_keys=False).encode(), preset=9 | lzma.PRESET_EXTREME))
