"""Lists made again from their decisions, over HTTP, on real Redis: what they depended on is there or is named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from feature_repo.contracts.decisions import read_decision
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import region_trend_key, trend_key, trend_regions_key
from feature_repo.contracts.packing import ItemMark, SessionEvent, session_hash
from feature_repo.contracts.purchase_record import Purchase
from feature_repo.contracts.session_record import CartChange
from serving.pipeline.list_inputs import MOST_LOGGED, logged_votes, trend_inputs
from serving.pipeline.trending import Scope, VotedRows
from tests.lists_world import DAY, GARDEN, NOW, SECOND, TEA, Installation, N, event, ids
from tests.serving_builders import Shop

HOUR = 1
BUCKET = NOW // SECOND // 300
TODAY = NOW // SECOND // DAY
PLACES = [{"kind": kind, "num_results": 2} for kind in ("continue", "trending", "new")]


@pytest.fixture
async def api(environment: Environment, redis_url: str) -> AsyncIterator[Installation]:
    installation = Installation(environment, redis_url)
    yield installation
    await installation.close()


def inputs_of(api: Installation, answer: dict[str, Any]) -> dict[str, Any]:
    found = [read_decision(payload) for payload in api.decisions.payloads]
    (one,) = [decision for decision in found if decision["id"] == answer["recommendation_id"]]
    return dict(one["inputs"])


async def replayed(api: Installation, answer: dict[str, Any]) -> dict[str, Any]:
    return dict((await api.get(f"/v1/decisions/{answer['recommendation_id']}"))["replay"])


async def assert_same(api: Installation, *answers: dict[str, Any]) -> None:
    for answer in answers:
        replay = await replayed(api, answer)
        assert (replay["why_not"], replay["differences"], replay["is_same"]) == ([], [], True), answer["placement"]
        assert replay["item_ids"] == ids(answer)


def forget_votes(api: Installation) -> None:
    """The hour is over, and people touch other things."""
    api.redis.delete(trend_key(HOUR, BUCKET, 0), region_trend_key(HOUR, BUCKET, 0, "DE"))
    api.redis.delete(trend_regions_key(HOUR, BUCKET, 0))
    api.now = NOW + 5 * 3600 * SECOND
    api.vote(HOUR, BUCKET + 60, {"pan": 50})
    api.publish(Shop({"else": {}}, popular=[("else", 1.0)]))


@pytest.mark.redis
class TestTrending:
    async def test_of_everybody_of_a_region_and_of_its_list(self, api: Installation) -> None:
        """A vase of 7 votes is hidden: it is among the votes that were looked at, and not in the slate."""
        api.vote(HOUR, BUCKET, {"hoe": 9, "old": 7, "cup": 5, "mug": 3})
        api.vote(HOUR, BUCKET, {"mug": 12, "cup": 9}, region="DE")
        everybody = await api.post("/v1/trending", num_results=2)
        german = await api.post("/v1/trending", num_results=2, context={"region": "DE"})
        french = await api.post("/v1/trending", num_results=1, context={"region": "FR"})
        tea = await api.post("/v1/trending", num_results=4, context={"category": TEA})
        assert [ids(one) for one in (everybody, german, french)] == [["hoe", "cup"], ["mug", "cup"], ["hoe"]]
        assert ids(tea) == ["cup", "mug", "tin", "hoe"]  # two are popular in the category, and with everybody
        whole = {"scope": "all", "region_votes": None, "error": 0}
        assert inputs_of(api, everybody)["trend"] == {**whole, "rows": [[N["hoe"], 9], [N["old"], 7], [N["cup"], 5]]}
        assert inputs_of(api, german)["trend"] == {
            "scope": "region", "region_votes": 21, "error": 0, "rows": [[N["mug"], 12], [N["cup"], 9]],
        }  # fmt: skip
        assert inputs_of(api, french)["trend"] == {**whole, "region_votes": 0, "rows": [[N["hoe"], 9]]}
        forget_votes(api)
        api.vote(HOUR, BUCKET, {"mug": 12, "cup": 7}, region="DE")
        await assert_same(api, everybody, german, french, tea)
        assert ids(await api.post("/v1/trending", num_results=1)) == ["else"]

    async def test_of_a_region_with_too_few_votes(self, api: Installation) -> None:
        api.vote(HOUR, BUCKET, {"mug": 30, "hoe": 9, "cup": 5})
        api.vote(HOUR, BUCKET, {"mug": 19}, region="DE")
        few = await api.post("/v1/trending", num_results=3, context={"region": "DE"})
        assert (ids(few)[:2], few["trend"]["scope"]) == (["hoe", "cup"], "region_list")
        said = inputs_of(api, few)["trend"]
        assert (said["scope"], said["region_votes"]) == ("region_list", 19)
        forget_votes(api)
        await assert_same(api, few)

    async def test_for_somebody_who_bought_and_dismissed(self, api: Installation) -> None:
        api.vote(HOUR, BUCKET, {"hoe": 9, "cup": 5, "mug": 3})
        api.remember(bought=[ItemMark(NOW - SECOND, "hoe")], dismissed=[ItemMark(NOW - 2 * SECOND, "cup")])
        mine = await api.post("/v1/trending", num_results=2, user_id="u1")
        assert ids(mine)[0] == "mug"
        assert inputs_of(api, mine)["known"] == {"bought": 1, "dismissed": 1}
        later = ItemMark(NOW + SECOND, "mug")
        api.remember(bought=[ItemMark(NOW - SECOND, "hoe"), later], dismissed=[ItemMark(NOW - 2 * SECOND, "cup")])
        await assert_same(api, mine)
        api.remember(bought=[ItemMark(NOW + SECOND, "hoe"), later], dismissed=[ItemMark(NOW - 2 * SECOND, "cup")])
        assert (await replayed(api, mine))["why_not"] == ["record_changed"]  # the hoe was bought once more

    async def test_what_an_older_decision_does_not_say(self, api: Installation) -> None:
        answer = await api.post("/v1/trending", num_results=2, user_id="u1")
        decision = read_decision(api.decisions.payloads[-1])
        assert (await replayed(api, answer))["is_same"] is True
        services = api.app.state.services
        for left_out, why in (("trend", "votes_not_kept"), ("known", "inputs_not_kept")):
            older = {name: value for name, value in decision["inputs"].items() if name != left_out}
            assert (await services.replays.replay({**decision, "inputs": older})).why_not == [why]


@pytest.mark.redis
class TestAPersonsOwnLists:
    async def test_new_goes_by_the_interests_of_that_instant(self, api: Installation) -> None:
        api.remember(interests={(TODAY, "pot"): 8})
        mine = await api.post("/v1/new", num_results=3, user_id="u1")
        nobody = await api.post("/v1/new", num_results=3)
        assert (ids(mine), ids(nobody)) == (["mug", "cup", "pot"], ["mug", "hoe", "cup"])
        assert inputs_of(api, mine)["interests"] == {"Home": 1.0, TEA: 1.0}
        assert inputs_of(api, mine)["known"] == {"bought": 0, "dismissed": 0}
        api.remember(interests={(TODAY, "pot"): 8, (TODAY, "hoe"): 80})
        assert ids(await api.post("/v1/new", num_results=1, user_id="u1")) == ["hoe"]
        await assert_same(api, mine, nobody)

    async def test_continue_goes_by_what_was_begun(self, api: Installation) -> None:
        begun = [event("mug", 60), event("hoe", 30)]
        api.remember(events=begun, cart=[CartChange(NOW - SECOND, False, 1, "cup")])
        mine = await api.post("/v1/continue", num_results=3, user_id="u1", session_id="s1")
        assert ids(mine) == ["cup", "hoe", "mug"]
        assert inputs_of(api, mine)["known"] == {"bought": 0, "dismissed": 0, "events": 2, "cart": 1}
        api.now = NOW + 3600 * SECOND
        later = SessionEvent(NOW + 1800 * SECOND, "view_item", session_hash("s2"), "pan")
        cart = [CartChange(NOW - SECOND, False, 1, "cup"), CartChange(NOW + SECOND, True, 1, "cup")]
        api.remember(events=[*begun, later], cart=cart)
        assert ids(await api.post("/v1/continue", num_results=3, user_id="u1")) == ["pan"]
        await assert_same(api, mine)
        api.remember(events=[begun[1], later], cart=cart)  # the oldest left for newer ones
        assert (await replayed(api, mine))["why_not"] == ["record_changed"]

    async def test_of_the_session_that_was_asked_for(self, api: Installation) -> None:
        begun = [event("mug", 60), event("hoe", 30)._replace(session_hash=session_hash("s2"))]
        api.remember(events=begun)
        mine = await api.post("/v1/continue", num_results=3, user_id="u1", session_id="s1", session_items=["pan"])
        assert sorted(ids(mine)) == ["mug", "pan"]
        await assert_same(api, mine)
        api.remember(events=[event("pot", 60), begun[1]])  # as many, and others
        assert (await replayed(api, mine))["why_not"] == ["session_gone"]

    async def test_buy_again_goes_by_the_purchases_of_its_version(self, api: Installation) -> None:
        purchases = [Purchase(N["tin"], 4, NOW // SECOND - 10 * DAY, 10.0, 2.0),
                     Purchase(N["pan"], 2, NOW // SECOND - 2 * DAY, 30.0, 1.0)]  # fmt: skip
        api.buy(*purchases)
        mine = await api.post("/v1/buy-again", num_results=3, user_id="u1")
        assert ids(mine) == ["tin", "pan"]
        assert inputs_of(api, mine)["known"]["purchases"] == 2
        api.now = NOW + 20 * DAY * SECOND
        await assert_same(api, mine)
        api.buy(purchases[0])
        assert (await replayed(api, mine))["why_not"] == ["record_changed"]

    async def test_what_goes_with_a_cart_that_the_request_did_not_name(self, api: Installation) -> None:
        api.remember(cart=[CartChange(NOW - SECOND, False, 1, "pot")])
        mine = await api.post("/v1/bought-together", num_results=2, user_id="u1")
        assert ids(mine) == ["cup", "mug"]
        assert inputs_of(api, mine)["item_ids"] == []
        api.remember(cart=[CartChange(NOW - SECOND, False, 1, "pot"), CartChange(NOW + SECOND, False, 1, "tin")])
        await assert_same(api, mine)
        api.remember(cart=[CartChange(NOW + SECOND, False, 1, "tin")])
        assert (await replayed(api, mine))["why_not"] == ["record_changed"]

    async def test_a_page_by_native_code_or_step_by_step(self, api: Installation) -> None:
        await api.post("/v1/similar", item_id="mug")  # the version is loaded
        api.vote(HOUR, BUCKET, {"hoe": 9, "old": 7, "cup": 5, "mug": 3})
        begun = [event("mug", 60)]
        api.remember(events=begun, interests={(TODAY, "pot"): 8}, dismissed=[ItemMark(NOW - SECOND, "hoe")])
        page = await api.post("/v1/pages/mine", user_id="u1", session_id="s1", placements=PLACES)
        shown = [ids(place) for place in page["placements"]]
        assert shown == [["mug"], ["cup", "pan"], ["pot", "tin"]]
        forget_votes(api)
        later = SessionEvent(NOW + 3600 * SECOND, "view_item", session_hash("s1"), "tin")
        dismissed = [ItemMark(NOW - SECOND, "hoe"), ItemMark(later.micros, "cup")]
        api.remember(events=[*begun, later], interests={(TODAY, "hoe"): 80}, dismissed=dismissed)
        await assert_same(api, *page["placements"])

    async def test_who_does_not_want_to_be_stored_leaves_nothing(self, api: Installation) -> None:
        api.remember(events=[event("mug", 60)], interests={(TODAY, "pot"): 8})
        for path in ("/v1/new", "/v1/continue", "/v1/trending", "/v1/buy-again", "/v1/bought-together"):
            answer = await api.post(path, user_id="u1", num_results=2, consent={"store": False})
            assert not inputs_of(api, answer).keys() & {"known", "interests"}, path
            assert (await replayed(api, answer))["why_not"] == ["subject_not_logged"], path

    async def test_an_exclusion_that_may_not_be_stored_is_missed(self, api: Installation) -> None:
        asked = {"num_results": 2, "consent": {"store": False, "personalize": False}}
        plain = await api.post("/v1/trending", **asked)
        without = await api.post("/v1/trending", **asked, exclude_item_ids=["hoe"])
        assert (ids(plain), ids(without)) == (["hoe", "pan"], ["pan", "cup"])
        await assert_same(api, plain)
        assert (await replayed(api, without))["why_not"] == ["inputs_not_kept"]


class TestTheVotesOfADecision:
    ROWS = VotedRows([(7, 9), (4, 5), (2, 5), (8, 1)], Scope.REGION_LIST, 3)

    def test_reach_to_the_last_item_that_is_shown(self) -> None:
        said = trend_inputs(self.ROWS, 2, [4], needs_all=False)
        assert said == {"scope": "region_list", "region_votes": 3, "error": 2, "rows": [(7, 9), (4, 5)]}
        assert logged_votes(said) == self.ROWS._replace(rows=[(7, 9), (4, 5)])

    def test_have_the_first_because_scores_are_shares_of_its_votes(self) -> None:
        assert trend_inputs(self.ROWS, 0, [], needs_all=False)["rows"] == [(7, 9)]
        assert trend_inputs(self.ROWS._replace(rows=[]), 0, [], needs_all=False)["rows"] == []

    def test_are_all_where_those_that_are_not_shown_decide_too(self) -> None:
        assert trend_inputs(self.ROWS, 0, [7], needs_all=True)["rows"] == self.ROWS.rows

    def test_are_not_kept_when_they_are_too_many(self) -> None:
        many = self.ROWS._replace(rows=[(number, 1) for number in range(MOST_LOGGED + 1)])
        assert len(trend_inputs(many, 0, [MOST_LOGGED - 1], needs_all=False)["rows"]) == MOST_LOGGED
        for needs_all, last in ((False, MOST_LOGGED), (True, 0)):
            said = trend_inputs(many, 0, [last], needs_all=needs_all)
            assert (said["rows"], logged_votes(said)) == (None, None)
        assert logged_votes(None) is None


@pytest.mark.redis
async def test_a_garden_is_not_tea(api: Installation) -> None:
    """What is outside the category of a request is not among its votes."""
    api.vote(HOUR, BUCKET, {"hoe": 9, "cup": 5})
    answer = await api.post("/v1/trending", num_results=1, context={"category": GARDEN})
    assert inputs_of(api, answer)["trend"]["rows"] == [[N["hoe"], 9]]
    await assert_same(api, answer)
