"""What the rules of a placement do in a list: of an item, of the shop, of the person's own items, of given ones.

Each kind of list has habits: what leaves it when the placement says nothing of that, and which rules it has no use for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from feature_repo.contracts.events import DISMISSING_TYPES
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.consent import Allowed
from serving.pipeline.filters import DISMISSED, SlateFilter, personal_exclusions
from serving.pipeline.identify import BUYING_TYPES, session_events
from serving.pipeline.personal_rules import ruled_exclusions
from serving.pipeline.policy import EXCLUDE, KEEP, RANKER_OFF, SESSION, SlatePolicy, SlateRules
from serving.pipeline.ruled_slate import RuledSlate
from serving.pipeline.values import Tuning

ASKED = "asked_item"
_TELLING = DISMISSING_TYPES | BUYING_TYPES
NONE_OF_ITS_OWN: Mapping[int, str] = MappingProxyType({})


class ListHabits(NamedTuple):
    """The habits of one kind of list.

    takes_bought     what the person bought leaves unless the placement keeps it
    shows_seen       what was seen stays whatever the placement says: the list is made of it
    keeps_dismissed  what the person dismissed stays
    has_order        its order is its own: diversity, rotation, exploration and min_relevance do nothing
    is_topped_up     from other lists when it is short
    """

    takes_bought: bool = False
    shows_seen: bool = False
    keeps_dismissed: bool = False
    has_order: bool = False
    is_topped_up: bool = True


OF_ITEMS = ListHabits()
"""Similar, bought together."""
OF_THE_SHOP = ListHabits(takes_bought=True)
"""Trending, new."""
BEGUN = ListHabits(shows_seen=True, has_order=True, is_topped_up=False)
BOUGHT_BEFORE = ListHabits(has_order=True, is_topped_up=False)
GIVEN = ListHabits(keeps_dismissed=True, has_order=True, is_topped_up=False)


@lru_cache(maxsize=4096)
def rules_in_list(rules: SlateRules, habits: ListHabits) -> SlateRules:
    """The rules of a placement as far as they hold in such a list; a ranker learned from recommendations alone.

    `seen = "session"` and `bought = "exclude"` are what a placement has that says nothing: there the habits count.
    """
    rules = replace(
        rules,
        ranker=RANKER_OFF,
        seen=KEEP if habits.shows_seen or rules.seen == SESSION else rules.seen,
        bought=KEEP if rules.bought == EXCLUDE and not habits.takes_bought else rules.bought,
    )
    if habits.has_order:
        rules = replace(rules, diversity=0.0, rotation=0.0, exploration=0.0, min_relevance=0.0)
    return rules


def concerns_list(policy: SlatePolicy, habits: ListHabits) -> bool:
    """Whether such a list has other items, or another order, by this policy."""
    return policy.filter is not None or rules_in_list(policy.rules, habits) != rules_in_list(SlateRules(), habits)


def eligible_in_list(
    allowed: Allowed,
    catalogue: Catalogue,
    tuning: Tuning,
    *,
    habits: ListHabits,
    now_micros: int,
    own: Mapping[int, str] = NONE_OF_ITS_OWN,
    about: Sequence[int] = (),
) -> SlateFilter | RuledSlate:
    """What may be in a list: by the policy of the request, without one by the habits alone.

    own    item number -> filter: what leaves this list beyond its habits
    about  items that the list is about: they leave without being counted
    """
    if allowed.request.policy is not None:
        return ruled_list(
            allowed.request.policy,
            allowed,
            catalogue,
            tuning,
            habits=habits,
            now_micros=now_micros,
            own=own,
            about=about,
        )
    request = allowed.request
    known = personal_exclusions(
        catalogue,
        state=allowed.person.session,
        session=[event for event in request.recent_events if event.event_type in _TELLING],
        exclude_item_ids=request.exclude_item_ids,
        keeps_bought=not habits.takes_bought,
    )
    taken_out = {**own, **known, **dict.fromkeys(about, ASKED)}
    return SlateFilter(catalogue, taken_out=taken_out, now_micros=now_micros, uncounted=ASKED)


def ruled_list(
    policy: SlatePolicy,
    allowed: Allowed,
    catalogue: Catalogue,
    tuning: Tuning,
    *,
    habits: ListHabits,
    now_micros: int,
    own: Mapping[int, str] = NONE_OF_ITS_OWN,
    about: Sequence[int] = (),
) -> RuledSlate:
    """The policy at work in such a list."""
    request, state = allowed.request, allowed.person.session
    session = session_events(
        state,
        session_id=request.session_id,
        recent_events=request.recent_events,
        now_micros=now_micros,
        gap_seconds=tuning.session_gap_seconds,
    )
    rules = rules_in_list(policy.rules, habits)
    known = ruled_exclusions(
        rules, request, catalogue, state, session, now_micros, keeps_dismissed=habits.keeps_dismissed
    )
    return RuledSlate(
        replace(policy, rules=rules, item_ids=None),
        request,
        catalogue,
        state=state,
        session=session,
        now_micros=now_micros,
        taken_out={**own, **known, **dict.fromkeys(about, ASKED)},
        uncounted=ASKED,
        is_topped_up=habits.is_topped_up,
    )


def is_about_person(eligible: SlateFilter | RuledSlate) -> bool:
    """Whether anything of the person may decide here: rules ask for it, or they dismissed something."""
    return isinstance(eligible, RuledSlate) or DISMISSED in eligible.taken_out.values()
