# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""What is new, first where somebody looks most, in native code. The twins are `new_items` and `category_interests`."""

import builtins

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.math cimport pow
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memmove

from serving.native.borrowed cimport PyUnicode_Compare
from serving.native.order cimport Room, sort_places
from serving.native.sessions cimport INTEREST, MARK, Record, Sections, two
from serving.native.shelves cimport NOWHERE, Shelves, shelves_of
from serving.native.shelving cimport Rung, Shelving, base_of, leave, rung_of
from serving.native.work cimport MOST, push

from feature_repo.contracts.packing import Source
from serving.native.columns import Declined
from serving.pipeline.new_items import INTEREST_WEIGHT, LIST_HEAD, MOST_LOOKED_AT, MOST_ROWS, fresh_items
from serving.pipeline.session_signals import DAY_MICROS, INTEREST_HALF_LIFE_DAYS
from serving.pipeline.trending import is_within


cdef enum:
    ROW_BYTES = 17  # of a candidate
    ROWS = 512      # of items that are put in order
    INTERESTS = 128

assert MOST_ROWS <= ROWS and LIST_HEAD <= INTERESTS
cdef uint32_t _NEW = Source.NEW
cdef Py_ssize_t _MOST_ROWS = MOST_ROWS
cdef Py_ssize_t _MOST_LOOKED_AT = MOST_LOOKED_AT
cdef Py_ssize_t _LIST_HEAD = LIST_HEAD
cdef double _WEIGHT = INTEREST_WEIGHT
cdef double _DAY = DAY_MICROS
cdef double _HALF_LIFE = INTEREST_HALF_LIFE_DAYS
cdef double _HALF = float("0.5")  # not a constant: pow(0.5, x) may not become another function
cdef object _sum = builtins.sum  # not written out by the compiler: Python's own rounds as it does
cdef Room _room = Room()


cdef class Fresh:
    def __cinit__(self, object rows, Shelves shelves):
        """Raises ValueError for more rows than anybody looks at."""
        cdef Py_ssize_t at
        if len(rows) > _MOST_LOOKED_AT:
            raise ValueError("too many rows")
        self.shelves = shelves
        self.numbers = <uint32_t*>PyMem_Malloc(_MOST_LOOKED_AT * sizeof(uint32_t))
        self.micros = <int64_t*>PyMem_Malloc(_MOST_LOOKED_AT * sizeof(int64_t))
        self.freshness = <double*>PyMem_Malloc(_MOST_LOOKED_AT * sizeof(double))
        self.categories = <int32_t*>PyMem_Malloc(_MOST_LOOKED_AT * sizeof(int32_t))
        if not (self.numbers and self.micros and self.freshness and self.categories):
            raise MemoryError()
        for at, (number, micros, freshness, _) in enumerate(rows):
            self.numbers[at], self.micros[at], self.freshness[at] = number, micros, freshness
            self.categories[at] = shelves.category(number)
        self.count = len(rows)

    def __dealloc__(self):
        PyMem_Free(self.numbers)
        PyMem_Free(self.micros)
        PyMem_Free(self.freshness)
        PyMem_Free(self.categories)

    def insert(self, Py_ssize_t at, uint32_t number, int64_t micros, double freshness):
        """An item has come, behind `at` others. The last one leaves where there are as many as anybody looks at."""
        cdef Py_ssize_t behind
        if not 0 <= at <= self.count or at >= _MOST_LOOKED_AT:
            return
        self.count = min(self.count + 1, _MOST_LOOKED_AT)
        behind = self.count - at - 1
        memmove(self.numbers + at + 1, self.numbers + at, behind * sizeof(uint32_t))
        memmove(self.micros + at + 1, self.micros + at, behind * sizeof(int64_t))
        memmove(self.freshness + at + 1, self.freshness + at, behind * sizeof(double))
        memmove(self.categories + at + 1, self.categories + at, behind * sizeof(int32_t))
        self.numbers[at], self.micros[at], self.freshness[at] = number, micros, freshness
        self.categories[at] = self.shelves.category(number)


