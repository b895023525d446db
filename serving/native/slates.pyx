# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""The common slate in native code. Its twin is `pipeline.slate` with all that it calls; that says what is right.

One call does what `personal_exclusions`, `session_ballots`, `count_votes`, `fill_candidates`, `score_candidates`,
`order_candidates` and `explain_slate` do, on the bytes as they lie in the records and in the memory maps. Arithmetic is
that of Python's floats, in the same order (and the build forbids fused operations), so a slate is the same to the bit.

Whatever is odd is declined, and the twin answers: a number that is not finite, a division by zero, a neighbour that a
row names twice, a list of a kind that is not known here, a source without a name. A slate that would be short is
declined too: it is answered with the counts of all filters.

Each place in a record or a map is held against the length of what it lies in before it is read.
"""

import builtins

from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from serving.native.borrowed cimport PyUnicode_Compare
from serving.native.columns cimport Column, Columns, PopularRows, columns_of, popular_rows
from serving.native.filters cimport filters_of
from serving.native.reasons cimport explain
from serving.native.votes cimport Votes
from serving.native.work cimport MOST, Entry, Work, give_back, push, take_work

from feature_repo.contracts.packing import CANDIDATE_ROW, NO_REASON, CandidateRows, Source
from feature_repo.contracts.session_blend import BELOW, FLOOR
from serving.native.columns import Declined
from serving.pipeline.values import RungReport


assert CANDIDATE_ROW.size == ROW_BYTES and CANDIDATE_ROW.format == "<IfBII"

cdef uint32_t NONE = NO_REASON
cdef uint32_t _SEGMENT = Source.SEGMENT
cdef uint32_t _CATEGORY = Source.CATEGORY
cdef uint32_t _REGION = Source.REGION
cdef uint32_t _POPULARITY = Source.POPULARITY
cdef uint32_t _STATIC = Source.STATIC
cdef double _BELOW = BELOW
cdef double _FLOOR = FLOOR
cdef double _ALMOST = 1 - 1e-9
cdef object _tuple_of = tuple.__new__
cdef object _sum = builtins.sum  # not written out by the compiler: Python's own rounds as it does


cdef class Slates(Votes):
    """One slate under way: what it is made of, for the steps below."""

    cdef double within_reach(self) noexcept:
        """`_within_reach`."""
        cdef Work work = self.work
        cdef Py_ssize_t at, kept = 0
        cdef Entry* entry
        for at in range(work.entry_count):
            entry = &work.entries[at]
            if entry.base > 0 or entry.vote > 0:
                push(work.heap, &kept, self.wanted, entry.base + self.weight * entry.vote)
        return work.heap[0] * _ALMOST if kept >= self.wanted else 0.0

    cdef int score(self, bint has_votes) except -1:
        """`score_candidates`: fills `score`, 0 for what has none."""
        cdef Work work = self.work
        cdef double share = 1 + self.weight, least = 0.0
        cdef Py_ssize_t at, kept = 0
        cdef Entry* entry
        for at in range(work.entry_count):
            entry = &work.entries[at]
            entry.score = 0.0
            if entry.base > 0:
                entry.score = (entry.base + self.weight * entry.vote) / share if has_votes else entry.base
                push(work.heap, &kept, self.wanted, entry.score)
        if not has_votes:
            return 0
        if kept >= self.wanted and self.weight > 0:
            least = work.heap[0] * share / self.weight * _ALMOST
        for at in range(work.entry_count):
            entry = &work.entries[at]
            if entry.vote > 0 and entry.vote >= least and not entry.base > 0:
                entry.score = self.weight * entry.vote / share
            if not isfinite(entry.score):
                raise Declined
        return 0

    cdef Py_ssize_t order(self, bint by_base) except -1:
        """`order_candidates`: places of the best entries in `work.order`, best first; how many. Ties by item id."""
        cdef Work work = self.work
        cdef Entry* entries = work.entries
        cdef Py_ssize_t at, to, count = 0
        cdef double score, other
        for at in range(work.entry_count):
            score = entries[at].base if by_base else entries[at].score
            if not score > 0:
                continue
            to = count
            while to > 0:
                other = entries[work.order[to - 1]].base if by_base else entries[work.order[to - 1]].score
                if score < other or score == other and not self.is_before(at, work.order[to - 1]):
                    break
                if to < self.wanted:
                    work.order[to] = work.order[to - 1]
                to -= 1
            if to < self.wanted:
                work.order[to] = <uint32_t>at
                count = min(count + 1, self.wanted)
        return count

    cdef bint is_before(self, Py_ssize_t one, Py_ssize_t other) except -1:
        ids = self.columns.item_ids
        return PyUnicode_Compare(ids[self.work.entries[one].number], ids[self.work.entries[other].number]) < 0

    cdef Py_ssize_t climb(self, object rows, uint32_t source, double* ceiling, bint has_votes) except -1:
        """One rung of `fill_candidates`: takes its candidates; how many."""
        cdef Column record
        cdef PopularRows popular
        if type(rows) is not CandidateRows:
            popular = popular_rows(rows)
            return self.climb_rows(NULL, popular.numbers.size, popular, source, ceiling, has_votes)
        record = Column(rows.packed, ROW_BYTES)
        if len(rows) > record.size:
            raise Declined
        return self.climb_rows(<const uint8_t*>record.data, len(rows), None, source, ceiling, has_votes)

    cdef Py_ssize_t climb_rows(
        self, const uint8_t* packed, Py_ssize_t count, PopularRows popular, uint32_t source, double* ceiling,
        bint has_votes
    ) except -1:
        """`climb` of packed rows, or of a popular list."""
        cdef Work work = self.work
        cdef double share = 1.0 + self.weight, lowest = ceiling[0], base, top, last, least
        cdef Py_ssize_t at, place, before = self.candidate_count
        cdef bint is_positive, is_packed = packed is not NULL
        cdef const uint32_t* numbers = NULL
        cdef const double* scores = NULL
        cdef uint32_t number
        cdef Entry* entry
        if not is_packed:
            numbers, scores = <const uint32_t*>popular.numbers.data, <const double*>popular.scores.data
        if count == 0:
            return 0
        top = _score_at(packed, 0) if is_packed else scores[0]
        last = _score_at(packed, count - 1) if is_packed else scores[count - 1]
        is_positive = last > 0
        if is_positive and top == 0:
            raise Declined
        for at in range(count):
            base = _base_of(_score_at(packed, at) if is_packed else scores[at], top, last, is_positive, ceiling[0])
            if self.candidate_count >= self.wanted and base / share < lowest / share:
                if not has_votes:
                    break
                least = self.within_reach()
                if is_packed:
                    for place in range(count):
                        number = _number_at(packed, place)
                        entry = work.find(number)
                        if entry is NULL or not entry.vote > 0 or entry.base > 0:
                            continue
                        base = _base_of(_score_at(packed, place), top, last, is_positive, ceiling[0])
                        if base > 0 and base + self.weight * entry.vote >= least:
                            self.take(entry, base, source, packed, place)
                else:
                    for place in range(work.entry_count):
                        entry = &work.entries[place]
                        if not entry.vote > 0 or entry.base > 0:
                            continue
                        at = popular.find(entry.number)
                        if at < 0:
                            continue
                        base = _base_of(scores[at], top, last, is_positive, ceiling[0])
                        if base > 0 and base + self.weight * entry.vote >= least:
                            self.take(entry, base, source, NULL, 0)
                break
            if not base > 0:
                continue
            entry = work.enter(_number_at(packed, at) if is_packed else numbers[at])
            if not entry.base > 0 and self.admits(entry):
                self.take(entry, base, source, packed, at)
                lowest = base
        if self.candidate_count > before:
            ceiling[0] = lowest * _BELOW
        return self.candidate_count - before

    cdef int take(self, Entry* entry, double base, uint32_t source, const uint8_t* packed, Py_ssize_t at) except -1:
        """The entry is a candidate. `source` 0: the row says where it comes from."""
        if not isfinite(base):
            raise Declined
        entry.base = base
        self.candidate_count += 1
        entry.source, entry.first, entry.second = source, NONE, NONE
        if source == 0:
            entry.source = packed[at * ROW_BYTES + 8]
            memcpy(&entry.first, packed + at * ROW_BYTES + 9, 4)
            memcpy(&entry.second, packed + at * ROW_BYTES + 13, 4)
        return 0

    cdef int begin(self, Columns columns, Py_ssize_t wanted, int64_t now_micros) except -1:
        self.columns, self.wanted, self.now_micros = columns, wanted, now_micros
        self.has_times = bool(columns.expire) or bool(columns.available)
        self.weight = 0.0
        return 0

    cdef Py_ssize_t fill(
        self, object candidates, const uint8_t* packed, Py_ssize_t own, object segment, object request,
        object catalogue, object tuning
    ) except -1:
        """From the ballots of what was heard to the order: how many places are filled, at most those that are wanted.
        One's own list is `candidates`, or the `own` rows of `packed`."""
        cdef Work work = self.work
        cdef bint has_votes = False
        cdef double ceiling = 1.0
        cdef Py_ssize_t count, at
        cdef double total, most
        if work.event_count:
            self.cast(tuning)
        if candidates is not None:
            own = len(candidates)
        if work.ballot_count:
            most = tuning.session_weight if own else tuning.session_weight_alone
            total = _sum([work.ballots[at].weight for at in range(work.ballot_count)])
            self.weight = most * total / (total + 1)
            if not (isfinite(self.weight) and self.weight >= 0):
                raise Declined
            has_votes = self.count_votes() > 0
            if not has_votes:
                self.weight = 0.0
        self.take_rungs(candidates, packed, own, segment, request, catalogue, &ceiling, has_votes)
        if self.filters is not None and self.candidate_count < self.wanted:
            raise Declined  # the catalogue itself comes next
        self.score(has_votes)
        if has_votes:
            count = self.order(True)
            for at in range(count):
                work.entries[work.order[at]].is_leading = True
        return self.order(False)

    cdef int take_rungs(
        self, object candidates, const uint8_t* packed, Py_ssize_t own, object segment, object request,
        object catalogue, double* ceiling, bint has_votes
    ) except -1:
        """`fill_candidates` of the `ladder`: rung by rung until the slate is full."""
        cdef Py_ssize_t taken
        if own:
            if candidates is None:
                taken = self.climb_rows(packed, own, None, 0, ceiling, has_votes)
            else:
                taken = self.climb(candidates, 0, ceiling, has_votes)
            if self.is_full("personal", own, taken):
                return 0
        if segment:
            found = catalogue.popular_in_category(segment)
            if found and self.is_full_by("segment", found[1], _SEGMENT, ceiling, has_votes):
                return 0
        if request.category:
            found = catalogue.popular_in_category(request.category)
            if found and self.is_full_by("category", found[1], _CATEGORY, ceiling, has_votes):
                return 0
        if request.region:
            found = catalogue.popular_by_region.get(request.region)
            if found is not None and self.is_full_by("region", found, _REGION, ceiling, has_votes):
                return 0
        if self.added is not None:
            for rows in self.added:
                if self.is_full_by("filtered_category", rows, _CATEGORY, ceiling, has_votes):
                    return 0
        if catalogue.popular and self.is_full_by("popular", catalogue.popular, _POPULARITY, ceiling, has_votes):
            return 0
        if catalogue.static:
            self.is_full_by("static", catalogue.static, _STATIC, ceiling, has_votes)
        return 0

    cdef bint is_full_by(self, str name, object rows, uint32_t source, double* ceiling, bint has_votes) except -1:
        return self.is_full(name, len(rows), self.climb(rows, source, ceiling, has_votes))

    cdef bint is_full(self, str name, Py_ssize_t offered, Py_ssize_t taken) except -1:
        """Notes a rung, and says whether there are candidates enough."""
        if self.rungs is not None:
            self.rungs.append(_tuple_of(RungReport, (name, offered, taken)))
        if taken and self.level is None:
            self.level = name
        return self.candidate_count >= self.wanted


