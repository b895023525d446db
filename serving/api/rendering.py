"""Answers as JSON: the hot half of the API, plain dicts without models (`schemas` declares them, a test compares)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson

from feature_repo.contracts.packing import Source
from feature_repo.contracts.times import format_timestamp, from_micros
from serving.api.policies import included_attributes
from serving.native import parts
from serving.pipeline.catalogue import MAX_REMEMBERED, Catalogue
from serving.pipeline.rank_given import UNKNOWN_ITEM
from serving.pipeline.shares import EXPLORATION, in_a_sentence, reasons_in_words, shares_of_slate, sources_in_words
from serving.pipeline.values import Ranking, Reason, RungReport, Shares, Slate, SlateItem
from serving.recommender import Answer

NO_ATTRIBUTES = {"title": None, "category": None, "price": None}
"""Of an item that the version does not know."""
SOURCE_NAMES = {source: source.name.lower() for source in Source}
_SOURCES_AS_JSON = {source: f',"source":"{name}","reasons":' for source, name in SOURCE_NAMES.items()}


def render_items(items: Iterable[SlateItem], catalogue: Catalogue, include: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The items of an answer, with the attributes of `include` (none: title, category, price). Equal slates give equal
    bytes; scores are rounded to six places."""
    rendered = []
    for rank, item in enumerate(items, start=1):
        one = {
            "item_id": item.item_id,
            "score": round(item.score, 6),
            "rank": rank,
            "source": SOURCE_NAMES[item.source],
            "reasons": [reason._asdict() for reason in item.reasons],
            "attributes": NO_ATTRIBUTES if item.item_number == UNKNOWN_ITEM else catalogue.attributes[item.item_number],
        }
        if include:
            one["attributes"] = included_attributes(catalogue, item.item_number, include)
        rendered.append(one)
    return rendered


def explained_items(slate: Slate, catalogue: Catalogue, include: Sequence[str]) -> list[dict[str, Any]]:
    """`render_items`, each with what its sources have of it, and that in a sentence."""
    rendered = render_items(slate.items, catalogue, include)
    for one, item, shares in zip(rendered, slate.items, shares_of_slate(slate), strict=True):
        one["sources"] = [share._asdict() for share in shares]
        one["explanation"] = in_a_sentence(shares, item.reasons)
    return rendered


def explained_list(slate: Slate, catalogue: Catalogue) -> orjson.Fragment:
    """`explained_items` as it will be written: `item_list` with more behind each item."""
    of_reasons = catalogue.remember("reasons in words as JSON")
    written = []
    told = zip(_written_items(slate.items, catalogue), slate.items, shares_of_slate(slate), strict=True)
    for one, (_, _, _, _, _, _, reasons), shares in told:
        because = of_reasons.get(reasons)
        if because is None:
            because = _remembered(of_reasons, reasons, _as_json(reasons_in_words(reasons))[1:])
        if shares[0][0] == EXPLORATION:
            because = '"'
        written.append(f'{one[:-1]}{_written_shares(shares)}{because[:-1]}."}}')
    return orjson.Fragment(f"[{','.join(written)}]")


@lru_cache(maxsize=4096)
def _written_shares(shares: Shares) -> str:
    """`sources` and the begin of `explanation`. Names and words have nothing that JSON writes otherwise."""
    sources = ",".join([_written_share(name, share) for name, share in shares])
    return f',"sources":[{sources}],"explanation":"{sources_in_words(shares)}'


@lru_cache(maxsize=16_384)
def _written_share(name: str, share: float) -> str:
    return f'{{"name":"{name}","share":{share}}}'


def item_list(items: Sequence[SlateItem], catalogue: Catalogue) -> orjson.Fragment:
    """`render_items` as it will be written, of parts that are the same in many answers."""
    return orjson.Fragment(f"[{','.join(_written_items(items, catalogue))}]")


def _written_items(items: Sequence[SlateItem], catalogue: Catalogue) -> list[str]:
    of_items, of_reasons = catalogue.remember("items as JSON"), catalogue.remember("reasons as JSON")
    attributes = catalogue.attributes
    written = []
    for rank, (number, _, score, _, _, source, reasons) in enumerate(items, start=1):
        if number == UNKNOWN_ITEM:
            written.append(_as_json(render_items([items[rank - 1]], catalogue)[0] | {"rank": rank}))
            continue
        facts = attributes[number]
        parts = of_items.get(number)
        if parts is None or parts[0] is not facts:
            parts = _remembered(of_items, number, _item_parts(catalogue, number))
        because = of_reasons.get(reasons)
        if because is None:
            because = _remembered(of_reasons, reasons, _reason_list(reasons))
        if 0.001 <= score <= 1.0:
            digits = f"{score:.6f}".rstrip("0")
            if digits[-1] == ".":
                digits += "0"
        elif score == 0:
            digits = "0.0"
        else:
            digits = _as_json(round(score, 6))
        written.append(f'{parts[1]}{digits},"rank":{rank}{_SOURCES_AS_JSON[source]}{because}{parts[2]}')
    return written


def _remembered(memory: dict[Any, Any], key: Any, value: Any) -> Any:
    if len(memory) >= MAX_REMEMBERED:
        memory.clear()
    memory[key] = value
    return value