cdef Fresh _fresh_of(object catalogue):
    """Of a catalogue, made once."""
    remembered = catalogue.remember("native")
    found = remembered.get("fresh")
    if found is None:
        found = remembered["fresh"] = Fresh(fresh_items(catalogue), shelves_of(catalogue))
    return found


cdef double interest(Shelves shelves, int32_t category, dict interests) except -1:
    """`new_items._interest`; `interests` by the number of a prefix."""
    cdef int32_t start = shelves.starts[category], count = shelves.counts[category], at
    if not interests or category == NOWHERE:
        return 0.0
    return _sum([interests.get(shelves.levels[start + at], 0.0) for at in range(count)]) / count


cdef Py_ssize_t shelve_fresh(
    Shelving shelf, object catalogue, dict interests, object category, double oldest, double* ceiling
) except -1:
    """The first rung of `new_slate`; how many candidates it gave. Of many rows only the best are put in order: the others
    are looked at when those are not enough."""
    cdef Shelves shelves = shelves_of(catalogue)
    cdef Fresh fresh = _fresh_of(catalogue)
    cdef Py_ssize_t paths = len(shelves.paths), at, count = 0, kept = 0, front = 0, behind = 0
    cdef Py_ssize_t most = min(shelf.wanted + shelf.work.entry_count + 8, MOST)
    cdef double* lifts = <double*>_room.of(paths * sizeof(double))
    cdef double scores[ROWS]
    cdef uint32_t numbers[ROWS]
    cdef uint32_t ranked[ROWS]
    cdef uint32_t rest[ROWS]
    cdef uint32_t spare[ROWS]
    cdef double lift, least, last, next_score = 0.0
    cdef int32_t mine
    cdef Rung rung
    for at in range(paths):
        lifts[at] = -1.0
    for at in range(fresh.count):
        if fresh.micros[at] < oldest or count == _MOST_ROWS:
            break
        mine = fresh.categories[at]
        lift = lifts[mine]
        if lift < 0:
            lift = 0.0
            if category is None or is_within(catalogue.category(fresh.numbers[at]), category):
                lift = (1 + _WEIGHT * interest(shelves, mine, interests)) / (1 + _WEIGHT)
            lifts[mine] = lift
        if lift > 0:
            numbers[count], scores[count] = fresh.numbers[at], fresh.freshness[at] * lift
            count += 1
    if not count:
        return 0
    last = scores[0]
    for at in range(count):
        push(shelf.work.heap, &kept, min(most, count), scores[at])
        last = min(last, scores[at])
    least = shelf.work.heap[0]
    for at in range(count):
        if scores[at] >= least:
            ranked[front] = <uint32_t>at
            front += 1
        else:
            rest[behind] = <uint32_t>at
            next_score = scores[at] if not behind else max(next_score, scores[at])
            behind += 1
    sort_places(ranked, front, scores, spare, None, None)
    rung = rung_of(scores[ranked[0]], last, _NEW, False, ceiling[0], shelf.count)
    for at in range(front):
        if not shelf.is_taken(&rung, numbers[ranked[at]], scores[ranked[at]]):
            behind = 0
            break
    if behind and not (shelf.count >= shelf.wanted and base_of(&rung, next_score) < rung.lowest):
        sort_places(rest, behind, scores, spare, None, None)
        for at in range(behind):
            if not shelf.is_taken(&rung, numbers[rest[at]], scores[rest[at]]):
                break
    leave(&rung, shelf.count, ceiling)
    return shelf.count - rung.before


cdef struct Looked:  # at an item, on a day
    int64_t day
    uint32_t number
    double halves


