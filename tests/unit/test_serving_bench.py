"""The service that `nightjar bench serving` compares with gives the same lists: each is an oracle of the other."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from feature_repo.contracts.keys import candidates_key, session_key
from feature_repo.contracts.packing import SessionState, open_candidates, unpack_session
from infra.bench import wrk
from infra.bench.serving.baseline import Catalogue as PlainCatalogue
from infra.bench.serving.baseline import Question, rank
from infra.bench.serving.mix import MixName, read_mix, write_placements
from infra.bench.serving.regression import _git
from infra.bench.serving.shop import BenchShop
from infra.bench.serving.throughput import make_requests
from serving.adapters.bundle import load_catalogue
from serving.pipeline.slate import build_slate
from serving.pipeline.values import Person, SlateRequest, Tuning
from tests.serving_builders import TENANT

NOW = 1_709_902_800_000_000
MIX = read_mix()


class Strings(dict[str, Any]):
    """As much of a Redis client as a shop is written with."""

    def pipeline(self, *, transaction: bool) -> Strings:
        assert not transaction
        return self

    def __enter__(self) -> Strings:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set(self, key: str, value: Any) -> None:
        self[key] = value

    def execute(self) -> None:
        pass


@pytest.mark.parametrize("mix_name", list(MixName))
def test_both_services_give_the_same_lists(environment: Environment, tmp_path: Path, mix_name: MixName) -> None:
    mix = read_mix(mix_name)
    shop = BenchShop(mix, people=60, items=900)
    ours, theirs = Strings(), Strings()
    version = shop.publish(environment, ours, now_micros=NOW)  # type: ignore[arg-type]
    shop.publish_plain(theirs, now_micros=NOW)  # type: ignore[arg-type]
    placements = write_placements(mix, tmp_path / "placements.json")
    shop.write_catalogue(tmp_path / "catalogue.json", placements.by_name)
    catalogue = load_catalogue(environment.publications, version, tenant=TENANT)
    plain = PlainCatalogue(tmp_path / "catalogue.json")
    assert (catalogue.session_index is not None) is (mix_name is MixName.USUAL)
    requests = make_requests(mix, shop, None, 150, seed=3)
    assert len(requests) == 150
    sources: Counter[str] = Counter()
    left_to_chance = 0
    for at, body in enumerate(requests):
        user, device = body.get("user_id"), body.get("anonymous_id")
        subject = user or device
        state = ours.get(session_key(f"u:{user}" if user else f"a:{device}"))
        rows = open_candidates(ours[candidates_key(version, user)], version)[0] if user else None
        person = Person(candidates=rows, session=unpack_session(state) if state else SessionState())
        excluded = frozenset(body.get("exclude_item_ids", ()))
        policy = placements.policy(body.get("placement", "default"), seed=f"id{at}")
        asked = SlateRequest(10, user, device, body.get("session_id"), exclude_item_ids=excluded, policy=policy)
        slate = build_slate(asked, person, catalogue, Tuning(), now_micros=NOW, timer=lambda: 0)

        listed = json.loads(theirs.get(f"candidates:{subject}", "null"))
        session = json.loads(theirs.get(f"session:{subject}", '{"events":[],"bought":[],"dismissed":[]}'))
        expected = rank(
            Question(**body), plain, listed or plain.popular, session, is_own=listed is not None,
            recommendation_id=f"id{at}", now=NOW / 1e6,
        )  # fmt: skip
        assert [(item.item_id, round(item.score, 6)) for item in slate.items] == [
            (i.item_id, i.score) for i in expected
        ]
        assert [item.source.name.lower() for item in slate.items] == [item.source for item in expected]
        sources.update(item.source for item in expected)
        left_to_chance += any(chance < 0.5 for chance in slate.propensities)
    assert set(sources) == {"als", "session", "popularity"}
    assert left_to_chance > 40 if mix_name is MixName.USUAL else left_to_chance == 0  # 150 x (1 - 0.95^10) are 60


def test_the_mix_is_what_it_says() -> None:
    shop = BenchShop(MIX, people=50, items=500)
    bodies = make_requests(MIX, shop, None, 2000, seed=7)
    assert sum(kind["share"] for kind in MIX["kinds"].values()) == 100
    shares = Counter(
        "filtered" if "exclude_item_ids" in body else "cold" if "session_id" not in body
        else "known" if "user_id" in body else "anonymous"
        for body in bodies
    )  # fmt: skip
    assert {name: round(count / 20) for name, count in shares.items()} == {
        name: pytest.approx(kind["share"], abs=4) for name, kind in MIX["kinds"].items()
    }
    assert bodies == make_requests(MIX, shop, None, 2000, seed=7)


def test_what_a_bench_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrk.shutil, "which", lambda _: None)
    with pytest.raises(DependencyError, match="apt install wrk"):
        wrk.require_wrk()
    with pytest.raises(DataError, match="--base"):
        _git("rev-parse", "--verify", "no-such-revision^{commit}")
