"""Pages that one read of the store can answer: at once in native code, or place by place."""

from __future__ import annotations

from collections.abc import Mapping

from serving.adapters.online import OnlineRecords
from serving.api.answering import SlateAnswers
from serving.api.pages import PageAnswer, PageQuestion, PlaceMaker, variants_on_page
from serving.api.services import Services
from serving.lists import RECOMMENDATIONS, TRENDING
from serving.observability import SLATES, count_soon
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.policy import SlatePolicy
from serving.pipeline.trending import Votes
from serving.recommender import Asker

MAX_POLICIES = 1_024
"""So many placements, which clients name, are remembered with their policy."""


class HotPages:
    """Those of one process."""

    def __init__(self, services: Services, answers: SlateAnswers) -> None:
        self._services = services
        self._answers = answers
        self._policies: dict[str, SlatePolicy | None] = {}
        self._may_rank = services.placements.ask_ranker

    def at_once(self, asked: PageQuestion, started: int, catalogue: Catalogue, records: OnlineRecords) -> bytes | None:
        """The page of somebody who is known by one name, or by none, and does not refuse; None when `by_steps` has to
        be asked. A place that native code declines, a list with rules of its placement, and a place that has to know
        which products the page shows already are made by the twin alone."""
        services, votes = self._services, None if self._is_ranked(asked) else self._fresh_votes(asked)
        page = None if votes is None else self._answers.open_page(asked, started, catalogue, records)
        if votes is None or page is None:
            return None
        maker: PlaceMaker | None = None
        asker: Asker | None = None
        for at, place in enumerate(asked.places):
            name, answer_id = place.placement or place.kind, services.new_id()
            policy = self._policy(name)
            is_short = (policy is None or place.kind == RECOMMENDATIONS) and not self._answers.warning_of(name)
            if is_short and policy is not None and policy.rules.one_per_group:
                is_short = not variants_on_page(asked, page.taken_ids, catalogue)
            if is_short and page.place(place, answer_id, policy, votes.get(place.window)):
                continue
            if maker is None or asker is None:
                asker = services.recommender.lone_asker(asked.request, catalogue, records, [])
                assert not asker.degraded  # or there were no page
                maker = PlaceMaker(services, self._answers, asked, asker, started)
            wanted, seen, question = maker.ask(place, answer_id, page.taken_ids())
            built = services.lists.build_at_once(wanted, asker, seen, votes.get(place.window))
            _, content, decision = maker.write(built, question, at)
            page.add(content, decision, [item.item_id for item in built.slate.items])
        for level in page.levels:
            count_soon(SLATES, level)
        self._answers.log(page.payloads)
        body: bytes = page.body()
        return body

    def by_steps(self, asked: PageQuestion, started: int, asker: Asker) -> bytes | None:
        """The page of somebody who was read; None when something has to be read first."""
        services, votes = self._services, None if self._is_ranked(asked) else self._fresh_votes(asked)
        if votes is None:
            return None
        answer = PageAnswer(services, self._answers, asked, asker, started)
        for place in asked.places:
            question, seen = answer.ask(place)
            answer.add(services.lists.build_at_once(question, asker, seen, votes.get(place.window)))
        return answer.body()

    def _is_ranked(self, asked: PageQuestion) -> bool:
        """Whether a place asks for a ranker, which has to read more than a page does."""
        if not self._may_rank:
            return False
        for place in asked.places:
            policy = self._policy(place.placement or place.kind) if place.kind == RECOMMENDATIONS else None
            if policy is not None and policy.asks_ranker:
                return True
        return False

    def _fresh_votes(self, asked: PageQuestion) -> Mapping[str, Votes] | None:
        """By window, those that its places need; None when some have to be read."""
        votes: dict[str, Votes] = {}
        for place in asked.places:
            if place.kind == TRENDING:
                fresh = self._services.lists.fresh_votes(place.window, asked.request.region)
                if fresh is None:
                    return None
                votes[place.window] = fresh
        return votes

    def _policy(self, placement: str) -> SlatePolicy | None:
        """That of a placement, without the seed of an answer."""
        try:
            return self._policies[placement]
        except KeyError:
            if len(self._policies) >= MAX_POLICIES:
                self._policies.clear()
            policy = self._policies[placement] = self._services.placements.policy(placement, seed="")
            return policy
