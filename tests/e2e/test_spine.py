"""The main job end to end, through the scheduler and over HTTP. The tests run in order: nights build on each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from deltalake import DeltaTable

from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import candidates_key
from feature_repo.contracts.run import EVALUATION_FILE, GATE_FILE, REFINE_FILE
from feature_repo.contracts.tables import table_path
from infra.demo.shop_window import ShopWindow, open_shop_window
from infra.demo.story import click_through, compare_with_truth, slate_bytes
from infra.local.night import TASKS, Night, backfill_nights
from infra.local.services import NAMES
from infra.local.stack import down, status, up
from spark_jobs.io.publication import Publication
from spark_jobs.io.run_store import read_report, read_run
from tests.e2e.installation import AS_OF, EARLIER_AS_OF, SHOP, Installation

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_the_import_arrives_at_the_counts_that_the_simulator_knows(installation: Installation) -> None:
    _, _, events = installation.imported
    written = installation.written
    assert (events.read, events.accepted, events.not_stored) == (written.lines, written.accepted, written.not_stored)
    assert dict(sorted(events.quarantined.items())) == written.malformed
    assert min(written.not_stored, written.repeated_accepted, len(written.malformed)) > 0


def test_the_night_runs_through_the_scheduler(earlier_night: Night) -> None:
    assert earlier_night["state"] == "success", earlier_night
    assert [(t["task_id"], t["state"]) for t in earlier_night["tasks"]] == [(name, "success") for name in TASKS]
    assert len(TASKS) == 10


def test_every_delivery_is_accounted_for(installation: Installation, last_night: Night) -> None:
    assert last_night["state"] == "success", last_night
    report = read_report(installation.environment, last_night["run_key"], REFINE_FILE)
    silver = table(installation, "silver.events", ["event_id", "is_bot", "subject_key"])
    ids = silver["event_id"].to_pylist()
    assert len(ids) == len(set(ids)) == installation.written.accepted - installation.written.repeated_accepted
    assert report["events"] == len(ids)
    subjects = silver.filter(silver["is_bot"])["subject_key"].to_pylist()
    assert {subject[2:] for subject in subjects} == set(installation.written.bots)
    assert len(installation.written.bots) >= 2


def test_the_gate_publishes_a_personal_model_and_says_why(installation: Installation, last_night: Night) -> None:
    gate = read_report(installation.environment, last_night["run_key"], GATE_FILE)
    evaluation = read_report(installation.environment, last_night["run_key"], EVALUATION_FILE)
    assert gate["verdict"] == "publish", gate["reasons"]
    assert gate["model"] != "popularity"
    assert set(evaluation["models"]) >= {"popularity", "item_knn", "als", "rp3beta", "graph_filter", "sequential_rules"}
    assert any("beats popularity" in reason for reason in gate["reasons"])


def test_mlflow_has_a_parent_run_with_nested_models_and_a_champion(
    installation: Installation, last_night: Night
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(installation.environment.mlflow_uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=1000)
    of_the_night = [r for r in runs if r.data.tags.get("run_key") == last_night["run_key"]]
    parents = [r for r in of_the_night if not parent_of(r) and r.data.tags["kind"] == "night"]
    assert len(parents) == 1
    nested = {r.data.tags.get("model"): r for r in runs if parent_of(r) == parents[0].info.run_id}
    assert set(nested) >= {"popularity", "item_knn", "als"}
    assert "ndcg_at_20__lt5" in nested["als"].data.metrics or "ndcg_at_20__gt20" in nested["als"].data.metrics
    assert nested["als"].inputs.dataset_inputs
    (model,) = client.search_registered_models()
    assert model.aliases.keys() >= {"champion", "challenger"}
    champion = client.get_model_version(model.name, model.aliases["champion"])
    assert champion.tags["published_version"] == served(installation)


def test_a_known_user_gets_a_personal_slate_with_reasons(installation: Installation, last_night: Night) -> None:
    window = shop_window(installation)
    answers = [installation.ask(user_id=user_id) for user_id in some_users(installation, 30)]
    assert len(answers) == 30
    personal = [a for a in answers if a["fallback_level"] == "personal"]
    assert len(personal) >= 25
    for answer in personal:
        assert answer["model_version"] == window.version
        assert [item["rank"] for item in answer["items"]] == list(range(1, 11))
        assert all(window.is_offered(item["item_id"]) for item in answer["items"])
        assert all(item["reasons"] for item in answer["items"])
    assert len({slate_bytes(a) for a in personal}) >= 20  # not one list for everybody


def test_three_clicks_change_the_slate_and_a_new_session_restores_it(
    installation: Installation, last_night: Night
) -> None:
    clicked = click_through(installation.environment, installation.api_url, shop_window(installation), AS_OF)
    assert [(c.claim, c.measured) for c in clicked.checks() if not c.held] == []
    assert len(clicked.cast.clicks) == 3
    assert len(clicked.checks()) == 4


def test_the_simulators_truth_is_found(installation: Installation, last_night: Night) -> None:
    found = compare_with_truth(installation.environment, shop_window(installation), AS_OF, installation.shop)
    assert found.users >= 100
    assert found.check().held, found.check().measured


def test_whoever_refuses_personalization_gets_what_everybody_gets(
    installation: Installation, last_night: Night
) -> None:
    users = table(installation, "bronze.users", ["user_id", "consent_personalize"]).to_pylist()
    refusing = sorted(u["user_id"] for u in users if u["consent_personalize"] is False)
    assert len(refusing) >= 2
    one, two = (installation.ask(user_id=user_id) for user_id in refusing[:2])
    assert one["fallback_level"] == two["fallback_level"] == "popular"
    assert slate_bytes(one) == slate_bytes(two)
    asked = installation.ask(user_id=some_users(installation, 1)[0], consent={"personalize": False})
    assert slate_bytes(asked) == slate_bytes(one)


def test_whoever_refuses_training_is_in_no_interaction(installation: Installation, last_night: Night) -> None:
    users = table(installation, "bronze.users", ["user_id", "consent_train"]).to_pylist()
    refusing = {u["user_id"] for u in users if u["consent_train"] is False}
    in_silver = set(table(installation, "silver.events", ["user_id"])["user_id"].to_pylist())
    in_training = set(table(installation, "silver.interactions", ["user_id"])["user_id"].to_pylist())
    assert refusing & in_silver
    assert not refusing & in_training
    assert len(in_training) > 100


def test_whoever_refuses_storage_is_only_counted(installation: Installation, last_night: Night) -> None:
    users = table(installation, "bronze.users", ["user_id", "consent_store"]).to_pylist()
    refusing = {u["user_id"] for u in users if u["consent_store"] is False}
    stored = set(table(installation, "bronze.events_import", ["user_id"])["user_id"].to_pylist())
    assert refusing
    assert not refusing & stored
    event = {"event_id": "e2e-ns", "event_type": "click", "user_id": "nobody", "item_id": "x", "timestamp": now_text()}
    answer = httpx.post(f"{installation.api_url}/v1/events", json={**event, "consent": {"store": False}}).json()
    assert answer["results"] == [{"index": 0, "event_id": "e2e-ns", "status": "accepted", "stored": False}]


def test_without_a_list_of_their_own_a_user_gets_their_category(installation: Installation, last_night: Night) -> None:
    """The category is a Feast feature, read in the request."""
    import redis

    version, user_id = served(installation), some_users(installation, 1)[0]
    category = top_category(installation, user_id)
    assert category
    with redis.Redis.from_url(installation.environment.redis_online_url) as client:
        record = client.getdel(candidates_key(version, user_id))
        try:
            answer = installation.ask(user_id=user_id, session_id="e2e-segment")
        finally:
            client.set(candidates_key(version, user_id), record)
    assert (answer["fallback_level"], answer["degraded"]) == ("segment", False), answer["fallback_reason"]
    assert answer["items"][0]["source"] == "segment"
    assert shop_window(installation).category(answer["items"][0]["item_id"]).startswith(category)


def test_similar_items_come_from_the_neighbours(installation: Installation, last_night: Night) -> None:
    item_id = shop_window(installation).popular[0]
    listed = installation.cli_json("similar", item_id)
    assert item_id not in {item["item_id"] for item in listed["items"]}
    assert len(listed["items"]) >= 5


def test_each_delivery_arrives_in_bronze_exactly_once(installation: Installation, last_night: Night) -> None:
    event = {"event_id": "e2e-1", "event_type": "click", "user_id": "nobody", "item_id": "x", "timestamp": now_text()}
    first, again = (
        httpx.post(f"{installation.api_url}/v1/events", json=event).json()["results"][0]["status"] for _ in range(2)
    )
    assert (first, again) == ("accepted", "duplicate")
    until(lambda: archived(installation).count("e2e-1") >= 2, 30)  # bronze keeps deliveries; silver keeps events
    time.sleep(6)  # longer than the archiver waits between commits
    assert archived(installation).count("e2e-1") == 2


@pytest.mark.soak  # a third night; `nightjar torture night` kills them all over
def test_the_same_night_killed_while_scoring_leaves_the_same_tables_and_lists(
    installation: Installation, last_night: Night
) -> None:
    before = installation.cli_json("hash", "--as-of", AS_OF)
    assert len(before["hashes"]) >= 10
    killer = Killer("score_users.py", installation)
    night = installation.run_night(AS_OF)
    killer.join(5)
    assert killer.killed
    assert night["state"] == "success", night
    assert {t["task_id"]: t["tries"] for t in night["tasks"]}["score_users"] == 2
    after = installation.cli_json("hash", "--as-of", AS_OF)
    assert after["hashes"] == before["hashes"]
    assert after["version"] == before["version"] == served(installation)


def test_rollback_is_quick_and_visible_in_the_next_answer(installation: Installation, last_night: Night) -> None:
    listed = installation.cli_json("versions")
    assert [v["as_of"] for v in listed if v["served"]] == [AS_OF]
    earlier = next(v["version"] for v in listed if v["as_of"] == EARLIER_AS_OF)
    user_id = some_users(installation, 1)[0]
    done = installation.cli_json("rollback")
    assert done["served"] == earlier
    assert installation.ask(user_id=user_id)["model_version"] == earlier
    # MLflow has half a second: on a machine that is busy the alias may want to be told again.
    told = (installation.cli_json("rollback", earlier)["disagreement"] for _ in range(4))
    assert done["disagreement"] is None or None in told
    newest = next(v["version"] for v in listed if v["as_of"] == AS_OF)
    assert installation.cli_json("rollback", newest)["served"] == newest
    assert installation.ask(user_id=user_id)["model_version"] == newest


@pytest.mark.soak
def test_a_night_is_made_again_from_its_pins(
    installation: Installation, earlier_night: Night, last_night: Night
) -> None:
    """The last night met a champion and derived few days; made again it meets the same recipe and derives them all."""
    assert last_night["state"] == "success", last_night
    before = installation.cli_json("hash", "--as-of", AS_OF)
    served = installation.cli_json("versions")
    made = installation.cli_json("repro", last_night["run_key"])
    assert (made["identical"], made["differing"], made["as_of"]) == (True, {}, AS_OF)
    assert {"gold.candidates", "gold.evaluations", "gold.item_features", "lists"} <= made["hashes"].keys()
    assert all(before["hashes"][name] == value for name, value in made["hashes"].items())
    # Nothing of the original changed, and nothing but runs in MLflow stays of the copy.
    assert installation.cli_json("hash", "--as-of", AS_OF) == before
    assert installation.cli_json("versions") == served
    environment = installation.environment
    left = [Path(root) / "repro-default" for root in (environment.lakehouse, environment.runs)]
    assert len(left) == 2
    assert not any(folder.exists() for folder in left)


@pytest.mark.soak
def test_a_backfill_rebuilds_its_day_and_publishes_nothing(installation: Installation, last_night: Night) -> None:
    past = SHOP.end_day - timedelta(days=5)
    versions = installation.cli_json("versions")
    (night,) = backfill_nights(past.isoformat(), past.isoformat(), variables=installation.variables)
    assert night["state"] == "success", night
    assert read_run(installation.environment, night["run_key"]).as_of == past.isoformat()
    assert installation.cli_json("versions") == versions
    features = DeltaTable(path(installation, "gold.user_features"))
    days = {date.fromisoformat(p["as_of"]) for p in features.partitions()}
    assert days == {past, date.fromisoformat(EARLIER_AS_OF), date.fromisoformat(AS_OF)}


def test_down_and_up_keep_what_is_served(installation: Installation, last_night: Night) -> None:
    version, user_id = served(installation), some_users(installation, 1)[0]
    before = slate_bytes(installation.ask(user_id=user_id))
    assert sorted(down(installation.variables)) == sorted(NAMES)
    up(installation.variables)
    assert served(installation) == version
    assert slate_bytes(installation.ask(user_id=user_id)) == before


def test_with_mlflow_stopped_the_night_fails_in_words_and_nothing_changes(
    installation: Installation, last_night: Night
) -> None:
    stop(installation, "mlflow")
    versions = installation.cli_json("versions")
    done = installation.cli("run", "nightly", "--as-of", AS_OF)
    assert done.returncode == 5, done.stderr
    assert "MLflow" in done.stderr
    assert installation.cli_json("versions") == versions


def test_with_redis_stopped_answers_degrade_and_say_so(installation: Installation, last_night: Night) -> None:
    user_id = some_users(installation, 1)[0]
    stop(installation, "redis-online")
    answer = installation.ask(user_id=user_id)
    assert answer["degraded"] is True
    assert answer["fallback_level"] == "popular"
    assert len(answer["items"]) == 10
    assert httpx.get(f"{installation.api_url}/health/ready").status_code == 200
    done = installation.cli("versions")
    assert done.returncode == 3
    assert "nightjar up" in done.stderr


def test_up_heals_what_was_killed(installation: Installation, last_night: Night) -> None:
    up(installation.variables)
    assert {s.name: s.state for s in status(installation.variables)} == dict.fromkeys(
        (s.name for s in status(installation.variables)), "running"
    )
    assert [s.name for s in status(installation.variables)] == list(NAMES)


# --- helpers -----------------------------------------------------------------------------------------------------


class Killer(threading.Thread):
    """Kills, once, the Python driver of a Spark job a few seconds after it appears."""

    def __init__(self, program: str, installation: Installation) -> None:
        super().__init__(daemon=True)
        self.killed = False
        self._program = program
        self._home = installation.environment.home
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            for process in psutil.process_iter():
                try:
                    words = process.cmdline()
                    is_driver = any(w.endswith(self._program) for w in words) and "python" in Path(words[0]).name
                    if is_driver and process.environ().get("NIGHTJAR_HOME") == self._home:
                        time.sleep(6)
                        process.kill()
                        self.killed = True
                        return
                except (psutil.Error, IndexError):
                    continue
            time.sleep(0.3)


def stop(installation: Installation, service: str) -> None:
    pid = next(s.pid for s in status(installation.variables) if s.name == service)
    assert pid is not None
    parent = psutil.Process(pid)
    for process in [*parent.children(recursive=True), parent]:  # MLflow's server is a child of what was started
        process.kill()


def until(condition: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.5)
    raise DependencyError(f"not within {seconds} s")


def parent_of(run: Any) -> str | None:
    return run.data.tags.get("mlflow.parentRunId")


def path(installation: Installation, name: str) -> str:
    return table_path(installation.environment.lakehouse, name)


def table(installation: Installation, name: str, columns: list[str]) -> Any:
    return DeltaTable(path(installation, name)).to_pyarrow_table(columns=columns)


def archived(installation: Installation) -> list[str]:
    try:
        return table(installation, "bronze.events", ["event_id"])["event_id"].to_pylist()
    except Exception:
        return []


def served(installation: Installation) -> str:
    environment = installation.environment
    version = Publication(environment.redis_online_url, environment.tenant).served_version()
    assert version is not None
    return version


def shop_window(installation: Installation) -> ShopWindow:
    return open_shop_window(installation.environment, served(installation))


def some_users(installation: Installation, count: int) -> list[str]:
    """Users with a personal list, in order of their id."""
    rows = DeltaTable(path(installation, "gold.candidates")).to_pyarrow_table(
        columns=["user_id", "item_numbers"], filters=[("as_of", "=", date.fromisoformat(AS_OF))]
    )
    users = sorted(r["user_id"] for r in rows.to_pylist() if len(r["item_numbers"]) >= 20)
    assert len(users) >= count
    return users[:count]


def top_category(installation: Installation, user_id: str) -> str | None:
    rows = DeltaTable(path(installation, "gold.user_features")).to_pyarrow_table(
        columns=["user_id", "user_top_category_90d"], filters=[("as_of", "=", date.fromisoformat(AS_OF))]
    )
    return next(r["user_top_category_90d"] for r in rows.to_pylist() if r["user_id"] == user_id)


def now_text() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
