"""One answer from end to end: read the person, settle the version, build the slate. Knows stores, not HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from feature_repo.contracts import session_record
from feature_repo.contracts.errors import ContractError, DependencyError, MixedVersionError, NightjarError
from feature_repo.contracts.events import subject_key
from feature_repo.contracts.identity import Edge, unpack_edge
from feature_repo.contracts.packing import (
    FLAG_PERSONALIZE_DENIED,
    SessionState,
    open_candidates,
    read_candidates_header,
    read_session,
)
from serving.adapters.circuit import GuardedStore
from serving.adapters.feast_online import USER_VIEW, read_string_value, read_timestamp_micros
from serving.adapters.online import OnlineRecords, OnlineStore, RedisOnlineStore
from serving.adapters.ranker_features import RankerFeatures
from serving.adapters.shelf import VersionShelf
from serving.first_shelf import FirstShelf
from serving.native import parts
from serving.observability import (
    DEGRADED,
    IDENTITY_READS,
    RANKINGS,
    REFUSED_RECORDS,
    SECOND_READS,
    SLATES,
    STALE_FEATURES,
    count_soon,
)
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.consent import as_allowed, with_refusal
from serving.pipeline.overlay import CatalogueOverlay
from serving.pipeline.persons import MAX_READS, Edges, Identity, join_sessions, person_of, stranger
from serving.pipeline.ranker import FAILURES, NOT_READ, PersonFeatures
from serving.pipeline.slate import SlateSteps, build_slate, slate_steps
from serving.pipeline.values import Person, Row, Slate, SlateRequest
from serving.settings import ServingSettings
from serving.settled import (
    DAMAGED_CANDIDATES,
    DAMAGED_EDGE,
    DAMAGED_FEATURE,
    DAMAGED_SESSION,
    MIXED_VERSION,
    STALE_FEATURE,
    STORE_DOWN,
    VERSION_NOT_LOADED,
    EmptyShopError,
    NoVersionError,
    PersonRecords,
    Settled,
)
from serving.turns import Turns

logger = logging.getLogger("nightjar.serving")

Made = TypeVar("Made")

UNKNOWN_SESSION = SessionState()
RANKED = "ranked"
"""The outcome of a ranker that did its work (`RANKINGS`)."""
REMEMBERED_PERSONS = 20_000
"""Persons of several devices or names that a process remembers, so that one read brings all of theirs."""


def asks_ranker(request: SlateRequest) -> bool:
    """Whether the slate of a request is `Recommender.ranked_slate`."""
    return request.policy is not None and request.policy.asks_ranker


@dataclass(slots=True)
class Answer:
    """A slate with the circumstances under which it was made. Times are microseconds since 1970, None when unknown.

    `refuses_storing`: the person said so through the users API, under any name that is known to be theirs.
    """

    slate: Slate
    catalogue: Catalogue
    reads: int
    degraded: list[str] = field(default_factory=list)
    feature_micros: int | None = None
    changes_micros: int | None = None
    refuses_storing: bool = False


class Asker(NamedTuple):
    """Who asks, read once. `request` has the person's user id and their newest word on personalization.

    `feature_micros` and `refuses_storing` as in `Answer`; `degraded` says what could not be read.
    """

    request: SlateRequest
    person: Person
    catalogue: Catalogue
    reads: int
    degraded: list[str]
    feature_micros: int | None
    refuses_storing: bool


class Recommender:
    """Answers of one serving process. `wall_micros` and `timer` are its clocks: UTC microseconds, monotonic ns."""

    def __init__(
        self,
        store: OnlineStore,
        shelf: VersionShelf,
        settings: ServingSettings,
        *,
        wall_micros: Callable[[], int],
        timer: Callable[[], int],
        overlay: CatalogueOverlay | None = None,
        first: FirstShelf | None = None,
        features: RankerFeatures | None = None,
    ) -> None:
        """`first`: what is answered from before the first version; None: nothing is. `features`: what a placement's
        ranker reads; None: nothing is read."""
        self._store = store
        self._overlay = overlay or CatalogueOverlay()
        self._shelf = shelf
        self._first = first
        self._features = features
        self._settings = settings
        self._tuning = settings.tuning()
        self._wall_micros = wall_micros
        self._timer = timer
        self._identities: OrderedDict[str, Identity] = OrderedDict()
        self.turns = Turns(timer)
        self._meetings = self._native_meetings()

    async def recommend(self, request: SlateRequest) -> Answer:
        """The slate of one request. Raises NoVersionError when there is nothing to serve from."""
        asker = await self.meet(request)
        if asks_ranker(asker.request):
            slate, degraded, reads = await self.ranked_slate(asker, asker.request)
            return self.answer(asker, slate, degraded=degraded, reads=reads)
        return self.answer(asker, self.slate(asker, asker.request))

    async def ranked_slate(
        self, asker: Asker, request: SlateRequest, *, now_micros: int | None = None, known: str | None = None
    ) -> tuple[Slate, list[str], int]:
        """(`slate` where a placement asks for a ranker, why it is degraded, further reads that it took). `known`: why
        the ranker is to know nothing, for who does not want it to read anything."""
        steps = self._steps(asker, request, now_micros)
        reads = 0
        try:
            wanted = next(steps)
            found: PersonFeatures | str = known or NOT_READ
            if self._features is not None and known is None:
                kept = self._features.kept(wanted)
                found, reads = (await self._features.read(wanted), 1) if kept is None else (kept, 0)
            steps.send(found)
        except StopIteration as done:
            return *_ranked(done.value), reads
        raise AssertionError("a slate asks for features once")

    def may_rank_at_once(self, request: SlateRequest) -> bool:
        """Whether it is worth a try with `kept_slate`: a row of the person is kept."""
        return self._features is not None and request.user_id is not None and self._features.keeps(request.user_id)

    def kept_slate(self, asker: Asker, request: SlateRequest) -> tuple[Slate, list[str]] | None:
        """`ranked_slate` without a further read, where what the ranker has to know is kept; else None."""
        steps = self._steps(asker, request, None)
        try:
            wanted = next(steps)
            found = None if self._features is None else self._features.kept(wanted)
            if found is None:
                return None
            steps.send(found)
        except StopIteration as done:
            return _ranked(done.value)
        raise AssertionError("a slate asks for features once")

    def _steps(self, asker: Asker, request: SlateRequest, now_micros: int | None) -> SlateSteps:
        return slate_steps(
            request,
            asker.person,
            asker.catalogue,
            self._tuning,
            now_micros=self._wall_micros() if now_micros is None else now_micros,
            timer=self._timer,
        )

    def slate(self, asker: Asker, request: SlateRequest, *, now_micros: int | None = None) -> Slate:
        """The slate of somebody who was read. `request`: as `asker.request`, perhaps for another place of a page;
        `now_micros`: the instant at which it is asked for, by default now."""
        return build_slate(
            request,
            asker.person,
            asker.catalogue,
            self._tuning,
            now_micros=self._wall_micros() if now_micros is None else now_micros,
            timer=self._timer,
        )

    def submit_meeting(
        self,
        request: SlateRequest,
        build: Callable[[Asker], Made | None],
        answered: Callable[[Made | None], None],
        at_once: Callable[[Catalogue, OnlineRecords], Made | None] | None = None,
    ) -> bool:
        """`meet` for those who do not wait: `answered` gets, in a later turn of the loop, what `build` makes of the
        asker, or None when more than one read is needed. Then, and when this returns False (nothing was read), `meet`
        has to be asked.

        at_once  makes the same from the records of somebody who is known by one name, or by none, and who does not
                 refuse; where it gives None, `build` is asked
        """
        if self._meetings is not None and self._meetings.submit(request, build, answered, at_once):
            return True
        return self.submit_step_by_step(request, build, answered, at_once)

    def submit_step_by_step(
        self,
        request: SlateRequest,
        build: Callable[[Asker], Made | None],
        answered: Callable[[Made | None], None],
        at_once: Callable[[Catalogue, OnlineRecords], Made | None] | None,
    ) -> bool:
        """`submit_meeting` in Python."""
        catalogue = self._shelf.current
        if catalogue is None:
            return False
        request = self._placed(self._with_refusal(request, (request.user_id,)))
        if request.personalize is False:
            user_id = anonymous_id = at_once = None
        else:
            user_id, anonymous_id = request.user_id, request.anonymous_id
        asked = None if user_id is None and anonymous_id is None else subject_key(user_id, anonymous_id)
        remembered = None if asked is None else self._identities.get(asked)
        joined: list[str] = []
        if remembered is not None:
            user_id, anonymous_id = remembered.user_id, None if user_id is not None else anonymous_id
            joined = _joined_by(remembered)
        made = partial(self.on_records, request, catalogue, asked, remembered, joined, build, answered, at_once)
        self._store.submit(
            partial(self.turns.do, made),
            version=catalogue.version,
            user_id=user_id,
            anonymous_id=anonymous_id,
            joined=joined,
        )
        self.turns.expected += 1
        return True

    def _native_meetings(self) -> Any:
        """Native code that does what `submit_step_by_step` does; None where the store is another one."""
        guard = self._store
        if parts.meetings is None or type(guard) is not GuardedStore or type(guard.store) is not RedisOnlineStore:
            return None
        store = guard.store
        return parts.meetings.Meetings(
            self, self._shelf, self._overlay, self._identities, guard, guard.breaker, store, store.commands,
            store.commands.writer, store.reads,
        )  # fmt: skip

    def on_records(
        self,
        request: SlateRequest,
        catalogue: Catalogue,
        asked: str | None,
        remembered: Identity | None,
        joined: list[str],
        build: Callable[[Asker], Made | None],
        answered: Callable[[Made | None], None],
        at_once: Callable[[Catalogue, OnlineRecords], Made | None] | None,
        records: OnlineRecords | DependencyError,
    ) -> None:
        """Answer a request whose records have come, or never will, now that it is its turn."""
        made: Made | None = None
        degraded: list[str] = []
        if not isinstance(records, DependencyError) and records.pointer != catalogue.version:
            if records.pointer is not None:
                answered(None)
                return
            # The store was emptied, as in `settle`: what was read of this version is all there is.
            degraded.append(VERSION_NOT_LOADED)
            at_once = None
        if isinstance(records, DependencyError):
            meet = partial(self._asker, request, Settled(catalogue, None, 1, [STORE_DOWN]))
        elif asked is None or (remembered is None and not records.edges and request.user_id != ""):
            if at_once is not None:
                try:
                    made = at_once(catalogue, records)
                except Exception:
                    logger.exception("an answer could not be written at once; it is made step by step")
                if made is not None:
                    answered(made)
                    return
            meet = partial(self.lone_asker, request, catalogue, records, degraded)
        else:
            expected = remembered or stranger(asked)
            edges, known = self._recognise(asked, expected, joined, records)
            if not _is_all_read(known, expected, edges):
                answered(None)
                return
            self._remember(known)
            read = PersonRecords(records, known, edges)
            meet = partial(self._asker, request, Settled(catalogue, records, 1, degraded, read))
        try:
            made = build(meet())
        except Exception:
            logger.exception("a slate could not be built; it is tried once more")
            answered(None)
        else:
            answered(made)

    async def meet(self, request: SlateRequest, *, catalogue: Catalogue | None = None) -> Asker:
        """Read who asks, once: any number of slates can be built from it. Raises NoVersionError as `recommend` does.

        A request that says personalize=false, or whose user said so last, reads nothing about the person.
        With a `catalogue` of another version than the served one, the person is read as that version knows them. It
        returns when it is this request's turn to be answered.
        """
        self.turns.expected += 1
        try:
            return await self._meet(request, catalogue)
        finally:
            self.turns.expected -= 1

    async def _meet(self, request: SlateRequest, catalogue: Catalogue | None) -> Asker:
        request = self._placed(self._with_refusal(request, (request.user_id,)))
        asks_personally = request.personalize is not False
        user_id = request.user_id if asks_personally else None
        anonymous_id = request.anonymous_id if asks_personally else None
        if catalogue is None:
            settled = await self.settle(user_id=user_id, anonymous_id=anonymous_id, region=request.region)
        else:
            read = await self._read(catalogue, user_id, anonymous_id)
            settled = Settled(catalogue, read.records, read.reads, [], read)
        await self.turns.mine()
        return self._asker(request, settled)

    def lone_asker(
        self, request: SlateRequest, catalogue: Catalogue, records: OnlineRecords, degraded: list[str]
    ) -> Asker:
        """`_asker` of somebody of whom one name is known, or none."""
        person, feature_micros = self._person(records, catalogue, None, degraded)
        _leave_place(request, person)
        refuses = self._overlay.refuses_storing(request.user_id)
        return Asker(request, person, catalogue, 1, degraded, feature_micros, refuses)

    def _asker(self, request: SlateRequest, settled: Settled) -> Asker:
        degraded = settled.degraded
        person, feature_micros = self._person(settled.records, settled.catalogue, settled.read, degraded)
        _leave_place(request, person)
        names: Collection[str | None] = (request.user_id,)
        identity = settled.read.identity if settled.read is not None else None
        if identity is not None and (identity.user_id != request.user_id or len(identity.subjects) > 1):
            names = {request.user_id, *_names_of(identity)}
            seen = self._with_refusal(replace(request, user_id=identity.user_id), names)
            if seen.personalize is False:
                _leave_place(request, person, refuses=True)
                _leave_place(seen, person, refuses=True)
            request = seen
        return Asker(
            request,
            person,
            settled.catalogue,
            settled.reads,
            degraded,
            feature_micros,
            self._refuses_storing(names),
        )

    def answer(self, asker: Asker, slate: Slate, *, degraded: Sequence[str] = (), reads: int = 0) -> Answer:
        """A slate that was built from this asker, counted. `degraded`: why it is, beyond what reading them says;
        `reads`: further reads of the store that it took."""
        reasons = [*asker.degraded, *degraded] if degraded else asker.degraded
        count_soon(SLATES, slate.fallback_level)
        for reason in reasons:
            count_soon(DEGRADED, reason)
        return Answer(
            slate,
            asker.catalogue,
            asker.reads + reads,
            reasons,
            asker.feature_micros,
            self._overlay.heard_micros,
            asker.refuses_storing,
        )

    def _placed(self, request: SlateRequest) -> SlateRequest:
        """The request in the user's region, where it names none: until they turn out not to want to be known
        (`_leave_place`)."""
        if request.region is None and request.user_id is not None:
            region = self._overlay.region_of(request.user_id)
            if region is not None:
                request.region, request.region_of_user = region, True
        return request

    def _with_refusal(self, request: SlateRequest, names: Iterable[str | None]) -> SlateRequest:
        for name in names:
            if self._overlay.refuses_personalization(name):
                return with_refusal(request, refuses=True)
        return request

    def _refuses_storing(self, names: Iterable[str | None]) -> bool:
        return any(self._overlay.refuses_storing(name) for name in names)

    async def settle(
        self, *, user_id: str | None = None, anonymous_id: str | None = None, region: str | None = None
    ) -> Settled:
        """Read the person together with the pointer; when the pointer moved, load that version and read once more.

        When the store is down, or the new version cannot be loaded in time, the last known version keeps serving and
        the answer is degraded. Before the first version the answer comes of what the items API was told. Raises
        NoVersionError when there is neither.
        """
        current = self._shelf.current
        try:
            read = await self._read(current, user_id, anonymous_id)
        except DependencyError:
            if current is None:
                raise NoVersionError("the online store does not answer, and no version was loaded before") from None
            return Settled(current, None, 1, [STORE_DOWN])
        records = read.records
        if current is not None and records.pointer == current.version:
            return Settled(current, records, read.reads, [], read)
        if records.pointer is None:
            # The store was emptied: the version in memory is still the last one that was published.
            if current is None:
                return await self._settle_first(read, region)
            return Settled(current, records, read.reads, [VERSION_NOT_LOADED], read)
        try:
            async with asyncio.timeout(self._settings.bundle_wait_ms / 1000):
                moved_to = await self._shelf.switch_to(records.pointer)
        except (NightjarError, TimeoutError) as error:
            if current is None:
                raise NoVersionError(f"version {records.pointer} is published but not loaded: {error}") from error
            return Settled(current, records, read.reads, [VERSION_NOT_LOADED], read)
        if current is None and self._first is not None:
            self._first.leave()
        SECOND_READS.inc()
        try:
            again = await self._read(moved_to, user_id, anonymous_id)
            return Settled(moved_to, again.records, read.reads + again.reads, [], again)
        except DependencyError:
            return Settled(moved_to, None, read.reads + 1, [STORE_DOWN])

    async def _settle_first(self, read: PersonRecords, region: str | None) -> Settled:
        """No version was ever published here."""
        found = None if self._first is None else await self._first.catalogue(region)
        if found is None:
            raise EmptyShopError(
                "no version published yet, and no item known: put items (PUT /v1/items) to show the newest at once, "
                "or run the night: nightjar run nightly"
            )
        catalogue, degraded = found
        return Settled(catalogue, read.records, read.reads, degraded, read)

    async def _read(self, catalogue: Catalogue | None, user_id: str | None, anonymous_id: str | None) -> PersonRecords:
        """One read, with all devices of the person as far as this process remembers them.

        The edges come with every read, so what is remembered is never believed: when they say otherwise, or for a
        person who is new here, it reads again (counted). An edge that is written or undone counts in the next answer.
        """
        version = None if catalogue is None else catalogue.version
        if user_id is None and anonymous_id is None:
            return PersonRecords(await self._store.read(version=version, user_id=None, anonymous_id=None))
        asked = subject_key(user_id, anonymous_id)
        identity = self._identities.get(asked) or stranger(asked)
        wanted = dict.fromkeys((*identity.subjects, *identity.decided_by))
        for reads in range(1, MAX_READS + 1):
            joined = [subject for subject in wanted if subject != identity.primary]
            records = await self._store.read(
                version=version,
                user_id=identity.user_id,
                anonymous_id=None if user_id is not None else anonymous_id,
                joined=joined,
            )
            edges, known = self._recognise(asked, identity, joined, records)
            if _is_all_read(known, identity, edges):
                identity = known
                break
            if reads < MAX_READS:
                IDENTITY_READS.inc()
                identity = known
                wanted |= dict.fromkeys((*known.subjects, *known.decided_by))
        self._remember(identity)
        return PersonRecords(records, identity, edges, reads)

    def _recognise(
        self, asked: str, expected: Identity, joined: Sequence[str], records: OnlineRecords
    ) -> tuple[dict[str, Edges], Identity]:
        """The edges of all who were read, and who `asked` is by them."""
        subjects = (expected.primary, *joined)
        edges: dict[str, Edges] = {subject: _edges(records.edges.get(subject, {})) for subject in subjects}
        known = person_of(asked, edges, now_micros=self._wall_micros()) if records.edges else stranger(asked)
        return edges, known

    def _remember(self, identity: Identity) -> None:
        self._identities.pop(identity.asked, None)
        if identity != stranger(identity.asked):
            self._identities[identity.asked] = identity
            if len(self._identities) > REMEMBERED_PERSONS:
                self._identities.popitem(last=False)

    def _person(
        self, records: OnlineRecords | None, catalogue: Catalogue, read: PersonRecords | None, degraded: list[str]
    ) -> tuple[Person, int | None]:
        """The records as values. A record that cannot be used is counted, named in `degraded`, and left out."""
        if records is None:
            return Person(unavailable=STORE_DOWN, consent_unknown=True), None
        candidates: Sequence[Row] | None = None
        flags, unavailable, consent_unknown = 0, None, False
        if records.candidates is not None:
            try:
                candidates, flags = open_candidates(records.candidates, catalogue.version)
            except MixedVersionError:
                flags = read_candidates_header(records.candidates)[1]  # their no is a no in any version
                unavailable = _refuse(MIXED_VERSION, degraded)
            except ContractError:
                unavailable, consent_unknown = _refuse(DAMAGED_CANDIDATES, degraded), True
        session = UNKNOWN_SESSION
        if records.session is not None:
            try:
                session = (parts.records or session_record).read_session(records.session)
            except ContractError:
                unavailable, consent_unknown = _refuse(DAMAGED_SESSION, degraded), True
        if read is not None and read.identity is not None and records.joined:
            session = self._joined(read, session, degraded)
        denies = bool(flags & FLAG_PERSONALIZE_DENIED)
        # Who said no keeps no features: what is left of them grows old, and nobody misses it.
        segment = feature_micros = None
        if records.segment is not None and not denies:
            segment, feature_micros = self._segment(records, catalogue, degraded)
        return Person(candidates, denies, session, segment, unavailable, consent_unknown), feature_micros

    def _joined(self, read: PersonRecords, own: SessionState, degraded: list[str]) -> SessionState:
        """The person's record with what their devices add. A record that cannot be read may say no, so that it does:
        another device's adds nothing, that of the one who asks makes the answer non-personal."""
        assert read.identity is not None
        sessions = {read.identity.primary: own}
        for subject, record in read.records.joined.items():
            try:
                sessions[subject] = read_session(record)
            except ContractError:
                _refuse(DAMAGED_SESSION, degraded)
                sessions[subject] = SessionState(flags=FLAG_PERSONALIZE_DENIED)
        return join_sessions(read.identity, read.edges, sessions)

    def usable_segment(self, records: OnlineRecords, catalogue: Catalogue) -> tuple[str | None, int | None] | None:
        """(top category, its event time) of records in which nothing is to be counted or complained of; else None."""
        if records.segment is None or records.segment_time is None:
            return None, None
        try:
            category, moment = read_string_value(records.segment), read_timestamp_micros(records.segment_time)
        except ContractError:
            return None
        is_stale = (catalogue.as_of_micros - moment) / 1_000_000 > self._settings.feature_lag_seconds
        return None if is_stale else (category, moment)

    def _segment(
        self, records: OnlineRecords, catalogue: Catalogue, degraded: list[str]
    ) -> tuple[str | None, int | None]:
        """(top category, its event time); (None, time) for a null, and for one that lags too far behind the version:
        that is absent, counted, and named in `degraded`. Feast itself does not apply a ttl online."""
        found = self.usable_segment(records, catalogue)
        if found is not None:
            return found
        assert records.segment is not None
        assert records.segment_time is not None
        try:
            read_string_value(records.segment)
            moment = read_timestamp_micros(records.segment_time)
        except ContractError:
            _refuse(DAMAGED_FEATURE, degraded)
            return None, None
        STALE_FEATURES.labels(USER_VIEW).inc()
        degraded.append(STALE_FEATURE)
        return None, moment


