"""The run folder: one night's definition and reports, shared by the night's tasks.

Files appear whole or not at all, and are on disk when they were written, with the folder that they lie in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.run import RUN_FILE, Run, run_folder
from feature_repo.contracts.whole_files import write_whole


def folder_of(environment: Environment, run_key: str) -> Path:
    """The folder of one run; it need not exist. Raises DataError when the runs root is a URL."""
    if "://" in environment.runs:
        raise DataError(f"NIGHTJAR_RUNS must be a folder that every task can reach, got {environment.runs!r}")
    return Path(run_folder(environment.runs, environment.tenant, run_key))


def has_run(environment: Environment, run_key: str) -> bool:
    """Whether the run was pinned already."""
    return (folder_of(environment, run_key) / RUN_FILE).is_file()


def read_run(environment: Environment, run_key: str) -> Run:
    """The pinned run. Raises DataError naming the nearest known run when there is none of this key."""
    path = folder_of(environment, run_key) / RUN_FILE
    try:
        return Run.from_json(path.read_bytes())
    except FileNotFoundError as error:
        root = path.parent.parent
        known = [folder.name for folder in root.iterdir()] if root.is_dir() else []
        raise DataError(f"no run {run_key!r} in {root}{nearest(run_key, known)}", field="run_key") from error


def write_run(environment: Environment, run: Run) -> Path:
    """Write run.json of `run.run_key`."""
    return _write(folder_of(environment, run.run_key) / RUN_FILE, run.to_json())


def read_report(environment: Environment, run_key: str, file_name: str) -> dict[str, Any]:
    """One report of a run, e.g. `refine.json`. Raises DataError when the task that writes it has not run."""
    path = folder_of(environment, run_key) / file_name
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"run {run_key!r} has no {file_name} yet: {path} does not exist", field=file_name) from error


def has_report(environment: Environment, run_key: str, file_name: str) -> bool:
    """Whether a task has written this report of a run."""
    return (folder_of(environment, run_key) / file_name).is_file()


def write_report(environment: Environment, run_key: str, file_name: str, report: Mapping[str, Any]) -> Path:
    """Write one report as JSON with sorted keys. Raises ValueError on a number that JSON does not have (NaN)."""
    text = json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return _write(folder_of(environment, run_key) / file_name, text)


def write_page(environment: Environment, run_key: str, file_name: str, text: str) -> Path:
    """Write one report for people, as it is."""
    return _write(folder_of(environment, run_key) / file_name, text)


def _write(path: Path, text: str) -> Path:
    return write_whole(path, text.encode("utf-8"))
