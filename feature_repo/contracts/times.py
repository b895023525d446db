"""Times: aware, UTC, microseconds; days are UTC days; intervals are half-open."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from feature_repo.contracts.errors import DataError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST_EVENT = datetime(1995, 1, 1, tzinfo=UTC)
"""Events before this are quarantined: no shop on the web is older, a zeroed clock is."""

MAX_FUTURE_SKEW = timedelta(hours=24)
"""An event later than its receipt plus this is quarantined, never moved."""


def require_utc(moment: datetime, name: str = "timestamp") -> datetime:
    """`moment` in UTC. Raises DataError when it is naive."""
    if moment.tzinfo is None:
        raise DataError(f"{name} must be aware, got {moment.isoformat()} without a time zone", field=name)
    return moment.astimezone(UTC)


def parse_timestamp(text: str | int | float) -> datetime:
    """An RFC 3339 text, or seconds or milliseconds since 1970, as an aware UTC datetime.

    A text without an offset is UTC. Numbers from 1e11 up are milliseconds (1e11 s would be the year 5138).
    Raises DataError when it is neither.
    """
    if isinstance(text, bool):
        raise DataError(f"not a timestamp: {text!r}", field="timestamp")
    if isinstance(text, int | float):
        try:
            return datetime.fromtimestamp(text / 1000 if abs(text) >= 1e11 else text, tz=UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise DataError(f"not a timestamp: {text!r}", field="timestamp") from error
    try:
        moment = datetime.fromisoformat(text.strip())
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"not a timestamp: {text!r}; expected RFC 3339 such as 2024-03-01T09:30:00Z", field="timestamp"
        ) from error
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as error:
        raise DataError(f"not a timestamp: {text!r}", field="timestamp") from error


def format_timestamp(moment: datetime) -> str:
    """RFC 3339 with `Z`; microseconds only when there are any."""
    return require_utc(moment).isoformat().replace("+00:00", "Z")


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970-01-01T00:00:00Z, exactly (no float in between)."""
    since = (moment if moment.tzinfo is UTC else require_utc(moment)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_micros(micros: int) -> datetime:
    """Inverse of `to_micros`."""
    return _EPOCH + timedelta(microseconds=micros)


def parse_as_of(text: str) -> date:
    """The day whose first instant (UTC) ends a run's data interval, from `YYYY-MM-DD`."""
    try:
        return date.fromisoformat(text)
    except (ValueError, TypeError) as error:
        raise DataError(f"as_of must be a day such as 2024-03-08, got {text!r}", field="as_of") from error


def start_of_day(day: date) -> datetime:
    """The first instant of a UTC day; for an `as_of` day, the exclusive end of what the run may see."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