def _leave_place(request: SlateRequest, person: Person, *, refuses: bool = False) -> None:
    """The region of a user who turns out not to want to be known is not used."""
    if request.region_of_user and (refuses or not as_allowed(request, person).personalized):
        request.region, request.region_of_user = None, False


def _ranked(slate: Slate) -> tuple[Slate, list[str]]:
    """(a slate for which a ranker was asked, why it is degraded), counted."""
    reason = None if slate.ranking is None else slate.ranking.reason
    count_soon(RANKINGS, reason or RANKED)
    return slate, [reason] if reason in FAILURES else []


def _refuse(why: str, degraded: list[str]) -> str:
    REFUSED_RECORDS.labels(why).inc()
    degraded.append(why)
    return why


def _joined_by(identity: Identity) -> list[str]:
    """Whose records come beside those of the one whom the others join."""
    primary = identity.primary
    return [subject for subject in dict.fromkeys((*identity.subjects, *identity.decided_by)) if subject != primary]


def _is_all_read(known: Identity, expected: Identity, edges: Mapping[str, Edges]) -> bool:
    """Whether what was read for `expected` is all that concerns `known`."""
    return known.user_id == expected.user_id and edges.keys() >= {*known.subjects, *known.decided_by}


def _names_of(identity: Identity) -> set[str]:
    """The user's current name and former ones: somebody may have refused under any of them."""
    return {subject[2:] for subject in (identity.primary, *identity.subjects) if subject.startswith("u:")}


def _edges(fields: Mapping[bytes, bytes]) -> dict[str, Edge]:
    """The edges of one subject; one that cannot be read is counted and is none."""
    edges: dict[str, Edge] = {}
    for field_name, record in fields.items():
        try:
            edges[field_name.decode()] = unpack_edge(record)
        except (ContractError, UnicodeDecodeError):
            REFUSED_RECORDS.labels(DAMAGED_EDGE).inc()
    return edges
