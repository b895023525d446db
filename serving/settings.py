"""Settings of the serving processes: one table with unit, default and the effect of raising each.

Each field is the environment variable NIGHTJAR_SERVING_<FIELD>, e.g. NIGHTJAR_SERVING_SESSION_WEIGHT. A variable with
that prefix that no field knows is refused, so a typing error is not a silent default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.feature_table import feature_view
from feature_repo.contracts.session_blend import HALF_LIFE_SECONDS, SESSION_WEIGHT, SESSION_WEIGHT_ALONE
from serving.adapters.feast_online import USER_VIEW
from serving.pipeline.values import Tuning

PREFIX = "NIGHTJAR_SERVING_"
API_KEY_MODES = ("auto", "on", "off")
MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's own variable: where workers keep the counters that /metrics sums."""


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """Raising a number does what its line says.

    online_timeout_ms      5 ms      longest wait for one read of the online store. Higher: slower answers when Redis is
                                     ill, fewer degraded ones where it shares its machine with much else.
    log_timeout_ms         1000 ms   longest wait for the event log's fsync. Higher: slower 503s, fewer of them.
    bundle_wait_ms         2000 ms   how long a request waits for a newly published version to load before it is
                                     answered from the one before. Higher: a flip or rollback shows in the very next
                                     answer even with a huge catalogue.
    pointer_poll_ms        1000 ms   how often an idle worker looks for a new version. Higher: fewer reads, later loads.
    log_queue_events       20000     events of one worker that wait for the event log or are under way to it; beyond it
                                     requests get 503 at once. Higher: longer bursts are taken, and longer waits.
    log_queue_bytes        33554432 B  the same in bytes. Higher: more memory of each worker.
    trend_refresh_ms       1000 ms   how old the votes of a trend may be. Higher: fewer reads of some 100 kB,
                                     later trends.
    session_weight         4.0       how loud the session is beside the night's list: 0 ignores it, at 4 the best-voted
                                     newcomer beats every item that got no vote, after a click already, at 10 little
                                     but the session is left. `nightjar bench session-weights` tries it on your events.
    session_weight_alone   10000     the same beside lists that are not the person's own (popular items): at 10000 they
                                     only fill in what the session is silent on. Higher: no change to speak of.
    session_events         20        how many last events of the session vote, where a version has no session index
                                     (whose recipe says it). Higher: a longer memory, slower answers.
    session_gap_seconds    1800 s    a request without session_id continues a session this fresh. Higher: staler ones.
    position_decay         0.9       likewise: weight of an event beside the one after it, in (0, 1]. Higher: older
                                     clicks count.
    half_life_seconds      1800 s    age, counted from the newest event, at which an event counts half.
    feature_lag_seconds    259200 s  a Feast feature older than the served version by more than this is not used, and
                                     the answer is degraded (Feast does not apply a ttl online; the default is the
                                     view's). Higher: staler segments, fewer popular answers.
    kept_features_bytes    4194304 B what the features may take that a worker keeps of people who were just here, for
                                     rankers, until Redis says that they changed; 0: none are kept. Higher: fewer second
                                     reads, more memory of each worker (about 700 B a row of ten features).
    max_events             1000      events in one POST /v1/events. Higher: fewer, larger writes.
    max_body_bytes         2097152 B largest request body as sent. Higher: more memory an attacker can take.
    max_inflated_bytes     8388608 B largest body of events after gzip. Higher: the same, and longer pauses.
    max_inflate_ratio      100       how many times larger than sent a body over 1 MiB may become. Higher: the same.
    max_written_bytes      33554432 B  what the events of one request may take in the log; what they share in the body
                                     (a context, a client id) is written with each. Higher: more memory and disk.
    placements             (none)    a TOML or JSON file with placements (infra/docs/placements.md). With none, the
                                     presets alone.
    cors_origins           (none)    origins whose pages may call the API (https://shop.example), separated by commas;
                                     * is any. With none, only pages of the API's own origin may.
    write_keys             (none)    write keys of /v1/track and its kind, separated by commas. With none, any is taken.
    api_keys               auto      whether requests need an API key: on, off, or auto (on unless the server listens on
                                     loopback only). Keys are made with `nightjar keys create`.
    worker_count           1         workers that share the limits of keys; `python -m serving` sets it.
    access_log_every       1000      one request in so many is written to the log; 0: none. Errors of ours, refusals,
                                     slow and traced requests are written anyway. Higher: fewer lines.
    access_log_slow_ms     50 ms     a request that takes so long is slow. Higher: fewer lines.
    access_log_per_second  50        lines of one worker in a second at most. Higher: a flood of errors fills the disk.
    max_in_flight          512       requests of one worker that may be under way; beyond it they get 503 at once
                                     (events at three quarters of it, batches at half). Higher: longer queues.
    max_wait_ms            50 ms     how long an answer may have to wait for its turn, by what the ones before it take:
                                     when one that comes now would wait longer it gets 503 at once (events at three
                                     quarters of it, batches at half). Higher: fewer refusals in a rush, later answers.
    decision_flush_ms      100 ms    how often a worker's decisions are written and fsynced: what a crash loses at most.
                                     Higher: fewer fsyncs.
    decision_queue_bytes   16777216 B  decisions of one worker that wait for the disk; beyond it they are lost and
                                     counted, answers go on. Higher: a longer hiccup of the disk is survived.
    decision_file_bytes    268435456 B  size at which a worker begins a new decision file. Higher: fewer, larger files
                                     wait for their deletion.
    decision_file_seconds  3600 s    age at which it does. Higher: the same.
    session_ttl_seconds    2592000 s how long a person's session record lives after its last event (30 days: longer is
                                     more personal data kept).
    consumer_batch         500       events of a partition that the consumer applies at once.
                                     Higher: more throughput in a backlog, later effect, longer waits for answers.
    backlog_niceness       10        how far a consumer that catches up, and the archiver, stand back behind API workers
                                     on their machine: 0 not at all, 19 most (`nice`; Linux only). Higher: quicker
                                     answers meanwhile, and they take longer where the processors are busy.
    backlog_rest_seconds   300 s     how long a consumer that catches up rests between its batches, where no processor
                                     is free; then it works without rests. Higher: quicker answers for longer, and a
                                     backlog lasts up to ten times as long as its work.
    archive_seconds        2 s       longest time an event waits for its archive commit. Higher: fewer, larger files.
    archive_events         20000     events in one archive commit at most. Higher: fewer files, more memory.
    lease_seconds          5 s       how long a dead consumer or archiver keeps its role. Higher: later takeover.
    """

    online_timeout_ms: float = 5.0
    log_timeout_ms: float = 1000.0
    bundle_wait_ms: float = 2000.0
    pointer_poll_ms: float = 1000.0
    log_queue_events: int = 20_000
    log_queue_bytes: int = 33_554_432
    trend_refresh_ms: float = 1000.0
    session_weight: float = SESSION_WEIGHT
    session_weight_alone: float = SESSION_WEIGHT_ALONE
    session_events: int = 20
    session_gap_seconds: float = 1800.0
    position_decay: float = 0.9
    half_life_seconds: float = HALF_LIFE_SECONDS
    feature_lag_seconds: float = feature_view(USER_VIEW).fresh_for.total_seconds()
    kept_features_bytes: int = 4_194_304
    max_events: int = 1000
    max_body_bytes: int = 2_097_152
    max_inflated_bytes: int = 8_388_608
    max_inflate_ratio: int = 100
    max_written_bytes: int = 33_554_432
    placements: str = ""
    cors_origins: str = ""
    write_keys: str = ""
    api_keys: str = "auto"
    worker_count: int = 1
    max_in_flight: int = 512
    max_wait_ms: float = 50.0
    access_log_every: int = 1000
    access_log_slow_ms: float = 50.0
    access_log_per_second: int = 50
    decision_flush_ms: float = 100.0
    decision_queue_bytes: int = 16_777_216
    decision_file_bytes: int = 268_435_456
    decision_file_seconds: float = 3600.0
    session_ttl_seconds: int = 2_592_000
    consumer_batch: int = 500
    backlog_niceness: int = 10
    backlog_rest_seconds: float = 300.0
    archive_seconds: float = 2.0
    archive_events: int = 20_000
    lease_seconds: float = 5.0

    @classmethod
    def from_mapping(cls, variables: Mapping[str, str]) -> ServingSettings:
        """From `os.environ` or any mapping. Raises DataError naming the variable, what it says and what it may say."""
        known = {PREFIX + field.name.upper(): field for field in fields(cls)}
        values: dict[str, Any] = {}
        for name, text in variables.items():
            if not name.startswith(PREFIX):
                continue
            if name not in known:
                raise DataError(f"unknown setting {name}{nearest(name, known)}", field=name)
            field = known[name]
            if isinstance(field.default, str):
                values[field.name] = text
                continue
            kind = int if isinstance(field.default, int) else float
            try:
                value = kind(text)
            except ValueError as error:
                raise DataError(f"{name} must be {_WORDS[kind]} such as {field.default}, got {text!r}") from error
            if not (value >= 0 if field.name in _MAY_BE_ZERO else value > 0) or value == float("inf"):
                raise DataError(f"{name} must be a positive number such as {field.default}, got {text!r}", field=name)
            values[field.name] = value
        for origin in _words(values.get("cors_origins", "")):
            _check_origin(origin)
        if values.get("position_decay", 1.0) > 1:
            raise DataError(f"{PREFIX}POSITION_DECAY must lie in (0, 1], got {values['position_decay']}")
        if values.get("api_keys", "off") not in API_KEY_MODES:
            words = f"{PREFIX}API_KEYS is {', '.join(API_KEY_MODES)}, got {values['api_keys']!r}"
            raise DataError(words, field=f"{PREFIX}API_KEYS")
        if values.get("api_keys") == "on" and values.get("write_keys"):
            raise DataError(
                f"{PREFIX}WRITE_KEYS has no meaning where API keys are needed: make keys with `nightjar keys create "
                "--scope write`",
                field=f"{PREFIX}WRITE_KEYS",
            )
        return cls(**values)

    def allowed_origins(self) -> list[str]:
        """The origins of `cors_origins` as browsers write them: small letters, no port that goes without saying."""
        origins = [origin.lower() for origin in _words(self.cors_origins)]
        return [re.sub(r"^(https://.*):443$|^(http://.*):80$", r"\1\2", origin) for origin in origins]

    def tuning(self) -> Tuning:
        """The part that the pipeline reads."""
        return Tuning(
            session_weight=self.session_weight,
            session_weight_alone=self.session_weight_alone,
            session_events=self.session_events,
            session_gap_seconds=self.session_gap_seconds,
            position_decay=self.position_decay,
            half_life_seconds=self.half_life_seconds,
        )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _check_origin(origin: str) -> None:
    """Raises DataError unless it is scheme://host[:port], or *."""
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        raise DataError(
            f"{PREFIX}CORS_ORIGINS has origins such as https://shop.example or http://localhost:3000 (scheme, host, "
            f"port; no path), or *; got {origin!r}",
            field=f"{PREFIX}CORS_ORIGINS",
        )


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^/?#@:\s*\[\]]+)(:[0-9]{1,5})?", re.IGNORECASE)
_WORDS = {int: "a whole number", float: "a number"}
_MAY_BE_ZERO = frozenset(
    {
        "access_log_every", "backlog_niceness", "backlog_rest_seconds", "kept_features_bytes", "session_weight",
        "session_weight_alone",
    }
)  # fmt: skip
