"""Whose data is in the home: the demo may replace data that a demo put there, and nothing else."""

from __future__ import annotations

import json
import shutil
from datetime import date, timedelta
from pathlib import Path

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.tables import table_path

MARK_FILE = "demo.json"
STATE_FOLDERS = ("lakehouse", "publications", "runs", "redis-log", "redis-online", "mlflow", "feast")
"""What belongs to one shop under NIGHTJAR_HOME. Jars, Java, logs and Airflow's own database stay."""


def data_name(data: Path | None) -> str:
    """How a demo's data is remembered: the simulated shop, or the path of a file."""
    return "simulated shop" if data is None else str(data.resolve())


def needs_clearing(env: Environment, wanted: str) -> bool:
    """True when the home holds the data of another demo.

    Raises DataError when it holds data that no demo put there, or when the tables lie outside the home: that is
    somebody's own and is never touched.
    """
    home = Path(env.home)
    if env.lakehouse != f"{env.home}/lakehouse":
        raise DataError(f"the demo keeps to its own home, but NIGHTJAR_LAKEHOUSE names {env.lakehouse}; unset it")
    if not (home / "lakehouse").exists():
        return False
    held = _held(home)
    if held is None:
        raise DataError(
            f"{env.lakehouse} holds data that no demo put there; the demo leaves it alone. "
            "Choose another home for the demo: NIGHTJAR_HOME=.nightjar-demo nightjar demo"
        )
    return held != wanted


def clear(env: Environment) -> None:
    """Remove the state of the demo's shop. The stack must be down."""
    for name in STATE_FOLDERS:
        shutil.rmtree(Path(env.home) / name, ignore_errors=True)


def mark(env: Environment, name: str) -> None:
    """Remember whose data the home is about to hold. Written before the first row is."""
    home = Path(env.home)
    home.mkdir(parents=True, exist_ok=True)
    (home / MARK_FILE).write_text(json.dumps({"data": name}), encoding="utf-8")


def _held(home: Path) -> str | None:
    try:
        return str(json.loads((home / MARK_FILE).read_text(encoding="utf-8"))["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def day_after_last_import(env: Environment) -> date:
    """The natural `as_of` of imported data: the day (UTC) after its last event. Clicks of a demo do not count."""
    from deltalake import DeltaTable

    table = DeltaTable(table_path(env.lakehouse, "bronze.events_import", tenant=env.tenant))
    days = [partition["event_date"] for partition in table.partitions()]
    if not days:
        raise DataError("bronze.events_import holds no events")
    return date.fromisoformat(max(days)) + timedelta(days=1)
