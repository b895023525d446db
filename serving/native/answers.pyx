# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""From the records of a person to the answer and its decision, in one call and without objects between. The twin is the way
through `Recommender`, `build_slate`, `render_answer` and `recommendation_decision`; that says what is right.

Only for one who is known by one name, or by none, whose records are whole, of the served version, and say no to nothing.
What `slates` declines is declined here too: then the twin answers, and writes the same.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport INT64_MIN, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from serving.native.borrowed cimport PyDict_GetItemWithError
from serving.native.columns cimport Columns, columns_of
from serving.native.filters cimport filters_of
from serving.native.pieces cimport Items, Out, Written, give_back, items_of, put_item, put_reason, take_out
from serving.native.reasons cimport because_of_session, is_of_session
from serving.native.sessions cimport Heard, hash_of, hear_record
from serving.native.slates cimport ROW_BYTES, Slates
from serving.native.votes cimport BUYS, DISMISSES, TOUCHES, Votes
from serving.native.work cimport MOST, Entry, Work, take_work
from serving.native.work cimport give_back as give_back_work
from serving.native.writing cimport close_answer, close_decision, open_answer, open_decision

import orjson

from feature_repo.contracts.list_shares import MAX_PARTS
from feature_repo.contracts.packing import (
    CANDIDATES_HEADER_BYTES, FLAG_PERSONALIZE_DENIED, FORMAT_V1, FORMAT_V2, NO_REASON, Source,
)
from feature_repo.contracts.publication import pack_version
from serving.native.columns import Declined
from serving.pipeline.explain import base_reasons
from serving.pipeline.item_filters import category_lists, item_filter
from serving.pipeline.policy import EXCLUDE, KEEP, SESSION
from serving.pipeline.values import Person


assert CANDIDATES_HEADER_BYTES == HEADER
cdef object _dumps = orjson.dumps
cdef uint32_t NONE = NO_REASON
cdef uint32_t _SESSION = Source.SESSION
assert (FORMAT_V1, FORMAT_V2) == (1, 2)
cdef Py_ssize_t _MOST_PARTS = MAX_PARTS
cdef uint8_t _DENIED = FLAG_PERSONALIZE_DENIED
cdef frozenset _OF_THE_REQUEST = frozenset({int(Source.SEGMENT), int(Source.CATEGORY), int(Source.REGION)})
"""Sources whose words depend on who asks, and for what."""
cdef dict _written = {}
cdef Py_ssize_t _MOST_REMEMBERED = 4096
cdef dict _rules_of = {}
"""Placement -> its rules, whether items say why, and the policy as a decision has it."""
cdef const char* _HEX = b"0123456789abcdef"


cdef str hex_of(uint64_t number, bint is_little):
    """16 digits: of the number, or of its bytes as they lie in memory."""
    cdef char digits[16]
    cdef int at
    cdef uint8_t byte
    for at in range(8):
        byte = <uint8_t>(number >> (8 * at if is_little else 56 - 8 * at))
        digits[2 * at] = _HEX[byte >> 4]
        digits[2 * at + 1] = _HEX[byte & 15]
    return (<bytes>digits[:16]).decode("ascii")