cdef inline uint32_t _number_at(const uint8_t* packed, Py_ssize_t at) noexcept:
    cdef uint32_t number
    memcpy(&number, packed + at * ROW_BYTES, 4)
    return number


cdef inline double _score_at(const uint8_t* packed, Py_ssize_t at) noexcept:
    cdef float score
    memcpy(&score, packed + at * ROW_BYTES + 4, 4)
    return <double>score


cdef inline double _base_of(double score, double top, double last, bint is_positive, double ceiling) noexcept:
    """`ceiling` x `normaliser`."""
    cdef double base
    if is_positive:
        base = score / top
    elif top - last > 0:
        base = (score - last) / (top - last)
    else:
        return ceiling * 1.0
    return ceiling * (_FLOOR if base < _FLOOR else base)


def choose(
    object request, object person, list session, object catalogue, object tuning, object now_micros,
    object taken_out=None, object filters=(), list added=None,
):
    """(items, rungs, weight of the session, fallback level) of `build_slate` for a request that is allowed and is not to be
    explained; None when the twin has to answer. Of one that has a policy, which arranges nothing:

    taken_out  numbers that it takes out, beyond stock and filters
    filters    those of placement and request (`item_filters`)
    added      the popular lists that filters name
    """
    cdef Columns columns = columns_of(catalogue)
    cdef Slates slate
    cdef Py_ssize_t count
    if columns is None or not columns.are_of(catalogue) or not 0 < request.num_results <= MOST:
        return None
    slate = Slates.__new__(Slates)
    slate.work = take_work()
    try:
        slate.begin(columns, request.num_results, now_micros)
        slate.rungs = []
        if taken_out is None:
            slate.exclude_all(session, person.session, request.exclude_item_ids)
        else:
            slate.filters, slate.added = filters_of(filters, columns.refused.size), added
            slate.hear(session)
            slate.exclude_ruled(taken_out, session, person.session.dismissed)
        count = slate.fill(person.candidates, NULL, 0, person.segment, request, catalogue, tuning)
        if count < slate.wanted:
            return None
        items = explain(slate, count, catalogue, request, person)
        return items, slate.rungs, slate.weight, slate.level or "session"
    except Declined:
        return None
    finally:
        give_back(slate.work)
