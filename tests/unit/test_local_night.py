"""What `nightjar run nightly` checks before it triggers, and what it makes of a failed run."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from feature_repo.contracts.errors import DataError, GateRefusedError
from infra.cli.output import RunFailedError
from infra.cli.run_commands import parse_params, raise_if_failed
from infra.local.night import Night, check_request, error_lines, poll_seconds

NOW = datetime(2024, 3, 8, 23, 59, tzinfo=UTC)


def failed_night(task: str | None, errors: list[str]) -> Night:
    return Night(
        dag_run_id="manual__1",
        run_key="manual__1",
        state="failed",
        seconds=1.0,
        tasks=[],
        failed_task=task,
        errors=errors,
    )


@pytest.mark.parametrize("as_of", ["2024-03-09", "2024-03-08", "2011-12-10"])
def test_tomorrow_is_the_latest_as_of(as_of: str) -> None:
    assert check_request(as_of, "auto", {}, today=NOW) == {"publish": "auto", "as_of": as_of}


def test_without_as_of_the_run_decides() -> None:
    assert check_request(None, "never", {"test_days": 3}, today=NOW) == {"publish": "never", "test_days": 3}


@pytest.mark.parametrize(
    ("as_of", "publish", "params", "words"),
    [
        ("2024-03-10", "auto", {}, "2024-03-10 lies in the future: today is 2024-03-08"),
        ("2024-02-30", "auto", {}, "'2024-02-30'"),
        ("yesterday", "auto", {}, "such as 2024-03-08, got 'yesterday'"),
        (None, "alway", {}, "did you mean 'always'"),
        (None, "auto", {"as_of": "2024-03-01"}, "--as-of"),
    ],
)
def test_bad_requests_are_refused(as_of: str | None, publish: str, params: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        check_request(as_of, publish, params, today=NOW)


def test_params_read_json_and_fall_back_to_text() -> None:
    texts = ["test_days=3", "exclude_seen=none", 'models=["als"]', "note=a=b", "empty="]
    assert parse_params(texts) == {
        "test_days": 3, "exclude_seen": "none", "models": ["als"], "note": "a=b", "empty": "",
    }  # fmt: skip


@pytest.mark.parametrize("texts", [["test_days"], ["=3"], ["a=1", "a=2"]])
def test_params_that_say_nothing_are_refused(texts: list[str]) -> None:
    with pytest.raises(DataError):
        parse_params(texts)


def test_error_lines_are_found_once_among_other_output() -> None:
    log = [
        "::group::Pre Execute",
        "26/03/08 WARN error in a log line of Spark",
        "error DataError: 3,412 of 50,000 events have no user_id, limit 1%",
        "  error DataError: 3,412 of 50,000 events have no user_id, limit 1%  ",
        "error: not one of ours",
    ]
    assert error_lines(log) == ["error DataError: 3,412 of 50,000 events have no user_id, limit 1%"]


def test_a_refusing_gate_is_not_a_failed_run() -> None:
    words = "error GateRefusedError: als does not beat popularity"
    with pytest.raises(GateRefusedError, match=r"^als does not beat popularity$"):
        raise_if_failed(failed_night("judge_models", [words]))
    with pytest.raises(RunFailedError, match="failed in score_users"):
        raise_if_failed(failed_night("score_users", [words]))
    with pytest.raises(RunFailedError, match="failed in judge_models"):
        raise_if_failed(failed_night("judge_models", ["error DependencyError: MLflow"]))


def test_a_good_night_raises_nothing() -> None:
    raise_if_failed({**failed_night(None, []), "state": "success"})


def test_a_long_night_is_looked_at_less_often() -> None:
    assert [poll_seconds(waited) for waited in (0.0, 59.0, 90.0, 180.0, 4_000.0)] == [1.0, 1.0, 1.5, 3.0, 3.0]