cdef class AnswerWriter:
    """Of one process."""

    def __init__(self, tuning, digest, timer, refuses_storing):
        """`digest` is that of the tuning; `timer` is monotonic, in ns; `refuses_storing` of a user id."""
        self.tuning, self.digest, self.timer, self.refuses_storing = tuning, digest, timer, refuses_storing
        self.gap_micros = int(tuning.session_gap_seconds * 1000000)

    def write(self, object question, object started, object catalogue, object read, object segment, object feature_micros,
              object now_micros, object changes_micros):
        """(body, payload of the decision, fallback level) for a question (`answering.Question`) of somebody who was read
        (`OnlineRecords`); None when the twin has to answer.

        segment, feature_micros  what the records say of the person's category; `now_micros`  the instant of the slate
        """
        cdef object request = (<tuple>question)[0]
        cdef object policy = request.policy
        cdef Columns columns = columns_of(catalogue)
        cdef Slates slate
        cdef Out out
        if not is_answered_here(request, columns, catalogue):
            return None
        if policy is not None and (policy.rules.arrange or not is_told_by_records(policy)):
            return None
        slate = Slates.__new__(Slates)
        slate.work = take_work()
        out = take_out()
        try:
            slate.begin(columns, request.num_results, now_micros)
            if policy is not None:
                filters = passing(policy, catalogue, now_micros, (<tuple>read)[2] is None)
                slate.filters = filters_of(filters, columns.refused.size)
                slate.added = list(category_lists(filters, catalogue).values())
            return self.written(
                slate, out, question, request, started, catalogue, (<tuple>read)[1], (<tuple>read)[2], segment, feature_micros,
                changes_micros,
            )
        except (Declined, KeyError, OverflowError, TypeError, ValueError, AttributeError):
            return None
        finally:
            give_back(out)
            give_back_work(slate.work)

    cdef tuple written(
        self, Slates slate, Out out, object question, object request, object started, object catalogue,
        bytes candidates, bytes session, object segment, object feature_micros, object changes_micros
    ):
        cdef Work work = slate.work
        cdef object policy = request.policy, rules = None if policy is None else policy.rules
        cdef Items prepared
        cdef Heard heard
        cdef const uint8_t* packed = NULL
        cdef Py_ssize_t own = 0, count, at
        cdef uint32_t numbers[MOST]
        cdef uint32_t sources[MOST]
        cdef list scores = []
        cdef object session_micros = None, reason
        cdef str level
        cdef bytes body
        if candidates is not None:
            own = self.rows_of(candidates, catalogue)
            packed = <const uint8_t*>PyBytes_AS_STRING(candidates) + HEADER
        heard.count = 0
        if session is not None:
            heard = hear_record(
                slate, session, request.session_id, self.gap_micros, deeds_of(rules), INT64_MIN if rules is None else -1
            )
        for item_id in request.exclude_item_ids:
            slate.exclude(item_id, False)
        count = slate.fill(None, packed, own, segment, request, catalogue, self.tuning)
        if count < slate.wanted:
            return None
        level = slate.level or "session"
        reason = why_not_personal(level, request, candidates)
        if heard.count:
            session_micros = heard.newest

        prepared = items_of(catalogue)
        open_answer(out, (<tuple>question)[1], (<tuple>question)[2])
        put_slate(slate, out, prepared, count, catalogue, request, segment, numbers, sources, scores,
                  policy is None or policy.reasons)
        close_answer(
            out, catalogue, (self.timer() - started) // 1000, level, reason, None, (<tuple>question)[4], feature_micros,
            session_micros, changes_micros
        )
        out.put_one(125)
        body = PyBytes_FromStringAndSize(out.data, out.size)

        self.decide(out, question, catalogue, level, reason, prepared, numbers, sources, scores, None, &heard)
        out.put_bytes(b"}}")
        return body, PyBytes_FromStringAndSize(out.data, out.size), level

    cdef int decide(
        self, Out out, object question, object catalogue, object level, object reason, Items prepared,
        const uint32_t* numbers, const uint32_t* sources, list scores, object propensities, const Heard* heard
    ) except -1:
        """The decision in place of what was written, but for its last two braces: those of the inputs and its own.
        `propensities`: None where nothing was left to chance."""
        cdef object request = (<tuple>question)[0]
        cdef object subject = None, hashed = None
        cdef bint may_store = (<tuple>question)[3] and not self.refuses_storing(request.user_id)
        if may_store and (request.user_id is not None or request.anonymous_id is not None):
            subject = "u:" + request.user_id if request.user_id is not None else "a:" + request.anonymous_id
            if request.session_id is not None:
                hashed = hex_of(hash_of(request.session_id), False)
        out.size = 0
        open_decision(
            out, catalogue, (<tuple>question)[1], (<tuple>question)[7], (<tuple>question)[2], subject, hashed, level, reason, None, (<tuple>question)[4]
        )
        close_decision(out, prepared, numbers, sources, scores, propensities)
        return self.put_inputs(out, request, may_store, heard)

    cdef Py_ssize_t rows_of(self, bytes candidates, object catalogue) except -1:
        """How many rows a record has. Raises Declined where it is of another version, damaged, or a no."""
        cdef const char* data = PyBytes_AS_STRING(candidates)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(candidates)
        cdef uint16_t count
        cdef int32_t days
        cdef uint32_t version_hash
        cdef Py_ssize_t whole, parts
        if self.version is None or catalogue.version != self.version:
            self.days, self.version_hash = pack_version(catalogue.version)
            self.version = catalogue.version
        if size < HEADER or not 1 <= <uint8_t>data[0] <= 2 or <uint8_t>data[1] & _DENIED:
            raise Declined
        memcpy(&count, data + 2, 2)
        memcpy(&days, data + 4, 4)
        memcpy(&version_hash, data + 8, 4)
        whole = HEADER + <Py_ssize_t>count * ROW_BYTES
        if data[0] == 2:  # shares of the parts lie behind the rows; only who asks for an explanation reads them
            parts = <uint8_t>data[whole] if size > whole else 0
            if not 1 <= parts <= _MOST_PARTS:
                raise Declined
            whole += 1 + parts + count * (parts - 1)
        if size != whole or days != self.days or version_hash != self.version_hash:
            raise Declined
        return count

    cdef int put_inputs(self, Out out, object request, bint may_store, const Heard* heard) except -1:
        """The decision's inputs, but for their brace."""
        out.put_bytes(b'{"num_results":')
        out.put_int(request.num_results)
        out.put_bytes(b',"tuning":')
        out.put_text(self.digest)
        out.put_bytes(b',"personalized":true')
        if request.category is not None:
            out.put_bytes(b',"category":')
            out.put_text(request.category)
        if request.region is not None and (may_store or not request.region_of_user):
            out.put_bytes(b',"region":')
            out.put_text(request.region)
        if request.personalize is not None:
            out.put_bytes(b',"personalize":true')
        if request.policy is not None:
            out.put_bytes(b',"policy":')
            out.put_bytes(policy_text(request.policy))
        if not may_store:
            return out.put_bytes(b',"store":false')
        if request.exclude_item_ids:
            out.put_bytes(b',"exclude_item_ids":')
            out.put_bytes(_dumps(sorted(request.exclude_item_ids)))
        if heard.count:
            out.put_bytes(b',"session":{"events":')
            out.put_int(heard.count)
            out.put_bytes(b',"newest":')
            out.put_int(heard.newest)
            out.put_bytes(b',"digest":')
            out.put_text(hex_of(heard.digest, True))
            out.put_one(125)
        return 0


