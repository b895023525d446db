"""What silver was last derived from: kept with the commit that finishes a derivation, so it cannot run ahead of it.

refine_events writes silver.events last; that commit carries the state. A run killed before it leaves the old state, and
the next attempt derives the same days again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.run import Run
from spark_jobs.io.light_delta import days_by_row_count, days_changed_between, last_user_metadata, open_table

REFINE_RULES = "2"
"""Raise when the rules of bronze -> silver change: every day is derived again."""

EVENT_TABLES = ("bronze.events", "bronze.events_import", "bronze.events_kafka")
_STATE = "refined"


@dataclass(frozen=True, slots=True)
class RefineState:
    """Every event day before `as_of` stands in silver as derived by `rules` from the pinned versions, or newer ones."""

    as_of: str
    pins: Mapping[str, int]
    rules: str = REFINE_RULES

    @property
    def as_of_day(self) -> date:
        return date.fromisoformat(self.as_of)


def read_state(environment: Environment) -> RefineState | None:
    """The state of silver, or None when nothing is known (no run finished, or its commit left the log)."""
    metadata = last_user_metadata(environment, "silver.events", _STATE)
    return RefineState(**metadata[_STATE]) if metadata else None


def state_after(before: RefineState | None, run: Run) -> dict[str, Any]:
    """The commit metadata of a finished derivation.

    A backfill of an older as_of leaves the days from there on as they were, so the former state still holds.
    """
    state = RefineState(run.as_of, dict(run.pins))
    if before is not None and before.rules == REFINE_RULES and before.as_of_day > run.as_of_day:
        state = before
    return {_STATE: asdict(state)}


def days_to_derive(
    environment: Environment, state: RefineState | None, *, as_of: date, pins: Mapping[str, int]
) -> tuple[str, ...] | None:
    """Event days before `as_of` (ISO, sorted) whose bronze rows changed since `state`; None: every day.

    Every day, when nothing is known, when the rules changed, or when a table or version that silver was derived from is
    gone.
    """
    if state is None or state.rules != REFINE_RULES:
        return None
    days: set[date] = set()
    try:
        for name in EVENT_TABLES:
            before = state.pins.get(name, -1)  # a table that joined the contract since was not there
            if pins[name] < before:
                return None
            days |= days_changed_between(environment, name, before, pins[name])
            days |= {day for day in days_by_row_count(environment, name, pins[name]) if day >= state.as_of_day}
        for name in ("bronze.users", "bronze.user_changes"):  # refine_events compares consents with them
            open_table(environment, name, state.pins.get(name, -1))
    except DataError:
        return None
    return tuple(day.isoformat() for day in sorted(days) if day < as_of)
