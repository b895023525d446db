"""Cases that Schemathesis makes of our OpenAPI document: half of them fit it, half of them do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import requests
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisException

from feature_repo.contracts.errors import DependencyError
from infra.bench.raw_sender import ANSWER_SECONDS, Tally

Case = Any
"""`schemathesis.Case`"""


def run_cases(document: Mapping[str, Any], url: str, *, cases: int, seed_number: int, tally: Tally) -> dict[str, int]:
    """Send `cases` cases, evenly over the operations as far as they have so many; how many each operation got.

    Raises DependencyError when Schemathesis is not installed.
    """
    try:
        import schemathesis
        from schemathesis.generation import GenerationMode
    except ImportError as error:
        raise DependencyError(f"the cases are made by Schemathesis ({error}); install the extra `dev`") from error
    operations = [found.ok() for found in schemathesis.openapi.from_dict(dict(document)).get_all_operations()]
    operations.sort(key=lambda operation: bool(operation.body or operation.query or operation.path_parameters))
    jobs = [(operation, mode) for operation in operations for mode in (GenerationMode.NEGATIVE, GenerationMode.POSITIVE)]
    counts: dict[str, int] = {}
    with requests.Session() as session:
        session.trust_env = False
        for number, (operation, mode) in enumerate(jobs):
            wanted = -(-(cases - sum(counts.values())) // (len(jobs) - number))
            sent = _run(operation.as_strategy(mode), wanted, seed_number + number, _sender(url, session, tally))
            counts[operation.label] = counts.get(operation.label, 0) + sent
    return counts


def _run(strategy: Any, count: int, seed_number: int, send: Callable[[Case], None]) -> int:
    """Send up to `count` cases; fewer when there are no more (an operation without parameters has but one)."""
    sent = 0

    @seed(seed_number)
    @settings(
        max_examples=count, phases=[Phase.generate], deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=strategy)
    def send_each(case: Case) -> None:
        nonlocal sent
        if sent < count:
            send(case)
            sent += 1

    try:
        send_each()
    except HypothesisException:
        pass  # nothing, or nothing more, can be made that does not fit this operation
    return sent


def _sender(url: str, session: requests.Session, tally: Tally) -> Callable[[Case], None]:
    def send(case: Case) -> None:
        tally.requests += 1
        try:
            answer = case.call(base_url=url, session=session, timeout=ANSWER_SECONDS, allow_redirects=False)
        except requests.RequestException as error:
            tally.note_fault(f"{type(error).__name__}: {error}"[:200], case.as_curl_command().encode())
            return
        tally.note_answer(answer.status_code, answer.content, case.as_curl_command().encode()
                          if answer.status_code >= 500 else b"")

    return send