def _item_parts(catalogue: Catalogue, number: int) -> tuple[Mapping[str, Any] | None, str, str]:
    """The item's attributes, and what is written of it before its score and behind its reasons."""
    facts = catalogue.attributes[number]
    head = f'{{"item_id":{_as_json(catalogue.item_id(number))},"score":'
    return facts, head, f',"attributes":{_as_json(facts)}}}'


def _reason_list(reasons: Sequence[Reason]) -> str:
    return _as_json([reason._asdict() for reason in reasons])


def _as_json(value: Any) -> str:
    return orjson.dumps(value).decode()


def render_answer(
    answer: Answer,
    *,
    recommendation_id: str,
    placement: str,
    num_results: int,
    explain: bool,
    now_micros: int,
    took_micros: int,
    include: Sequence[str] = (),
) -> bytes:
    """The body of a recommendation."""
    slate = answer.slate
    session_micros = slate.session[-1].micros if slate.session else None
    is_short = len(slate.items) < num_results
    if parts.writing is not None and not explain and not include and not answer.catalogue.is_first:
        written: bytes | None = parts.writing.answer(
            slate.items,
            answer.catalogue,
            recommendation_id,
            placement,
            took_micros,
            slate.fallback_level,
            slate.fallback_reason,
            answer.degraded,
            now_micros,
            answer.feature_micros if slate.personalized else None,
            session_micros,
            answer.changes_micros,
            slate.filtered if is_short else None,
        )
        if written is not None:
            return written
    items: list[dict[str, Any]] | orjson.Fragment
    if explain and not include:
        items = explained_list(slate, answer.catalogue)
    elif explain:
        items = explained_items(slate, answer.catalogue, include)
    elif include:
        items = render_items(slate.items, answer.catalogue, include)
    else:
        items = item_list(slate.items, answer.catalogue)
    body = _envelope(
        items,
        answer.catalogue,
        recommendation_id=recommendation_id,
        placement=placement,
        took_micros=took_micros,
        fallback_level=slate.fallback_level,
        fallback_reason=slate.fallback_reason,
        degraded=answer.degraded,
        now_micros=now_micros,
        feature_micros=answer.feature_micros if slate.personalized else None,
        session_micros=session_micros,
        changes_micros=answer.changes_micros,
    )
    if explain or is_short:
        body["filtered"] = slate.filtered
    if explain:
        body["trace"] = {
            "stages_ms": {stage: micros / 1000 for stage, micros in slate.stage_micros.items()},
            "online_reads": answer.reads,
            "personalized": slate.personalized,
            "rungs": render_rungs(slate.rungs),
            "session": [
                {
                    "event_type": event.event_type,
                    "item_id": event.item_id,
                    "age_seconds": _age_seconds(event.micros, now_micros),
                }
                for event in slate.session
            ],
            **({} if slate.policy is None else {"policy": slate.policy}),
            **({} if slate.ranking is None else {"ranker": _ranker_trace(slate.ranking, slate.items)}),
            "session_weight": round(slate.session_weight, 6),
            "scores": {i.item_id: {"base": round(i.base, 6), "vote": round(i.vote, 6)} for i in slate.items},
        }
    return orjson.dumps(body)


def ranker_report(ranking: Ranking) -> dict[str, Any]:
    """What an answer says of its ranker."""
    return {"applied": ranking.reason is None, "reason": ranking.reason, "ranker": ranking.ranker}


def _ranker_trace(ranking: Ranking, items: Sequence[SlateItem]) -> dict[str, Any]:
    """The same with what it said of each item, and where the item would have stood by its score."""
    moved = {item.item_id: ranking.moved[item.item_number] for item in items if item.item_number in ranking.moved}
    return {
        **ranker_report(ranking),
        "features_at": None if ranking.micros is None else format_timestamp(from_micros(ranking.micros)),
        "items": {item_id: {"rank_before": rank, "score": round(said, 6)} for item_id, (rank, said) in moved.items()},
    }


def render_rungs(rungs: Iterable[RungReport]) -> list[dict[str, Any]]:
    return [report._asdict() for report in rungs]


def _envelope(
    items: list[dict[str, Any]] | orjson.Fragment,
    catalogue: Catalogue,
    *,
    recommendation_id: str,
    placement: str,
    took_micros: int,
    fallback_level: str,
    fallback_reason: str | None,
    degraded: Sequence[str],
    now_micros: int,
    feature_micros: int | None,
    session_micros: int | None,
    changes_micros: int | None,
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "recommendation_id": recommendation_id,
        "placement": placement,
        "items": items,
        "model_version": catalogue.version,
        "took_ms": took_micros / 1000,
        "fallback_level": fallback_level,
        "fallback_reason": fallback_reason,
        "degraded": bool(degraded),
        "freshness": {
            "model": _age_seconds(catalogue.trained_micros, now_micros),
            "data": _age_seconds(catalogue.last_event_micros, now_micros),
            "candidates": _age_seconds(catalogue.published_micros, now_micros),
            "features": _age_seconds(feature_micros, now_micros),
            "session": _age_seconds(session_micros, now_micros),
            "catalogue": _age_seconds(changes_micros, now_micros),
        },
        "experiments": [],
    }
    if degraded:
        body["degraded_reasons"] = list(degraded)
    return body


def _age_seconds(moment_micros: int | None, now_micros: int) -> float | None:
    """Never negative: an as_of may lie ahead of the clock, and clocks of clients run ahead."""
    return None if moment_micros is None else max(0, (now_micros - moment_micros + 500) // 1000) / 1000
