"""Slates of every kind from one reading of the person. Knows stores, not HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.packing import Source
from feature_repo.contracts.publication import PURCHASES_PART
from feature_repo.contracts.purchase_record import Purchase
from serving.adapters.purchases import PurchaseStore, read_purchases
from serving.adapters.trend_board import TrendBoard
from serving.pipeline.cart import cart_contents
from serving.pipeline.consent import as_allowed
from serving.pipeline.list_inputs import INTERESTS, KNOWN, TREND, marks_of, record_of, trend_inputs
from serving.pipeline.new_items import asked_interests, new_slate
from serving.pipeline.own_items import buy_again_slate, continue_slate
from serving.pipeline.rank_given import UNKNOWN_ITEM, rank_given
from serving.pipeline.similar import bought_together, similar_items
from serving.pipeline.trending import LEAST_REGION_VOTES, Scope, Votes, trending_slate, voted_rows
from serving.pipeline.values import Slate, SlateRequest, Tuning
from serving.recommender import Asker, Recommender, asks_ranker
from serving.settled import STORE_DOWN

RECOMMENDATIONS, SIMILAR, RANK = "recommendations", "similar", "rank"
TRENDING, NEW = "trending", "new"
BOUGHT_TOGETHER, BUY_AGAIN, CONTINUE = "bought_together", "buy_again", "continue"
KINDS = frozenset({RECOMMENDATIONS, SIMILAR, RANK, TRENDING, NEW, BOUGHT_TOGETHER, BUY_AGAIN, CONTINUE})

NO_FIELDS: Mapping[str, Any] = MappingProxyType({})


class ListQuestion(NamedTuple):
    """Which list. `item_ids`: those it goes with (similar: the first; rank: those to be ordered)."""

    kind: str
    item_ids: Sequence[str] = ()
    window: str = "1h"
    max_age_days: float = 30.0


class Built(NamedTuple):
    """A slate, why it is degraded, further fields of the answer, and what its decision has to say beyond the question.

    `reads`: further reads of the online store that it took.
    """

    slate: Slate
    degraded: Sequence[str] = ()
    more: Mapping[str, Any] = NO_FIELDS
    inputs: Mapping[str, Any] = NO_FIELDS
    reads: int = 0


class Lists:
    """`wall_micros` and `timer` are clocks: UTC microseconds, monotonic nanoseconds."""

    def __init__(
        self,
        recommender: Recommender,
        board: TrendBoard,
        purchases: PurchaseStore,
        tuning: Tuning,
        *,
        wall_micros: Callable[[], int],
        timer: Callable[[], int],
    ) -> None:
        self._recommender = recommender
        self._board = board
        self._purchases = purchases
        self._tuning = tuning
        self._wall_micros = wall_micros
        self._timer = timer

    async def build(self, wanted: ListQuestion, asker: Asker, request: SlateRequest) -> Built:
        """The list for this asker. `request`: as `asker.request`, with the size and the exclusions of this list."""
        match wanted.kind:
            case "similar" | "bought_together" | "new" | "continue" | "rank":
                return self.build_at_once(wanted, asker, request)
            case "trending":
                votes, stale = await self._board.votes(wanted.window, request.region)
                return self._trending(wanted, asker, request, votes, stale)
            case "buy_again":
                return await self.buy_again(asker, request, now_micros=self._wall_micros())
        if asks_ranker(request):
            slate, degraded, reads = await self._recommender.ranked_slate(asker, request)
            return Built(slate, degraded, reads=reads)
        return Built(self._recommender.slate(asker, request))

    def fresh_votes(self, window: str, region: str | None) -> Votes | None:
        """The votes of a window where they need not be read; for `build_at_once`."""
        return self._board.fresh(window, region)

    def build_at_once(
        self, wanted: ListQuestion, asker: Asker, request: SlateRequest, votes: Votes | None = None
    ) -> Built:
        """The same of the kinds that need no further store: all but `buy_again`; trending of `votes`, which are
        fresh."""
        catalogue, now = asker.catalogue, self._wall_micros()
        match wanted.kind:
            case "trending":
                assert votes is not None
                return self._trending(wanted, asker, request, votes, None)
            case "similar":
                return self._similar(wanted, asker, request, now)
            case "bought_together":
                return self._bought_together(wanted, asker, request, now)
            case "new":
                return self._new(wanted, asker, request, now)
            case "continue":
                slate = continue_slate(request, asker.person, catalogue, self._tuning, now_micros=now)
                return Built(slate, inputs={KNOWN: record_of(asker.person.session)})
            case "rank":
                return self._rank(wanted, asker, request, now)
        return Built(self._recommender.slate(asker, request))

    def _rank(self, wanted: ListQuestion, asker: Asker, request: SlateRequest, now: int) -> Built:
        slate = rank_given(
            wanted.item_ids, request, asker.person, asker.catalogue, self._tuning, now_micros=now, timer=self._timer
        )
        unknown: list[str] = []
        if slate.items and slate.items[-1].item_number == UNKNOWN_ITEM:  # they come last
            unknown = [item.item_id for item in slate.items if item.item_number == UNKNOWN_ITEM]
        return Built(slate, more={"unknown_item_ids": unknown}, inputs={"item_ids": list(wanted.item_ids)})

    def _similar(self, wanted: ListQuestion, asker: Asker, request: SlateRequest, now: int) -> Built:
        item_id, catalogue = wanted.item_ids[0], asker.catalogue
        number = catalogue.numbers.get(item_id)
        slate = similar_items(number, request, asker.person, catalogue, self._tuning, now_micros=now)
        return Built(slate, inputs={"item_id": item_id})

    def _new(self, wanted: ListQuestion, asker: Asker, request: SlateRequest, now: int) -> Built:
        interests = asked_interests(request, asker.person, asker.catalogue, now_micros=now)
        slate = new_slate(
            request, asker.person, asker.catalogue, self._tuning, max_age_days=wanted.max_age_days, now_micros=now,
            interests=interests,
        )  # fmt: skip
        inputs: dict[str, Any] = {"max_age_days": wanted.max_age_days}
        if interests:
            inputs[INTERESTS] = dict(sorted(interests.items()))
        return Built(slate, inputs={**inputs, KNOWN: marks_of(asker.person.session)})

    def _bought_together(self, wanted: ListQuestion, asker: Asker, request: SlateRequest, now: int) -> Built:
        allowed = as_allowed(request, asker.person)
        asked: Sequence[str] = wanted.item_ids or list(cart_contents(allowed.person.session))
        numbers = asker.catalogue.numbers
        slate = bought_together(
            [numbers[item_id] for item_id in asked if item_id in numbers],
            request,
            asker.person,
            asker.catalogue,
            self._tuning,
            now_micros=now,
        )
        unknown = [item_id for item_id in asked if item_id not in numbers]
        more = {"item_ids": list(asked), "unknown_item_ids": unknown}
        # What we know of somebody's cart is about them: the decision has it only when the request said it.
        if wanted.item_ids:
            return Built(slate, more=more, inputs={"item_ids": list(wanted.item_ids)})
        known = {KNOWN: record_of(asker.person.session)}
        return Built(replace(slate, personalized=allowed.personalized), more=more, inputs={"item_ids": [], **known})

    def _trending(
        self, wanted: ListQuestion, asker: Asker, request: SlateRequest, votes: Votes, stale: str | None
    ) -> Built:
        voted = voted_rows(votes, asker.catalogue, request.category, request.region)
        slate = trending_slate(
            voted,
            request,
            asker.person,
            asker.catalogue,
            self._tuning,
            window=wanted.window,
            now_micros=self._wall_micros(),
        )
        of_scope = votes.regional if voted.scope is Scope.REGION and votes.regional is not None else votes
        counts = dict(of_scope.ranked) if slate.fallback_level == TRENDING else {}
        trend = {
            "window": wanted.window,
            "votes": {item.item_id: counts[item.item_id] for item in slate.items if item.item_id in counts},
            "error": of_scope.error,
            "is_regional": voted.scope is not Scope.ALL,
            "scope": voted.scope.value,
            "region_votes": voted.region_votes,
            "region": request.region,
            "is_users_region": request.region_of_user,
            "least_region_votes": None if request.region is None else LEAST_REGION_VOTES,
        }
        shown = [item.item_number for item in slate.items if item.source is Source.TRENDING]
        needs_all = request.policy is not None and request.policy.rules.arrange
        inputs = {
            "window": wanted.window,
            TREND: trend_inputs(voted, of_scope.error, shown, needs_all=needs_all),
            KNOWN: marks_of(asker.person.session),
        }
        return Built(slate, [stale] if stale else [], {"trend": trend}, inputs)

    async def buy_again(self, asker: Asker, request: SlateRequest, *, now_micros: int) -> Built:
        """What somebody buys again, as of an instant."""
        catalogue = asker.catalogue
        degraded: list[str] = []
        purchases: list[Purchase] = []
        reads = 0
        if request.user_id is not None and as_allowed(request, asker.person).personalized:
            reads = 1
            try:
                record = await self._purchases.read(catalogue.version, request.user_id)
                purchases = read_purchases(record, catalogue.version, degraded)
            except DependencyError:
                degraded.append(STORE_DOWN)
        params = catalogue.manifest.parts.get(PURCHASES_PART, {}).get("params", {})
        slate = buy_again_slate(
            purchases,
            request,
            asker.person,
            catalogue,
            self._tuning,
            due_power=float(params.get("due_power", 0.0)),
            now_micros=now_micros,
        )
        if degraded:
            slate = replace(slate, fallback_reason=slate.fallback_reason and degraded[0])
        known = {**record_of(asker.person.session), "purchases": len(purchases)}
        return Built(slate, [one for one in degraded if one not in asker.degraded], inputs={KNOWN: known}, reads=reads)
