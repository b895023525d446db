# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""What the places of a page share: who asks, what is shown already, and how a place ends. `pages` makes the places."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport INT64_MIN, int64_t, uint8_t

from serving.native.answers cimport HEADER, AnswerWriter, deeds_of, hex_of, policy_text
from serving.native.columns cimport Columns
from serving.native.pieces cimport Items, Out, give_back, items_of, take_out
from serving.native.sessions cimport EVENTS, Record, hash_of, hear_events, pick, told_of
from serving.native.votes cimport BUYS, Votes
from serving.native.work cimport Event, Work, take_work
from serving.native.work cimport give_back as give_back_work
from serving.native.writing cimport close_answer, close_decision, open_decision

import orjson

from serving.pipeline.values import Reason


cdef object _dumps = orjson.dumps
cdef Py_ssize_t _MOST_REMEMBERED = 4096
cdef dict _worded = {}
"""Words of a reason -> the reason as it is written."""


cdef bytes in_words(str words):
    """A reason that names no past item."""
    found = _worded.get(words)
    if found is None:
        if len(_worded) >= _MOST_REMEMBERED:
            _worded.clear()
        found = _worded[words] = bytes(_dumps(Reason(None, None, words)._asdict()))
    return found


cdef class PageWork:
    """A page under way, apart from its places.

    payloads  the decisions of the places so far     levels  the rungs of those that were made here
    """

    cdef int open(self, bint may_store, bytes candidates, bytes session) except -1:
        """What all places of the page are made of."""
        cdef object request = self.request
        cdef Py_ssize_t places[EVENTS]
        cdef Py_ssize_t picked
        cdef Votes heard
        self.prepared = items_of(self.catalogue)
        self.candidates, self.heard.count, self.own, self.packed = candidates, 0, 0, NULL
        if candidates is not None:
            self.own = self.writer.rows_of(candidates, self.catalogue)
            self.packed = <const uint8_t*>PyBytes_AS_STRING(candidates) + HEADER
        if session is not None:
            self.record = Record.__new__(Record)
            self.record.open(session, self.columns.by_name())
            heard = Votes.__new__(Votes)
            heard.columns, heard.now_micros = self.columns, self.now_micros
            self.events = heard.work = take_work()
            picked = pick(&self.record.told, request.session_id, self.writer.gap_micros, self.now_micros, places)
            hear_events(heard, &self.record.told, places, picked)
            self.heard = told_of(&self.record.told, places, picked)
        self.may_store = may_store and not self.writer.refuses_storing(request.user_id)
        if request.user_id is not None:
            self.subject = "u:" + request.user_id
        elif request.anonymous_id is not None:
            self.subject = "a:" + request.anonymous_id
        if self.may_store and self.subject is not None and request.session_id is not None:
            self.hashed = hex_of(hash_of(request.session_id), False)
        self.taken, self.numbers, self.payloads, self.levels = [], [], [], []
        for item_id in request.exclude_item_ids:
            self.take(item_id)
        if self.item_id is not None and self.item_id not in request.exclude_item_ids:
            self.take(self.item_id)
        self.content, self.decision = take_out(), take_out()
        return self.content.put_bytes(b'{"placements":[')

    def taken_ids(self):
        """What no further place may show."""
        return frozenset(self.taken)

    def add(self, bytes content, bytes payload, object item_ids):
        """The next place as the twin made it."""
        if self.count:
            self.content.put_one(44)
        self.content.put_bytes(content)
        self.payloads.append(payload)
        self.count += 1
        for item_id in item_ids:
            self.take(item_id)

    def body(self):
        """The page. Nothing may be asked of it any more."""
        cdef Out out = self.content
        out.put_bytes(b'],"page":')
        out.put_text(self.name)
        out.put_bytes(b',"model_version":')
        out.put_text(self.catalogue.version)
        out.put_bytes(b',"took_ms":')
        out.put_thousandths((self.writer.timer() - self.started) // 1000)
        out.put_bytes(b',"degraded":false,"online_reads":1}')
        made = PyBytes_FromStringAndSize(out.data, out.size)
        give_back(out)
        give_back(self.decision)
        if self.events is not None:
            give_back_work(self.events)
        self.content = self.decision = self.events = None
        return made

    cdef int take(self, object item_id) except -1:
        """No further place may have it. It is taken once."""
        cdef int64_t number = self.columns.number_of(item_id)
        self.taken.append(item_id)
        self.is_sorted = False
        if number >= 0:
            self.numbers.append(number)
        return 0

    cdef int exclude_taken(self, Votes slate) except -1:
        for number in self.numbers:
            slate.exclude_number(<int64_t>number, False)
        return 0

    cdef int hear(self, Votes slate) except -1:
        """The events of the session, as if the slate had heard them itself."""
        cdef Py_ssize_t at
        cdef Event* event
        if self.events is None:
            return 0
        for at in range(self.events.event_count):
            event = slate.work.event()
            event[0] = self.events.events[at]
        return 0

    cdef int exclude_known(self, Votes slate, object rules) except -1:
        """What the person knows, and what the page shows already."""
        cdef int deeds = deeds_of(rules)
        slate.exclude_events(deeds)
        if self.record is not None:
            self.record.exclude_dismissed(slate)
            if deeds & BUYS:
                self.record.exclude_bought(slate, INT64_MIN if rules is None else -1)
        return self.exclude_taken(slate)

    cdef int exclude_marks(self, Votes slate) except -1:
        """What was ever bought or dismissed, and what the page shows already."""
        if self.record is not None:
            self.record.exclude_dismissed(slate)
            self.record.exclude_bought(slate, INT64_MIN)
        return self.exclude_taken(slate)

    cdef int rung(self, str name, Py_ssize_t taken) except -1:
        if taken and self.level is None:
            self.level = name
        return 0

    cdef int close_place(self, object policy, object propensities, object filtered, bytes more) except -1:
        """The rest of the answer, and its decision. What the place shows is taken from here on."""
        cdef Out out = self.content
        cdef Placed* placed = &self.placed
        cdef Py_ssize_t at
        cdef object subject = self.subject if self.may_store else None
        close_answer(
            out, self.catalogue, (self.writer.timer() - self.started) // 1000, self.level, self.why_not, None,
            self.asked_micros, self.feature_micros if placed.is_personal else None,
            placed.heard.newest if placed.heard.count else None, self.changes_micros
        )
        if filtered is not None:
            out.put_bytes(b',"filtered":')
            out.put_bytes(_dumps(filtered))
        out.put_one(125)

        out = self.decision
        out.size = 0
        open_decision(
            out, self.catalogue, self.answer_id, (<tuple>self.asked)[0], self.placement, subject, self.hashed, self.level,
            self.why_not, None, self.asked_micros
        )
        close_decision(out, self.prepared, placed.numbers, placed.sources, self.scores, propensities)
        self.put_inputs(policy)
        out.put_bytes(more)
        out.put_bytes(b',"page":')
        out.put_text(self.name)
        out.put_bytes(b',"place":')
        out.put_int(self.count)
        out.put_bytes(b"}}")
        payload = PyBytes_FromStringAndSize(out.data, out.size)
        for at in range(placed.count):
            self.taken.append(self.columns.item_ids[placed.numbers[at]])
            self.numbers.append(placed.numbers[at])
        self.is_sorted = False
        self.payloads.append(payload)
        self.levels.append(self.level)
        self.count += 1
        return 0

    cdef int put_inputs(self, object policy) except -1:
        """As `AnswerWriter.put_inputs`, of a place."""
        cdef Out out = self.decision
        cdef object request = self.request
        cdef bint is_first = True
        out.put_bytes(b'{"num_results":')
        out.put_int((<tuple>self.asked)[1])
        out.put_bytes(b',"tuning":')
        out.put_text(self.writer.digest)
        out.put_bytes(b',"personalized":true' if self.placed.is_personal else b',"personalized":false')
        if request.category is not None:
            out.put_bytes(b',"category":')
            out.put_text(request.category)
        if request.region is not None and (self.may_store or not request.region_of_user):
            out.put_bytes(b',"region":')
            out.put_text(request.region)
        if request.personalize is not None:
            out.put_bytes(b',"personalize":true')
        if policy is not None:
            out.put_bytes(b',"policy":')
            out.put_bytes(policy_text(policy))
        if not self.may_store:
            return out.put_bytes(b',"store":false')
        if self.taken:
            if not self.is_sorted:
                self.taken.sort()
                self.is_sorted = True
            out.put_bytes(b',"exclude_item_ids":[')
            for item_id in self.taken:
                if not is_first:
                    out.put_one(44)
                is_first = False
                out.put_text(item_id)
            out.put_one(93)
        if self.placed.heard.count:
            out.put_bytes(b',"session":{"events":')
            out.put_int(self.placed.heard.count)
            out.put_bytes(b',"newest":')
            out.put_int(self.placed.heard.newest)
            out.put_bytes(b',"digest":')
            out.put_text(hex_of(self.placed.heard.digest, True))
            out.put_one(125)
        return 0
