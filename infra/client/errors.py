"""What can go wrong, as one tree.

ClientError
├── RefusedError       the API says that the request is wrong (400 to 499); sending it again is no use
└── UnavailableError   no answer, or one that says "later" (408, 429, 5xx), as often as the policy allows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.client.values import EventResult


class ClientError(Exception):
    """Base of what the client raises. `results`: of the events in the requests before the one that failed."""

    results: Sequence[EventResult] = ()


class RefusedError(ClientError):
    """The request cannot be answered as asked. `problem`: the problem+json, empty when somebody else answered."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        words = problem.get("detail") or problem.get("title") or "no reason given"
        about = f" (request {problem['request_id']})" if "request_id" in problem else ""
        super().__init__(f"HTTP {status}: {words}{about}")
        self.status = status
        self.problem = dict(problem)

    @property
    def field(self) -> str | None:
        """The field that is wrong, when the API names one."""
        errors = self.problem.get("errors")
        return errors[0].get("field") if errors else self.problem.get("field")


class UnavailableError(ClientError):
    """Nobody could answer in time. `retry_after`: seconds the API asked for that were too long to wait here."""

    def __init__(self, attempts: int, last: str, *, retry_after: float | None = None) -> None:
        times = "once" if attempts == 1 else f"{attempts} times"
        later = f"; it asks to come back in {retry_after:.0f} s" if retry_after else ""
        super().__init__(f"tried {times}, last: {last}{later}")
        self.attempts = attempts
        self.retry_after = retry_after