cdef dict interests_of(
    Record record, const uint8_t* packed, Py_ssize_t own, object segment, object catalogue, int64_t now_micros
):
    """`new_items.interests_of`, by the number of each prefix of a category."""
    cdef Shelves shelves = shelves_of(catalogue)
    cdef list by_category = []
    cdef dict shares = {}
    cdef int32_t category
    cdef Py_ssize_t at
    if record is not None:
        by_category = _looked_at(record, shelves, catalogue, now_micros)
    if not by_category:
        by_category = _listed(packed, own, shelves, catalogue)
    if not by_category and segment:
        found = shelves.paths.get(segment)
        by_category = [(shelves.add_path(segment) if found is None else found, 1.0)]
    for number, share in by_category:
        category = number
        for at in range(shelves.counts[category]):
            prefix = shelves.levels[shelves.starts[category] + at]
            shares[prefix] = shares.get(prefix, 0.0) + share
    return shares


cdef dict named_interests(dict interests, object catalogue):
    """`interests_of` by the names of the prefixes, as the twin has them."""
    cdef dict remembered = catalogue.remember("native"), prefixes = shelves_of(catalogue).prefixes
    cdef list names = remembered.get("prefixes")
    if names is None or len(names) < len(prefixes):
        names = remembered["prefixes"] = list(prefixes)  # numbered as they came
    return {names[prefix]: share for prefix, share in interests.items()}


cdef list _looked_at(Record record, Shelves shelves, object catalogue, int64_t now_micros):
    """`category_interests`: (category, share), most first."""
    cdef const Sections* told = &record.told
    cdef Looked looked[INTERESTS]
    cdef Looked one
    cdef Py_ssize_t at, to, count = 0, order
    cdef int64_t number
    cdef const char* row
    cdef double age
    cdef list item_ids = catalogue.item_ids
    cdef dict weights = {}, names = {}
    if told.interests > INTERESTS:
        raise Declined
    for at in range(told.interests):
        row = told.interest_rows + at * INTEREST
        number = record.number(row + 2)
        if number < 0 or shelves.category(number) == NOWHERE or _is_dismissed(record, number):
            continue
        one.day, one.number, one.halves = two(row), <uint32_t>number, two(row + 4)
        to = count
        while to > 0 and looked[to - 1].day >= one.day:
            order = looked[to - 1].day - one.day
            if order == 0:
                order = PyUnicode_Compare(item_ids[looked[to - 1].number], item_ids[one.number])
            if order == 0:
                raise Declined  # said twice
            if order < 0:
                break
            looked[to] = looked[to - 1]
            to -= 1
        looked[to] = one
        count += 1
    for at in range(count):
        age = <double>now_micros / _DAY - <double>looked[at].day - 1
        age = age if age > 0.0 else 0.0
        category = shelves.category(looked[at].number)
        names[category] = looked[at].number
        weights[category] = weights.get(category, 0.0) + looked[at].halves / 2 * pow(_HALF, age / _HALF_LIFE)
    return _shared(weights, names, catalogue)


cdef bint _is_dismissed(Record record, int64_t number) except -1:
    cdef Py_ssize_t at
    for at in range(record.told.dismissed):
        if record.number(record.told.dismissed_rows + at * MARK + 8) == number:
            return True
    return False


cdef list _listed(const uint8_t* packed, Py_ssize_t own, Shelves shelves, object catalogue):
    """`listed_categories`, in the same way."""
    cdef Py_ssize_t at
    cdef uint32_t number
    cdef int32_t category
    cdef dict weights = {}, names = {}
    for at in range(min(own, _LIST_HEAD)):
        memcpy(&number, packed + at * ROW_BYTES, 4)
        category = shelves.category(number) if <Py_ssize_t>number < shelves.size else NOWHERE
        if category != NOWHERE:
            names[category] = number
            weights[category] = weights.get(category, 0.0) + 1.0 / <double>(1 + at)
    return _shared(weights, names, catalogue)


cdef list _shared(dict weights, dict names, object catalogue):
    """(category, its share), most first, ties by path; `names` has an item of each."""
    total = _sum(list(weights.values()))
    if not total > 0:
        return []
    ordered = sorted([(-weight, catalogue.category(names[one]), one) for one, weight in weights.items()])
    return [(one, -weight / total) for weight, _, one in ordered]