cdef bint is_answered_here(object request, Columns columns, object catalogue):
    """Whether nothing about the request itself, or the version, asks for the steps."""
    return (
        not request.explain and not request.recent_events and request.personalize is not False
        and columns is not None and columns.are_of(catalogue) and 0 < request.num_results <= MOST
    )


cdef bint is_told_by_records(object policy):
    """Whether native code knows from the records of a person what these rules take out."""
    cdef object rules = policy.rules
    return (
        policy.item_ids is None and rules.frequency_cap is None and rules.seen in (KEEP, SESSION)
        and rules.bought in (KEEP, EXCLUDE)
    )


cdef list passing(object policy, object catalogue, object now_micros, bint is_nobody):
    """The filters of placement and request. Raises Declined where one asks about somebody."""
    cdef list found = []
    for text in (policy.rules.filter, policy.filter):
        if text is not None:
            one = item_filter(text, catalogue, now_micros=now_micros)
            if one.asks_person and not is_nobody:
                raise Declined
            found.append(one)
    return found


cdef int deeds_of(object rules) except -1:
    """For which deeds of the session an item leaves; `rules` None: of a slate without a policy."""
    cdef int deeds = DISMISSES
    if rules is None or rules.seen != KEEP:
        deeds |= TOUCHES
    if rules is None or rules.bought != KEEP:
        deeds |= BUYS
    return deeds


