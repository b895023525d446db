"""The decision record: what was answered, to whom, from what. Framed JSON in append-only files, one per API worker.

File `<home>/decisions/<tenant>/<worker>-<start in microseconds>.log`
    header  8 bytes   b"NJDEC", format (1) as two digits, newline
    frame   <4sII     b"NJd1", payload length, CRC-32 of the payload; then the payload, UTF-8 JSON
A file that is cut short ends in an incomplete frame, which is skipped; behind damage, reading goes on at the next whole
frame. The worker that appends holds an exclusive flock; a file without one is closed for good.

Payload v1 (position n of the slate is entry n-1 of every list)
    v, id, at        1, recommendation_id, microseconds since 1970 (UTC)
    kind, placement  what was asked for: recommendations, similar, rank, trending, bought_together, buy_again, continue,
                     new; where the slate is shown
    subject          `events.subject_key`, null when nobody was named or their consent denies storing
    session          `packing.session_hash` as 16 hex digits; null without a session id, and without a subject
    version, level, reason, degraded    as the answer says them (model_version, fallback_level ...)
    items, numbers, scores, sources     item ids, item numbers (-1: unknown), scores, `packing.Source` numbers
    rules            per position the ids of the rules that touched it; empty when none touched the slate
    propensities     per position the probability with which the policy would show this item there
    experiments      [[experiment id, arm], ...]; empty outside of experiments
    inputs           what else the answer depended on, an object: see infra/docs/decisions.md

A golden file of the format is kept in tests/golden for ever.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.packing import Source
from feature_repo.contracts.times import from_micros

DECISION_FORMAT = 1
FILE_HEADER = b"NJDEC01\n"
FRAME_MARK = b"NJd1"
MAX_PAYLOAD_BYTES = 1 << 20
"""Larger payloads are not written; a larger length in a file is damage."""

DETERMINISTIC = 1.0
"""Propensity of an item whose place was not left to chance."""

LOG_SUFFIX = ".log"

_FRAME = struct.Struct("<4sII")
FRAME_BYTES = _FRAME.size


class _SourceNames(dict[int, str]):
    """A number that this version does not know is its own name."""

    def __missing__(self, number: int) -> str:
        return str(number)


_name_source = _SourceNames({source.value: source.name.lower() for source in Source}).__getitem__
_KEYS = (
    "v", "id", "at", "kind", "placement", "subject", "session", "version", "level", "reason", "degraded", "items",
    "numbers", "scores", "sources", "rules", "propensities", "experiments", "inputs",
)  # fmt: skip
_LISTS = ("numbers", "scores", "sources", "propensities")


class Frames(NamedTuple):
    """What lies in a piece of a decision file. Offsets are of the file.

    payloads  (offset of the frame's end, payload), in order
    end       offset behind the last whole frame; bytes from here on are incomplete, or not there yet
    damaged   bytes between whole frames that are none
    """

    payloads: list[tuple[int, bytes]]
    end: int
    damaged: int


def frame(payload: bytes) -> bytes:
    """One payload as it lies in the file. Raises ContractError when it is larger than MAX_PAYLOAD_BYTES."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ContractError(f"a decision has at most {MAX_PAYLOAD_BYTES} bytes, got {len(payload)}")
    return _FRAME.pack(FRAME_MARK, len(payload), zlib.crc32(payload)) + payload


def read_frames(data: bytes, offset: int) -> Frames:
    """The whole frames of `data`, which starts at `offset` of its file, behind the header or behind a frame."""
    payloads: list[tuple[int, bytes]] = []
    at = end = damaged = 0
    while True:
        payload = _payload_at(data, at)
        if payload is not None:
            damaged += at - end
            at = end = at + FRAME_BYTES + len(payload)
            payloads.append((offset + end, payload))
            continue
        at = data.find(FRAME_MARK, at + 1)
        if at < 0:
            return Frames(payloads, offset + end, damaged)


def _payload_at(data: bytes, at: int) -> bytes | None:
    if at + FRAME_BYTES > len(data):
        return None
    mark, size, checksum = _FRAME.unpack_from(data, at)
    start = at + FRAME_BYTES
    if mark != FRAME_MARK or size > MAX_PAYLOAD_BYTES or start + size > len(data):
        return None
    payload = data[start : start + size]
    return payload if zlib.crc32(payload) == checksum else None


def read_decision(payload: bytes, *, parse: Callable[[bytes], Any] = json.loads) -> dict[str, Any]:
    """The document of one payload. Raises ContractError when it is no v1 decision.

    `parse` may be a faster parser of JSON; it raises ValueError on what is none.
    """
    try:
        document = parse(payload)
    except ValueError as error:
        raise ContractError(f"a decision is JSON: {error}") from error
    if not isinstance(document, dict) or document.get("v") != DECISION_FORMAT:
        seen = document.get("v") if isinstance(document, dict) else document
        raise ContractError(f"decision format {str(seen)[:80]!r}, expected {DECISION_FORMAT}")
    if missing := [key for key in _KEYS if key not in document]:
        raise ContractError(f"a decision needs {', '.join(missing)}")
    count = len(document["items"])
    if any(len(document[key]) != count for key in _LISTS) or len(document["rules"]) not in (0, count):
        sizes = {key: len(document[key]) for key in ("items", *_LISTS)}
        raise ContractError(f"the lists of decision {document['id']!r} differ in length: {sizes}")
    return document


def _sorted_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def decision_row(
    document: Mapping[str, Any], *, source: str, source_position: int, write: Callable[[Any], str] = _sorted_json
) -> dict[str, Any]:
    """A decision with the columns of `silver.decisions`.

    `write` may be a faster writer of compact JSON with sorted keys. Lists without anything in them may be shared.
    """
    moment = from_micros(document["at"])
    return {
        "recommendation_id": document["id"],
        "decided_at": moment,
        "kind": document["kind"],
        "placement": document["placement"],
        "subject_key": document["subject"],
        "session_hash": document["session"],
        "model_version": document["version"],
        "fallback_level": document["level"],
        "fallback_reason": document["reason"],
        "degraded_reasons": list(document["degraded"]),
        "item_ids": list(document["items"]),
        "item_numbers": list(document["numbers"]),
        "scores": list(document["scores"]),
        "sources": list(map(_name_source, document["sources"])),
        "rule_ids": list(document["rules"]) or [[]] * len(document["items"]),
        "propensities": list(document["propensities"]),
        "experiment_ids": [experiment for experiment, _ in document["experiments"]],
        "arms": [arm for _, arm in document["experiments"]],
        "inputs": write(document["inputs"]),
        "source": source,
        "source_position": source_position,
        "decision_date": moment.date(),
    }
