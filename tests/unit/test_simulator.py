"""The simulated shop: repeatable, within its own rules, and its counts are true."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.events import check_event
from infra.simulator.catalogue import make_catalogue
from infra.simulator.config import BOT_BURST, ShopConfig
from infra.simulator.people import make_people
from infra.simulator.shop import ShopSummary, load_shop, simulate_shop
from infra.simulator.traffic import Deliveries, simulate_day

SMALL = ShopConfig(seed=23, user_count=150, item_count=90, event_count=6_000, days=12, bot_share=0.1)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShopSummary]:
    folder = tmp_path_factory.mktemp("shop")
    return folder, simulate_shop(SMALL, folder)


def read_events(folder: Path) -> pd.DataFrame:
    """All event lines in order of arrival, with the day of their file."""
    files = sorted((folder / "events").glob("*.parquet"))
    assert len(files) == SMALL.days
    return pd.concat([pd.read_parquet(p).assign(file_day=pd.Timestamp(p.stem, tz="UTC")) for p in files])


def test_equal_parameters_give_equal_files_and_another_seed_another_shop(
    tmp_path: Path, shop: tuple[Path, ShopSummary]
) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    assert simulate_shop(SMALL, again) == shop[1]
    assert digests(again) == digests(shop[0])
    assert len(digests(again)) == SMALL.days + 5
    simulate_shop(ShopConfig(**{**{f: getattr(SMALL, f) for f in SMALL.__slots__}, "seed": 24}), other)
    assert digests(other)["events/2025-06-20.parquet"] != digests(again)["events/2025-06-20.parquet"]


def test_a_day_does_not_depend_on_the_days_made_before_it() -> None:
    rng = np.random.default_rng([SMALL.seed, 0])
    catalogue = make_catalogue(SMALL, rng)
    people = make_people(SMALL, catalogue, rng)
    alone = simulate_day(SMALL, catalogue, people, 7)
    simulate_day(SMALL, catalogue, people, 2)
    after = simulate_day(SMALL, catalogue, people, 7)
    assert len(alone) > 300
    for name in Deliveries.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(after, name), getattr(alone, name))


def test_the_counts_of_shop_json_are_what_a_count_of_the_files_finds(shop: tuple[Path, ShopSummary]) -> None:
    folder, summary = shop
    assert load_shop(folder) == (SMALL, summary)
    events = read_events(folder)
    users = pd.read_parquet(folder / "users.parquet")
    refusing = set(users.user_id[users.consent_store == False])  # noqa: E712 - null is not false
    refused = events.user_id.isin(refusing) | (events.consent_store == False)  # noqa: E712
    repeated = events.event_id.duplicated()
    malformed = (folder / "events" / "malformed.jsonl").read_bytes().splitlines()

    devices = {"d" + user_id[1:] for user_id in refusing}
    assert (events.user_id.isna() & events.anonymous_id.isin(devices)).sum() > 3  # kept: nobody said who it was
    assert summary.lines == len(events) + len(malformed)
    assert (summary.not_stored, summary.accepted) == (refused.sum(), len(events) - refused.sum())
    assert summary.repeated == repeated.sum() > 20
    stored = events[~refused]
    assert summary.repeated_accepted == stored.event_id.duplicated().sum()
    assert summary.by_type == {t: int((events.event_type == t).sum()) for t in summary.by_type}
    assert sum(summary.by_type.values()) == len(events)
    assert summary.anonymous_lines == events.user_id.isna().sum() > 300
    subjects = events.user_id.fillna(events.anonymous_id)
    assert summary.bot_lines == subjects.isin(summary.bots).sum() == 2 * BOT_BURST
    assert (summary.users, summary.items) == (len(users), SMALL.item_count)
    assert sum(summary.malformed.values()) == len(malformed) == 18


def test_every_malformed_line_breaks_the_rule_it_is_counted_under(shop: tuple[Path, ShopSummary]) -> None:
    folder, summary = shop
    seen: dict[str, int] = {}
    for line in (folder / "events" / "malformed.jsonl").read_bytes().splitlines():
        try:
            good, rejection = check_event(json.loads(line.decode()), received_at=datetime(2026, 1, 1, tzinfo=UTC))
            assert good is None
            reason = str(rejection.reason)
        except ValueError:
            reason = "unreadable"
        seen[reason] = seen.get(reason, 0) + 1
    assert seen == summary.malformed
    assert len(seen) == 10


def test_every_good_line_passes_the_rules_and_repeats_are_the_same_event(shop: tuple[Path, ShopSummary]) -> None:
    events = read_events(shop[0]).drop(columns="file_day")
    records = [{k: v for k, v in r.items() if not pd.isna(v) and "consent" not in k} for r in events.to_dict("records")]
    assert len(records) > 5_000
    for record in records:
        record["timestamp"] = record["timestamp"].to_pydatetime()
        if "quantity" in record:
            record["quantity"] = int(record["quantity"])
        assert check_event(record, received_at=datetime(2025, 7, 1, tzinfo=UTC))[1] is None
    distinct = events.drop_duplicates()
    assert len(distinct) == events.event_id.nunique()


def test_nothing_is_seen_before_it_arrives_or_after_it_left(shop: tuple[Path, ShopSummary]) -> None:
    folder, _ = shop
    events, items = read_events(folder), pd.read_parquet(folder / "items.parquet")
    views = events[events.event_type == "view_item"].merge(items, on="item_id", suffixes=("", "_item"))
    assert len(views) > 3_000
    # A session may run past the midnight at which its item leaves, by less than an hour.
    midnight = views.timestamp.dt.normalize()
    assert (views.timestamp >= views.created_at).all()
    assert (views.expire_time.isna() | (views.timestamp < views.expire_time + pd.Timedelta(hours=1))).all()
    assert (midnight >= pd.Timestamp(SMALL.start_day, tz="UTC")).all()
    assert (events.timestamp < pd.Timestamp(SMALL.end_day, tz="UTC")).all()
    arrived = items[items.created_at >= pd.Timestamp(SMALL.start_day, tz="UTC")]
    assert 5 <= len(arrived) <= 25
    assert 1 <= items.expire_time.notna().sum() <= 12
    assert set(items.availability) == {"IN_STOCK", "OUT_OF_STOCK"}


def test_lines_arrive_on_the_day_of_their_file_and_some_arrive_late(shop: tuple[Path, ShopSummary]) -> None:
    folder, summary = shop
    events = read_events(folder)
    lag = events.file_day - events.timestamp.dt.normalize()
    last = events.file_day == events.file_day.max()
    assert (lag[~last] >= pd.Timedelta(0)).all()
    # 2 to 36 hours: of 59 late lines about half cross a midnight
    crossed = (lag >= pd.Timedelta(days=1)).sum()
    assert 0.3 * summary.late < crossed <= summary.late + summary.repeated
    assert 40 <= summary.late <= 90
    in_order = [day.timestamp.is_monotonic_increasing for _, day in events.groupby("file_day")]
    assert len(in_order) == SMALL.days
    assert not any(in_order)


def test_crawlers_view_three_hundred_items_within_minutes_and_people_do_not(shop: tuple[Path, ShopSummary]) -> None:
    folder, summary = shop
    events = read_events(folder)
    subjects = events.user_id.fillna(events.anonymous_id)
    per_minute = events.groupby([subjects, events.timestamp.dt.floor("min")]).size().groupby(level=0).max()
    assert len(summary.bots) == 2
    assert per_minute[summary.bots].min() > 30
    assert per_minute.drop(summary.bots).max() < 20


def test_a_purchase_follows_a_view_and_a_cart_of_the_same_session(shop: tuple[Path, ShopSummary]) -> None:
    events = read_events(shop[0]).drop_duplicates("event_id")
    events = events[events.session_id.notna()].sort_values("timestamp")
    first = events.groupby(["session_id", "item_id", "event_type"]).timestamp.min().unstack()
    bought = first[first.purchase.notna()]
    assert len(bought) > 100
    assert (bought.view_item < bought.add_to_cart).all()
    assert (bought.add_to_cart < bought.purchase).all()


def test_a_new_simulation_replaces_the_older_one_whole(tmp_path: Path) -> None:
    simulate_shop(SMALL, tmp_path)
    shorter = ShopConfig(user_count=20, item_count=20, event_count=200, days=3, end_day=date(2024, 3, 2))
    summary = simulate_shop(shorter, tmp_path)
    names = sorted(p.name for p in (tmp_path / "events").iterdir())
    assert names == ["2024-02-28.parquet", "2024-02-29.parquet", "2024-03-01.parquet", "malformed.jsonl"]
    assert load_shop(tmp_path) == (shorter, summary)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"thesis\.txt"):
        simulate_shop(SMALL, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(DataError, match="is a file"):
        simulate_shop(SMALL, tmp_path / "thesis.txt")
    with pytest.raises(DataError, match=r"no simulated shop: shop\.json"):
        load_shop(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user_count", 9),
        ("item_count", 19),
        ("event_count", 20_000_001),
        ("days", 1),
        ("bot_share", 0.51),
        ("seed", -1),
    ],
)
def test_a_parameter_out_of_bounds_is_named(name: str, value: float) -> None:
    with pytest.raises(DataError, match=f"{name} must lie in .*, got {value}") as caught:
        ShopConfig(**{name: value})
    assert caught.value.field == name
