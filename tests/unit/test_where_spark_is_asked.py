"""Where a job goes without Spark: on one machine, and for filters that say nothing of the items."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.filter_language import parse_filter
from spark_jobs import session
from spark_jobs.jobs import build_features, refine_events
from spark_jobs.transforms.placement_reach import answer_to_nobody
from tests.builders import make_run


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("not in_cart(item)", True),  # the preset `cart`
        ("in_session(item)", False),
        ('bought_within("9d")', False),
        ('not bought_within("9d") and not in_cart(item)', True),
        ('in_cart(item) or not seen_within("1h")', True),
        ("in_cart(item) or in_session(item)", False),
        ("price < 50", None),
        ("not price < 50", None),
        ("price < 50 and in_cart(item)", False),  # whatever the price
        ("price < 50 or not in_cart(item)", True),
        ("price < 50 and not in_cart(item)", None),
        ("price < 50 or in_cart(item)", None),
        ("brand is null", None),
    ],
)
def test_what_a_filter_says_to_nobody(text: str, answer: bool | None) -> None:
    assert answer_to_nobody(parse_filter(text)) is answer


@pytest.mark.parametrize(
    ("master", "runs_here"),
    [
        ("local", True),
        ("local[*]", True),
        ("local[2]", True),
        ("local-cluster[2,1,1024]", False),
        ("spark://127.0.0.1:7077", False),
        ("yarn", False),
        ("k8s://https://cluster:6443", False),
        (None, False),
    ],
)
def test_a_job_runs_here_if_it_was_submitted_to_this_machine(
    monkeypatch: pytest.MonkeyPatch, master: str | None, runs_here: bool
) -> None:
    system = SimpleNamespace(getProperty={"spark.master": master}.get)
    jvm = SimpleNamespace(java=SimpleNamespace(lang=SimpleNamespace(System=system)))
    monkeypatch.setattr(session, "launch_gateway", lambda: SimpleNamespace(jvm=jvm))
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    assert session.runs_here() is runs_here


def test_a_job_that_was_not_submitted_starts_no_java_to_find_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)

    def refuse() -> None:
        raise AssertionError("a gateway was launched")

    monkeypatch.setattr(session, "launch_gateway", refuse)
    assert session.runs_here() is False


def test_a_session_starts_beside_and_stops_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    may_start, done = threading.Event(), []

    def started(name: str) -> SimpleNamespace:
        assert may_start.wait(10)
        return SimpleNamespace(name=name, stop=lambda: done.append(name))

    monkeypatch.setattr(session, "get_session", started)

    def job() -> None:
        with session.session_beside("job") as ask:
            may_start.set()  # who is inside has not waited for it
            assert ask() is ask()
            assert done == []
            raise ValueError("of the job")

    with pytest.raises(ValueError, match="of the job"):
        job()
    assert done == ["job"]


def test_a_session_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str) -> None:
        raise DependencyError("no Java")

    monkeypatch.setattr(session, "get_session", refused)
    with pytest.raises(DependencyError, match="no Java"), session.session_beside("job"):
        pass


@pytest.mark.parametrize("on_cluster", [True, False])
def test_a_driver_of_a_cluster_takes_no_history_into_its_memory(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, on_cluster: bool
) -> None:
    """However large, and however well it would fit: Spark derives and counts it. Here it is read."""
    run = make_run(environment, "2024-03-08")
    monkeypatch.setattr(refine_events, "MOST_COMPUTED", -1)
    monkeypatch.setattr(refine_events, "sorted_apart", lambda *_: "deliveries")
    monkeypatch.setattr(build_features, "read_past", lambda *_, **__: "events")
    apart = refine_events.set_apart(environment, run, on_cluster=on_cluster)
    past = build_features.past_in_memory(lambda: None, environment, run.as_of_day, None, on_cluster=on_cluster)
    assert (apart, past) == ((None, None) if on_cluster else ("deliveries", "events"))
