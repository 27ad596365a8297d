"""COMMIT.json: what makes a checkpoint's folder count. Path, size and sha256 of every other file in it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from templar_jax.errors import CheckpointError, line_of

COMMIT = "COMMIT.json"


def hash_files(folder: Path) -> list[dict[str, Any]]:
    """Path, size and sha256 of every file but COMMIT.json, by path."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != COMMIT:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found.append({"path": str(path.relative_to(folder)), "size": path.stat().st_size, "sha256": digest})
    return found


def verify(folder: Path) -> None:
    """Raises CheckpointError, with one line for the user, unless COMMIT.json fits every byte."""
    try:
        expected = json.loads((folder / COMMIT).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {folder} was interrupted while it was saved: passed over") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged ({COMMIT}: {line_of(error)}): passed over") from error
    if hash_files(folder) != expected:
        raise CheckpointError(f"checkpoint {folder} is damaged (a file is not what {COMMIT} says): passed over")
