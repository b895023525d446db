# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""A slate that a policy arranges, from the records of a person to the answer and its decision in one call: what `answers`
is for slates without a policy. The twin is the way through `Recommender`, `RuledSlate`, `render_answer` and
`recommendation_decision`; that says what is right.

Declined is what `answers` and `ruled` decline: named items, spans, a frequency cap, and a filter that asks about somebody.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t

from serving.native.answers cimport (
    HEADER, AnswerWriter, deeds_of, is_answered_here, is_told_by_records, passing, put_slate, why_not_personal
)
from serving.native.chances cimport day_seed
from serving.native.columns cimport Columns, columns_of
from serving.native.order cimport Room
from serving.native.pieces cimport Items, Out, give_back, items_of, take_out
from serving.native.ruled cimport Ruled, give_back_room, take_room
from serving.native.sessions cimport (
    EVENTS, Heard, Record, give_back_record, hear_events, pick, take_record, told_of
)
from serving.native.showings cimport left_alone
from serving.native.variety cimport MOST_PLACES
from serving.native.votes cimport BUYS
from serving.native.work cimport take_work
from serving.native.work cimport give_back as give_back_work
from serving.native.writing cimport close_answer, open_answer

from serving.native.columns import Declined
from serving.pipeline.item_filters import category_lists
from serving.pipeline.rotation import DAY_MICROS
from serving.pipeline.ruled_slate import LOOKED_AT

cdef int64_t _DAY_MICROS = DAY_MICROS
cdef Py_ssize_t _LOOKED_AT = LOOKED_AT
cdef Py_ssize_t _MOST = MOST_PLACES // 4


cdef class ArrangedWriter(AnswerWriter):
    """Of one process."""

    def arrange(self, object question, object started, object catalogue, object read, object segment,
                object feature_micros, int64_t now_micros, object changes_micros):
        """As `AnswerWriter.write`, for a question with a policy."""
        cdef object request = (<tuple>question)[0]
        cdef Columns columns = columns_of(catalogue)
        cdef Ruled slate
        cdef Room room
        cdef Out out
        if not (is_answered_here(request, columns, catalogue) and request.num_results <= _MOST):
            return None
        if request.policy.asks_ranker or not (is_told_by_records(request.policy) and request.policy.rules.arrange):
            return None
        slate = Ruled.__new__(Ruled)
        slate.work = take_work()
        room = take_room()
        out = take_out()
        try:
            filters = passing(request.policy, catalogue, now_micros, (<tuple>read)[2] is None)
            slate.begin(columns, catalogue, filters, request.num_results, now_micros)
            slate.added = list(category_lists(filters, catalogue).values())
            return self.arranged(
                slate, room, out, question, request, started, catalogue, (<tuple>read)[1], (<tuple>read)[2], segment,
                feature_micros, changes_micros,
            )
        except (Declined, KeyError, OverflowError, TypeError, ValueError, AttributeError):
            return None
        finally:
            give_back(out)
            give_back_room(room)
            give_back_work(slate.work)

    cdef tuple arranged(
        self, Ruled slate, Room room, Out out, object question, object request, object started, object catalogue,
        bytes candidates, bytes session, object segment, object feature_micros, object changes_micros
    ):
        cdef object policy = request.policy, rules = policy.rules, seed = 0, session_micros = None, reason
        cdef Py_ssize_t size = slate.wanted, own = 0
        cdef const uint8_t* packed = NULL
        cdef Record record = None
        cdef Heard heard
        cdef Items prepared
        cdef dict shown = {}
        cdef list propensities, scores = []
        cdef uint32_t numbers[MOST_PLACES]
        cdef uint32_t sources[MOST_PLACES]
        cdef str level
        cdef bytes body
        if candidates is not None:
            own = self.rows_of(candidates, catalogue)
            packed = <const uint8_t*>PyBytes_AS_STRING(candidates) + HEADER
        heard.count = 0
        if session is not None:
            record = take_record()
            heard = self.hear(slate, record, session, request, rules)
        for item_id in request.exclude_item_ids:
            slate.exclude(item_id, False)
        slate.vote(self.tuning, self.tuning.session_weight if own else self.tuning.session_weight_alone)
        slate.take_rungs(packed, own, segment, request, catalogue)
        if rules.rotation > 0:
            seed = day_seed(_subject_of(request), slate.now_micros)
        if rules.fatigue > 0 and record is not None:
            shown = left_alone(record, slate.now_micros - <int64_t>rules.fatigue_days * _DAY_MICROS)
        propensities = slate.place(room, rules, max(4 * size, _LOOKED_AT), seed, shown, policy.seed)
        if propensities is None:
            return None
        level = slate.level or "session"
        reason = why_not_personal(level, request, candidates)
        if heard.count:
            session_micros = heard.newest

        prepared = items_of(catalogue)
        open_answer(out, (<tuple>question)[1], (<tuple>question)[2])
        put_slate(
            slate, out, prepared, size, catalogue, request, segment, numbers, sources, scores, policy.reasons
        )
        close_answer(
            out, catalogue, (self.timer() - started) // 1000, level, reason, None, (<tuple>question)[4], feature_micros,
            session_micros, changes_micros
        )
        out.put_one(125)
        body = PyBytes_FromStringAndSize(out.data, out.size)

        self.decide(out, question, catalogue, level, reason, prepared, numbers, sources, scores, propensities, &heard)
        out.put_bytes(b"}}")
        if record is not None:
            give_back_record(record)
        return body, PyBytes_FromStringAndSize(out.data, out.size), level

    cdef Heard hear(self, Ruled slate, Record record, bytes session, object request, object rules) except *:
        """The session is heard, and what the rules take out of it, or of what was bought or dismissed, leaves."""
        cdef Py_ssize_t places[EVENTS]
        cdef Py_ssize_t picked
        cdef int deeds = deeds_of(rules)
        record.open(session, slate.columns.by_name())
        picked = pick(&record.told, request.session_id, self.gap_micros, slate.now_micros, places)
        hear_events(slate, &record.told, places, picked)
        if deeds & BUYS:
            record.exclude_bought(slate, -1)
        slate.exclude_events(deeds)
        record.exclude_dismissed(slate)
        return told_of(&record.told, places, picked)


cdef object _subject_of(object request):
    """`subject_key`; None: nobody."""
    if request.user_id is not None:
        return "u:" + request.user_id
    return None if request.anonymous_id is None else "a:" + request.anonymous_id
