"""Cases that Schemathesis makes of our OpenAPI document: half of them fit it, half of them do not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from feature_repo.contracts.errors import DependencyError
from infra.bench.events.raw_sender import ANSWER_SECONDS, Tally

CASES_OF_A_ROUND = 1_000
Case = Any
"""`schemathesis.Case`"""


def run_cases(
    document: Mapping[str, Any], url: str, *, cases: int, seed: int, tally: Tally, deadline: float
) -> dict[str, int]:
    """Send `cases` cases, evenly over the operations as far as they have so many; how many each operation got.

    After `deadline` (`time.monotonic`) none is sent any more, so the operations go round and round until then.

    Raises DependencyError when Schemathesis is not installed.
    """
    try:
        schemathesis, generation, requests = map(import_module, ("schemathesis", "schemathesis.generation", "requests"))
    except ImportError as error:
        raise DependencyError(f"the cases are made by Schemathesis ({error}); install the extra `dev`") from error
    operations = [found.ok() for found in schemathesis.openapi.from_dict(dict(document)).get_all_operations()]
    operations.sort(key=lambda operation: bool(operation.body or operation.query or operation.path_parameters))
    modes = (generation.GenerationMode.NEGATIVE, generation.GenerationMode.POSITIVE)
    jobs = [(operation, mode) for operation in operations for mode in modes]
    counts: dict[str, int] = {}
    with requests.Session() as session:
        session.trust_env = False

        def send(case: Case) -> None:
            tally.requests += 1
            command = case.as_curl_command().encode("utf-8", "replace")
            try:
                answer = case.call(base_url=url, session=session, timeout=ANSWER_SECONDS, allow_redirects=False)
            except requests.RequestException as error:
                tally.note_fault(f"{type(error).__name__}: {error}"[:200], command)
            else:
                tally.note_answer(answer.status_code, answer.content, command)

        rounds = -(-cases // CASES_OF_A_ROUND)
        for turn in range(rounds):
            for number, (operation, mode) in enumerate(jobs):
                left = cases * (turn + 1) // rounds - sum(counts.values())
                wanted = -(-left // (len(jobs) - number)) if time.monotonic() < deadline else 0
                sent = _send_each(operation.as_strategy(mode), wanted, seed + turn * len(jobs) + number, send)
                counts[operation.label] = counts.get(operation.label, 0) + sent
    return counts


def _send_each(strategy: Any, count: int, seed: int, send: Callable[[Case], None]) -> int:
    """Send up to `count` cases; fewer when there are no more (an operation without parameters has but one)."""
    if count < 1:
        return 0
    hypothesis, errors = import_module("hypothesis"), import_module("hypothesis.errors")
    sent = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, phases=[hypothesis.Phase.generate], deadline=None, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(case=strategy)
    def send_one(case: Case) -> None:
        nonlocal sent
        if sent < count:
            send(case)
            sent += 1

    with contextlib.suppress(errors.HypothesisException):  # nothing, or nothing more, can be made for it
        send_one()
    return sent
