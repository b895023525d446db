"""Files of an installation that appear whole or not at all, and are on disk when that is said."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from feature_repo.contracts.torn_commits import sync


def write_whole(path: Path, data: bytes, *, mode: int = 0o644) -> Path:
    """Put `data` in the place of a file: written beside it, fsynced, renamed, the folder fsynced. Returns `path`.

    Folders that are missing are made, and their names are on disk too. After an error the old file is there.
    """
    make_folder(path.parent)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, mode)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    sync(path.parent)
    return path


def append_line(path: Path, line: str) -> None:
    """Add one line to a file, which is made when it is missing; it is on disk when this returns."""
    make_folder(path.parent)
    is_new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing; the names of the new ones are on disk when this returns."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        sync(made.parent)
