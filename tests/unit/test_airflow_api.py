"""Airflow's API as it behaves on SQLite: a locked database is waited for, and only so long."""

from __future__ import annotations

from datetime import date
from types import SimpleNamespace

import httpx
import pytest

from feature_repo.contracts.errors import DataError, DependencyError
from infra.local import airflow_api
from infra.local.airflow_api import AirflowApi

LOCKED = (503, {"detail": "Database is locked."})
MADE = (200, {"id": 7})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, instead of making them. Other threads go on sleeping as they do."""
    pauses: list[float] = []
    monkeypatch.setattr(airflow_api, "time", SimpleNamespace(sleep=pauses.append))
    return pauses


def airflow_that_answers(*answers: tuple[int, dict[str, object]]) -> AirflowApi:
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/auth/token":
            return httpx.Response(201, json={"access_token": "t"})
        assert request.url.path == "/api/v2/backfills"
        code, body = left.pop(0) if len(left) > 1 else left[0]
        return httpx.Response(code, json=body)

    api = AirflowApi("http://127.0.0.1:1", "user", "password")
    api._client = httpx.Client(base_url=api.url, transport=httpx.MockTransport(answer))
    return api


def start(api: AirflowApi) -> int:
    with api:
        return api.backfill("nightly", date(2025, 1, 1), date(2025, 1, 30))


def test_a_locked_database_is_asked_again(asked: list[float]) -> None:
    assert start(airflow_that_answers(LOCKED, LOCKED, MADE)) == 7
    assert asked == [1.0, 2.0]


def test_one_that_stays_locked_is_given_up(asked: list[float]) -> None:
    with pytest.raises(DependencyError, match=r"did not take the backfill of nightly: Database is locked"):
        start(airflow_that_answers(LOCKED))
    assert 20 < sum(asked) < 60


def test_a_refusal_is_not_repeated(asked: list[float]) -> None:
    with pytest.raises(DataError, match=r"refuses the backfill of nightly from 2025-01-01 to 2025-01-30: another one"):
        start(airflow_that_answers((409, {"detail": "another one is running"}), MADE))
    assert asked == []
