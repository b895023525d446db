"""The errors that cross a boundary, as one tree.

NightjarError                     everything we raise on purpose
├── ContractError                 bytes, keys or names that do not follow a contract (a bug, or tampering)
│   └── MixedVersionError         an answer would have mixed two published versions
├── InputError                    what somebody gave us is wrong; the message says what would be right
│   ├── RequestError              ... in a request to the serving API
│   │   └── FilterError           ... in its filter, with the place in the text
│   └── DataError                 ... in a file, a table or a run's parameters
├── GateRefusedError              the night's candidates are not good enough to publish; nothing was published
└── DependencyError               a store or a service that we need does not answer
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NightjarError(Exception):
    """Base of every error raised on purpose. `str(error)` is written for the person who reads it."""


class ContractError(NightjarError):
    """Bytes, a key or a name that does not follow its contract."""


class MixedVersionError(ContractError):
    """A record of one published version turned up where another version was being served."""


class InputError(NightjarError):
    """Input that cannot be used. `field` names the offending part when there is one."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class RequestError(InputError):
    """A request that cannot be answered as asked (HTTP 400 or 422)."""


class FilterError(RequestError):
    """A filter that cannot be read. `position` is the place of the offending character in `text`, from 0; `reason` is
    the message without it."""

    def __init__(self, message: str, *, position: int, text: str = "") -> None:
        shown = text[max(0, position - 20) : position + 20]
        around = f": {shown[: min(20, position)]}\N{RIGHTWARDS ARROW}{shown[min(20, position) :]}" if text else ""
        super().__init__(f"{message} (position {position}{around})", field="filter")
        self.reason = message
        self.text = text
        self.position = position


class DataError(InputError):
    """A file, a table or a run parameter that cannot be used. Never worth a retry."""


class GateRefusedError(NightjarError):
    """The gate refused to publish. Yesterday's version keeps serving. Never worth a retry."""


class DependencyError(NightjarError):
    """A store or service we need does not answer. Worth a retry."""


def nearest(value: str, known: Iterable[str]) -> str:
    """A hint for an error message: `"; did you mean 'x'?"`, or an empty string when nothing is near."""
    close = difflib.get_close_matches(value, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
