"""Prometheus' own checker of rules, for the tests: from PATH, from an earlier fetch, or out of Debian's package.

The package is downloaded and unpacked, not installed: that needs neither root nor a server that would then run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from feature_repo.contracts.errors import DependencyError

PROGRAM = "promtool"
PACKAGE = "prometheus"
_TIMEOUT_SECONDS = 120


def find_promtool(variables: Mapping[str, str], folder: Path) -> Path:
    """The program. What is fetched is kept as `folder`/promtool.

    Raises DependencyError with the remedy where there is none and none can be fetched.
    """
    on_path = shutil.which(PROGRAM, path=variables.get("PATH", os.defpath))
    if on_path:
        return Path(on_path)
    kept = folder / PROGRAM
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            _unpack(Path(temporary), variables).replace(kept)
    return kept


def _unpack(folder: Path, variables: Mapping[str, str]) -> Path:
    try:
        _run(["apt-get", "download", PACKAGE], folder, variables)
        (package,) = folder.glob("*.deb")
        _run(["dpkg", "-x", package.name, "unpacked"], folder, variables)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        words = getattr(error, "stderr", None) or str(error)
        raise DependencyError(
            f"there is no {PROGRAM} on PATH, and Debian's package {PACKAGE} cannot be had: {words.strip()[-300:]}; "
            f"install it (Debian, Ubuntu: `apt install {PACKAGE}`; macOS: `brew install {PACKAGE}`)"
        ) from error
    return folder / "unpacked" / "usr" / "bin" / PROGRAM


def _run(command: list[str], folder: Path, variables: Mapping[str, str]) -> None:
    subprocess.run(
        command, cwd=folder, env=dict(variables), check=True, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
    )