cdef bytes policy_text(object policy):
    """`SlatePolicy.inputs` as a decision has it; that of a placement is remembered."""
    if policy.filter is not None:
        return _dumps(policy.inputs())
    found = _rules_of.get(policy.placement)
    if found is None or (<tuple>found)[0] is not policy.rules or (<tuple>found)[1] is not policy.reasons:
        if len(_rules_of) >= _MOST_REMEMBERED:
            _rules_of.clear()
        found = policy.rules, policy.reasons, bytes(_dumps(policy.inputs()))
        _rules_of[policy.placement] = found
    return (<tuple>found)[2]


cdef object why_not_personal(str level, object request, bytes candidates):
    """`fallback_reason`."""
    if level == "personal":
        return None
    if request.user_id is None:
        return "no_user"
    return "unknown_user" if candidates is None else "no_eligible_candidates"


cdef int put_slate(
    Votes slate, Out out, Items prepared, Py_ssize_t count, object catalogue, object request, object segment,
    uint32_t* numbers, uint32_t* sources, list scores, bint with_reasons
) except -1:
    """`explain_slate` as it is written, with number, source and score of each item."""
    cdef Work work = slate.work
    cdef Entry entry
    cdef Written* written
    cdef Py_ssize_t at, named
    cdef dict known = {}
    cdef list kept = []
    cdef bint is_first, is_session
    for at in range(count):
        entry = work.entries[work.order[at]]
        prepared.soon_item(entry.number)
        prepared.soon_interest(entry.first)
        prepared.soon_interest(entry.second)
    for at in range(count):
        entry = work.entries[work.order[at]]
        numbers[at] = entry.number
        is_session = is_of_session(slate, &entry)
        sources[at] = _SESSION if is_session else entry.source
        scores.append(entry.score)
        put_item(out, prepared.of(entry.number), entry.score, at + 1, sources[at])
        said = None
        named = 0
        if not with_reasons:
            pass
        elif is_session:
            said = because_of_session(slate, kept, entry.number, catalogue)
        else:
            named = put_interest(out, prepared, entry.first, 0, catalogue)
            named += put_interest(out, prepared, entry.second, named, catalogue)
            if not named and entry.source in _OF_THE_REQUEST:
                said = known.get(entry.source)
                if said is None:
                    said = known[entry.source] = base_reasons(
                        (entry.source, NONE, NONE), catalogue, request, Person(segment=segment)
                    )
            elif not named:
                out.put_bytes(of_everybody(entry.source, catalogue, request))
        if said is not None:
            is_first = True
            for reason in <tuple>said:
                if not is_first:
                    out.put_one(44)
                is_first = False
                put_reason(out, prepared.place_of(reason), reason)
        written = prepared.of(entry.number)  # once more: what was remembered may have been forgotten
        out.put(written.text + written.head, written.size - written.head)
    return 0


cdef bytes of_everybody(uint32_t source, object catalogue, object request):
    """The reasons of a source that says the same to everybody, as they are written."""
    cdef PyObject* found = PyDict_GetItemWithError(_written, source)
    if found is not NULL:
        return <bytes>found
    said = base_reasons((source, NONE, NONE), catalogue, request, Person())
    text = _dumps([reason._asdict() for reason in said])[1:-1]
    if len(_written) < 256:
        _written[source] = text
    return text


cdef Py_ssize_t put_interest(Out out, Items prepared, uint32_t number, Py_ssize_t named, object catalogue) except -1:
    """1 when the past item is still there, and named as a reason."""
    cdef Written* written = prepared.interest(number, catalogue)
    if written is NULL:
        return 0
    if named:
        out.put_one(44)
    out.put(written.text, written.size)
    return 1
