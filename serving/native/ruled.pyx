# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""A slate that a policy arranges, in native code. Its twin is `pipeline.ruled_slate` with what it calls; that says what
is right.

What is odd is declined, as in `slates`, and so is a slate that would be short: that one is filled from the lists that are
left, and tells what its filters took out.
"""

import builtins

from libc.math cimport isfinite, pow
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from serving.native.columns cimport Column, Columns, PopularRows, columns_of, popular_rows
from serving.native.chances cimport leave_to_chance
from serving.native.filters cimport filters_of
from serving.native.order cimport Room, sort_places
from serving.native.reasons cimport explain
from serving.native.shelves cimport Shelves, shelves_of
from serving.native.variety cimport MOST_PLACES, Caps, Diverse, Near
from serving.native.votes cimport Votes
from serving.native.work cimport MOST, Entry, Work, give_back, push, take_work

from feature_repo.contracts.packing import CANDIDATE_ROW, NO_REASON, CandidateRows, Source
from feature_repo.contracts.session_blend import BELOW, FLOOR
from serving.native.columns import Declined
from serving.pipeline.exploration import EXPLORED_POOL
from serving.pipeline.rotation import DAY_MICROS
from serving.pipeline.untried import MOST_UNTRIED, untried_items
from serving.pipeline.values import RungReport


cdef enum:
    ROW_BYTES = 17  # of a candidate: number u32, score f32, source u8, two reasons u32
    MOST_NEW = 200

assert MOST_UNTRIED == MOST_NEW
assert CANDIDATE_ROW.size == ROW_BYTES and CANDIDATE_ROW.format == "<IfBII"

cdef uint32_t NONE = NO_REASON
cdef uint32_t _SEGMENT = Source.SEGMENT
cdef uint32_t _CATEGORY = Source.CATEGORY
cdef uint32_t _REGION = Source.REGION
cdef uint32_t _POPULARITY = Source.POPULARITY
cdef uint32_t _STATIC = Source.STATIC
cdef uint32_t _NEW = Source.NEW
cdef double _BELOW = BELOW
cdef double _FLOOR = FLOOR
cdef double _UNIT = 2.0**-53
cdef int64_t _DAY_MICROS = DAY_MICROS
cdef Py_ssize_t _EXPLORED_POOL = EXPLORED_POOL
cdef object _tuple_of = tuple.__new__
cdef object _sum = builtins.sum  # not written out by the compiler: Python's own rounds as it does
cdef list _free_rooms = []


cdef class Ruled(Votes):
    """One slate under way."""

    cdef int begin(self, Columns columns, object catalogue, object filters, Py_ssize_t size, int64_t now_micros) except -1:
        self.columns, self.wanted, self.now_micros = columns, size, now_micros
        self.shelves, self.filters = shelves_of(catalogue), filters_of(filters, columns.refused.size)
        self.has_times = bool(columns.expire) or bool(columns.available)
        self.weight = 0.0
        return 0

    cdef int vote(self, object tuning, double most) except -1:
        """`count_votes` of all that was heard, with the weight of the session; whether items have votes."""
        cdef Py_ssize_t at
        cdef double total
        self.weight = 0.0
        self.has_votes = False
        if not self.work.event_count:
            return 0
        self.cast(tuning)
        if not self.work.ballot_count or not self.count_votes():  # with no weight nothing is left out
            return 0
        total = _sum([self.work.ballots[at].weight for at in range(self.work.ballot_count)])
        if total == -1:
            raise Declined
        self.weight = most * total / (total + 1)
        if not (isfinite(self.weight) and self.weight >= 0):
            raise Declined
        self.has_votes = True
        return 0

    cdef Py_ssize_t climb(self, object rows, object source, Py_ssize_t wanted, double* ceiling) except -1:
        """One rung of `RuledSlate._fill`: takes its candidates; how many."""
        cdef Py_ssize_t before = self.candidate_count, count = len(rows)
        cdef double lowest = ceiling[0], top, last
        cdef Column record
        if source is None:
            if type(rows) is not CandidateRows:
                raise Declined
            record = Column(rows.packed, ROW_BYTES)
            if count > record.size:
                raise Declined
            return self.climb_rows(<const uint8_t*>record.data, count, None, 0, wanted, ceiling)
        top, last = <object>rows[0][1], <object>rows[count - 1][1]
        if last > 0 and top == 0:
            raise Declined
        for row in rows:
            self.take(row[0], row[1], top, last, NULL, <object>int(source), ceiling[0], &lowest)
            if self.candidate_count >= wanted:
                break
        if self.candidate_count > before:
            ceiling[0] = lowest * _BELOW
        return self.candidate_count - before

    cdef Py_ssize_t climb_rows(
        self, const uint8_t* packed, Py_ssize_t count, PopularRows popular, uint32_t origin, Py_ssize_t wanted,
        double* ceiling
    ) except -1:
        """`climb` of packed rows, or of a popular list."""
        cdef Py_ssize_t before = self.candidate_count, at
        cdef double lowest = ceiling[0], top, last
        cdef const uint32_t* numbers = NULL
        cdef const double* scores = NULL
        cdef uint32_t number
        cdef bint is_packed = packed is not NULL
        if not is_packed:
            numbers, scores = <const uint32_t*>popular.numbers.data, <const double*>popular.scores.data
        if not count:
            return 0
        top = _score_at(packed, 0) if is_packed else scores[0]
        last = _score_at(packed, count - 1) if is_packed else scores[count - 1]
        if last > 0 and top == 0:
            raise Declined
        for at in range(count):
            if is_packed:
                memcpy(&number, packed + at * ROW_BYTES, 4)
                self.take(
                    number, _score_at(packed, at), top, last, packed + at * ROW_BYTES, origin, ceiling[0], &lowest
                )
            else:
                self.take(numbers[at], scores[at], top, last, NULL, origin, ceiling[0], &lowest)
                if self.candidate_count >= wanted:
                    break
        if self.candidate_count > before:
            ceiling[0] = lowest * _BELOW
        return self.candidate_count - before

    cdef int take(
        self, uint32_t number, double score, double top, double last, const uint8_t* row, uint32_t origin,
        double ceiling, double* lowest
    ) except -1:
        """One row becomes a candidate, if it may. `row`: where it lies when it says itself where it comes from."""
        cdef Entry* entry = self.work.enter(number)
        cdef double base = score
        if entry.base > 0 or not self.admits(entry):
            return 0
        if last > 0:
            base = base / top
        elif top - last > 0:
            base = (base - last) / (top - last)
        else:
            base = 1.0
        if base < _FLOOR:
            base = _FLOOR
        base = ceiling * base
        if not base > 0:
            return 0
        if not isfinite(base):
            raise Declined
        entry.base = lowest[0] = base
        entry.source, entry.first, entry.second = origin, NONE, NONE
        if row is not NULL:
            entry.source = row[8]
            memcpy(&entry.first, row + 9, 4)
            memcpy(&entry.second, row + 13, 4)
        self.candidate_count += 1
        return 0

    cdef int take_rungs(
        self, const uint8_t* packed, Py_ssize_t own, object segment, object request, object catalogue
    ) except -1:
        """`candidates` of the `ladder`: rung by rung until there are some more than places."""
        cdef Py_ssize_t wanted = max(3 * self.wanted, self.wanted + 20)
        cdef double ceiling = 1.0
        if own and self.is_full("personal", self.climb_rows(packed, own, None, 0, wanted, &ceiling), wanted):
            return 0
        if segment:
            found = catalogue.popular_in_category(segment)
            if found and self.is_full_by("segment", found[1], _SEGMENT, wanted, &ceiling):
                return 0
        if request.category:
            found = catalogue.popular_in_category(request.category)
            if found and self.is_full_by("category", found[1], _CATEGORY, wanted, &ceiling):
                return 0
        if request.region:
            found = catalogue.popular_by_region.get(request.region)
            if found is not None and self.is_full_by("region", found, _REGION, wanted, &ceiling):
                return 0
        if self.added is not None:
            for rows in self.added:
                if self.is_full_by("filtered_category", rows, _CATEGORY, wanted, &ceiling):
                    return 0
        if catalogue.popular and self.is_full_by("popular", catalogue.popular, _POPULARITY, wanted, &ceiling):
            return 0
        if catalogue.static and self.is_full_by("static", catalogue.static, _STATIC, wanted, &ceiling):
            return 0
        if self.filters is not None:
            raise Declined  # the catalogue itself comes next
        return 0

    cdef bint is_full_by(self, str name, object rows, uint32_t source, Py_ssize_t wanted, double* ceiling) except -1:
        cdef PopularRows popular = popular_rows(rows)
        return self.is_full(
            name, self.climb_rows(NULL, popular.numbers.size, popular, source, wanted, ceiling), wanted
        )

    cdef bint is_full(self, str name, Py_ssize_t taken, Py_ssize_t wanted) except -1:
        if taken and self.level is None:
            self.level = name
        return self.candidate_count >= wanted

    cdef Py_ssize_t score(self, bint has_votes, double least, uint32_t* ranked, double* keys) except -1:
        """`score_candidates` of all, and `min_relevance`: fills `ranked` and `keys`; how many are left."""
        cdef Work work = self.work
        cdef double share = 1 + self.weight
        cdef Py_ssize_t at, count = 0
        cdef Entry* entry
        for at in range(work.entry_count):
            entry = &work.entries[at]
            if entry.base > 0:
                entry.score = (entry.base + self.weight * entry.vote) / share if has_votes else entry.base
            elif entry.vote > 0:
                entry.score = self.weight * entry.vote / share
            else:
                continue
            if not isfinite(entry.score):
                raise Declined
            if least > 0 and entry.score < least:
                continue
            keys[at] = entry.score
            ranked[count] = <uint32_t>at
            count += 1
        return count

    cdef int lead(self, Py_ssize_t wanted) except -1:
        """`leading_candidates`."""
        cdef Work work = self.work
        cdef Py_ssize_t at, to, count = 0
        cdef double base, other
        cdef list item_ids = self.columns.item_ids
        for at in range(work.entry_count):
            base = work.entries[at].base
            if not base > 0:
                continue
            to = count
            while to > 0:
                other = work.entries[work.order[to - 1]].base
                if base < other or base == other and not (
                    item_ids[work.entries[at].number] < item_ids[work.entries[work.order[to - 1]].number]
                ):
                    break
                if to < wanted:
                    work.order[to] = work.order[to - 1]
                to -= 1
            if to < wanted:
                work.order[to] = <uint32_t>at
                count = min(count + 1, wanted)
        for at in range(count):
            work.entries[work.order[at]].is_leading = True
        return 0

    cdef Py_ssize_t enter_untried(self, uint32_t* news) except -1:
        """Entries of the new items that exploration may show, in their order; how many."""
        cdef Entry* entry
        cdef Py_ssize_t count = 0
        for number in untried_items(self.shelves.catalogue):
            entry = self.work.enter(<uint32_t>number)
            if entry.base > 0 or entry.vote > 0 or not self.admits(entry):
                continue
            entry.source, entry.first, entry.second = _NEW, NONE, NONE
            entry.score = 0.0
            news[count] = <uint32_t>(entry - self.work.entries)
            count += 1
        return count

    cdef list place(
        self, Room room, object rules, Py_ssize_t depth, object rotation_seed, dict shown, object exploration_seed
    ):
        """`RuledSlate.slate`: the places of the slate in `work.order`. Returns their propensities, or None where it
        would be short. The arguments are those of `arrange`."""
        cdef Work work = self.work
        cdef Py_ssize_t size = self.wanted, count, sorted_count, near_count, at, of, chosen = 0
        cdef double rotation = rules.rotation, fatigue = rules.fatigue, share
        cdef double* keys
        cdef int32_t* near_at
        cdef uint32_t* ranked
        cdef uint32_t* spare
        cdef uint32_t* slate
        cdef uint64_t seed
        cdef int64_t span, age, micros
        cdef Entry* entry
        cdef Caps caps
        cdef Diverse diverse
        cdef list spares, untried, propensities
        cdef uint32_t news[MOST_NEW]
        cdef Py_ssize_t new_count = 0
        if rules.exploration > 0 and rules.exploration_new > 0 and not rules.min_relevance:
            new_count = self.enter_untried(news)
        count = work.entry_count
        keys = <double*>room.of(
            count * (2 * sizeof(double) + 5 * sizeof(uint32_t)) + depth * sizeof(Near) + 64
        )
        diverse = Diverse.__new__(Diverse)
        diverse.shelves, diverse.columns, diverse.work = self.shelves, self.columns, work
        diverse.brands = <int32_t*>(keys + count)
        diverse.groups = diverse.brands + count
        diverse.near = <Near*>(keys + 2 * count)
        ranked = <uint32_t*>(diverse.near + depth)
        spare = ranked + count
        slate = spare + count
        near_at = <int32_t*>(slate + count)
        diverse.near_at = near_at
        diverse.heap = near_at + count
        diverse.categories = <int32_t*>spare  # nothing is sorted any more by then
        count = self.score(self.has_votes, rules.min_relevance, ranked, keys)
        sorted_count = _best_first(self, ranked, count, depth, keys, spare, rotation > 0 or fatigue > 0)
        near_count = min(depth, count)
        memset(near_at, 0xFF, work.entry_count * sizeof(int32_t))
        for at in range(near_count):
            near_at[ranked[at]] = <int32_t>at
        if rotation > 0:
            seed = rotation_seed
            for at in range(near_count):
                entry = &work.entries[ranked[at]]
                keys[ranked[at]] = entry.score * (1.0 - rotation * _chance(<uint64_t>entry.number ^ seed))
        if fatigue > 0:
            span = <int64_t>rules.fatigue_days * _DAY_MICROS
            for number, showings in shown.items():
                entry = work.find(<uint32_t>number)
                if entry is NULL or near_at[entry - work.entries] < 0:
                    continue
                micros = showings[0]
                age = self.now_micros - micros
                age = 0 if age < 0 else age
                if age < span:
                    of = entry - work.entries
                    share = 1.0 - fatigue * (1.0 - <double>age / <double>span)
                    keys[of] = keys[of] * pow(share, <double>showings[1])
        if rotation > 0 or fatigue > 0:
            for at in range(near_count):
                if not isfinite(keys[ranked[at]]):
                    raise Declined
            sort_places(ranked, near_count, keys, spare, work, self.columns.item_ids)

        caps = Caps.__new__(Caps)
        caps.shelves = self.shelves
        caps.by_group = bool(rules.one_per_group) and self.shelves.group_column is not None
        caps.most_category = 0 if rules.max_per_category is None else rules.max_per_category
        caps.depth = 0 if rules.category_depth is None else rules.category_depth
        caps.most_brand = 0 if rules.max_per_brand is None or self.shelves.brand_column is None else rules.max_per_brand
        at = 0
        if rules.diversity != 0:
            diverse.diversity = rules.diversity
            diverse.count = near_count
            for of in range(near_count):
                diverse.near[of].place = ranked[of]
                near_at[ranked[of]] = <int32_t>of
            diverse.begin(keys)
            while chosen < size:
                of = diverse.next()
                if of < 0:
                    break
                if caps.refuses(work.entries[ranked[of]].number):
                    continue
                caps.take(work.entries[ranked[of]].number)
                slate[chosen] = ranked[of]
                chosen += 1
                if chosen < size:
                    diverse.take(of)
            at = near_count
        while chosen < size and at < count:
            if at == sorted_count:  # those behind, in order of score
                sort_places(ranked + sorted_count, count - sorted_count, keys, spare, work, self.columns.item_ids)
                sorted_count = count
            if not caps.refuses(work.entries[ranked[at]].number):
                caps.take(work.entries[ranked[at]].number)
                slate[chosen] = ranked[at]
                chosen += 1
            at += 1
        if chosen < size:
            return None

        propensities = [1.0] * size
        if rules.exploration > 0:
            for at in range(chosen):
                near_at[slate[at]] = -2  # it has a place
            spares = []
            for at in range(count):
                if len(spares) == _EXPLORED_POOL:
                    break
                if at == sorted_count:
                    sort_places(ranked + sorted_count, count - sorted_count, keys, spare, work, self.columns.item_ids)
                    sorted_count = count
                if near_at[ranked[at]] == -2 or caps.refuses(work.entries[ranked[at]].number):
                    continue
                caps.take(work.entries[ranked[at]].number)
                spares.append(ranked[at])
            untried = []
            for at in range(new_count):
                if len(untried) == _EXPLORED_POOL:
                    break
                if not caps.refuses(work.entries[news[at]].number):
                    caps.take(work.entries[news[at]].number)
                    untried.append(news[at])
            leave_to_chance(
                slate, chosen, spares, untried, propensities, rules.exploration, rules.exploration_new, exploration_seed
            )
        if self.has_votes:
            self.lead(size)
        memcpy(work.order, slate, chosen * sizeof(uint32_t))
        return propensities


cdef inline double _score_at(const uint8_t* packed, Py_ssize_t at) noexcept:
    cdef float score
    memcpy(&score, packed + at * ROW_BYTES + 4, 4)
    return <double>score


cdef inline double _chance(uint64_t value) noexcept:
    """`rotation._chance`."""
    value = (value ^ (value >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * <uint64_t>0x94D049BB133111EB
    return <double>((value ^ (value >> 31)) >> 11) * _UNIT


cdef Py_ssize_t _best_first(
    Ruled ruled, uint32_t* ranked, Py_ssize_t count, Py_ssize_t depth, const double* keys, uint32_t* spare,
    bint may_be_unordered
) except -1:
    """The best `depth` of the ranked to the front, with all that tie with the last of them; how many. They are in order;
    with `may_be_unordered` only where others tie with the last."""
    cdef Work work = ruled.work
    cdef Py_ssize_t at, kept = 0, front = 0, behind = 0
    cdef double least
    if depth <= MOST and count > depth:
        for at in range(count):
            push(work.heap, &kept, depth, keys[ranked[at]])
        least = work.heap[0]
        for at in range(count):
            if keys[ranked[at]] >= least:
                ranked[front] = ranked[at]
                front += 1
            else:
                spare[behind] = ranked[at]
                behind += 1
        memcpy(ranked + front, spare, behind * sizeof(uint32_t))
    else:
        front = count
    if may_be_unordered and front <= depth:
        return front
    sort_places(ranked, front, keys, spare, work, ruled.columns.item_ids)
    return front


cdef Room take_room():
    """Memory that nobody uses."""
    return _free_rooms.pop() if _free_rooms else Room()


cdef int give_back_room(Room room) except -1:
    _free_rooms.append(room)
    return 0


def arrange(
    object rules, object request, object person, list session, object catalogue, object tuning, object now_micros,
    object taken_out, list filters, object rungs, Py_ssize_t depth, object rotation_seed, object shown,
    object exploration_seed,
):
    """(items, rungs, weight of the session, propensities) of `RuledSlate` for a request that is allowed, names no items
    and is not to be explained; None when the twin has to answer.

    filters   those of placement and request (`item_filters`)
    depth     how many of the best are put into a new order
    shown     item number -> `fatigue.Showings`
    """
    cdef Columns columns = columns_of(catalogue)
    cdef Ruled ruled
    cdef Room room
    if columns is None or not columns.are_of(catalogue) or not 0 < request.num_results <= MOST_PLACES // 4:
        return None
    ruled = Ruled.__new__(Ruled)
    ruled.work = take_work()
    room = take_room()
    try:
        ruled.begin(columns, catalogue, filters, request.num_results, now_micros)
        return _arrange(
            ruled, room, rules, request, person, session, catalogue, tuning, taken_out, rungs, depth,
            rotation_seed, shown, exploration_seed,
        )
    except (Declined, OverflowError, TypeError):
        return None
    finally:
        give_back(ruled.work)
        give_back_room(room)


cdef object _arrange(
    Ruled ruled, Room room, object rules, object request, object person, list session, object catalogue,
    object tuning, object taken_out, object rungs, Py_ssize_t depth, object rotation_seed, object shown,
    object exploration_seed,
):
    cdef Py_ssize_t size = ruled.wanted, wanted = max(3 * size, size + 20), taken
    cdef double ceiling = 1.0
    cdef list reports = [], propensities
    ruled.exclude_ruled(taken_out, session, person.session.dismissed)
    ruled.hear(session)
    ruled.vote(tuning, tuning.session_weight if person.candidates else tuning.session_weight_alone)
    for rung in rungs:
        name, rows, source = rung
        taken = ruled.climb(rows, source, wanted, &ceiling) if rows else 0
        reports.append(_tuple_of(RungReport, (name, len(rows), taken)))
        if ruled.candidate_count >= wanted:
            break
    propensities = ruled.place(room, rules, depth, rotation_seed, shown, exploration_seed)
    if propensities is None:
        return None
    return explain(ruled, size, catalogue, request, person), reports, ruled.weight, propensities
