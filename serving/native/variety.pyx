# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""How many places a category, a brand and a product may have, and how unlike they are, in native code. The twins are
`pipeline.caps` and `pipeline.diversity`.
"""

from libc.stdint cimport int32_t, uint32_t

from serving.native.columns cimport Columns
from serving.native.shelves cimport EMPTY, NOWHERE, Shelves
from serving.native.work cimport Entry, Work

from serving.native.columns import Declined
from serving.pipeline.diversity import SAME_BRAND

cdef double _SAME_BRAND = SAME_BRAND


cdef class Caps:
    """`caps.SlateCaps`."""

    cdef bint refuses(self, uint32_t number) except -1:
        cdef int32_t mine
        cdef Py_ssize_t at, same = 0
        if self.by_group:
            mine = self.shelves.group(number)
            if mine > EMPTY:
                for at in range(self.count):
                    if self.groups[at] == mine:
                        return True
        if self.most_category:
            mine = self.shelves.category(number)
            if mine != 0:
                mine = self.shelves.cut(mine, self.depth)
                same = 0
                for at in range(self.count):
                    same += self.categories[at] == mine
                if same >= self.most_category:
                    return True
        if self.most_brand:
            mine = self.shelves.brand(number)
            if mine > EMPTY:
                same = 0
                for at in range(self.count):
                    same += self.brands[at] == mine
                if same >= self.most_brand:
                    return True
        return False

    cdef int take(self, uint32_t number) except -1:
        cdef int32_t category
        if self.count == MOST_PLACES:
            raise Declined
        self.categories[self.count] = self.brands[self.count] = self.groups[self.count] = -1
        if self.by_group:
            self.groups[self.count] = self.shelves.group(number)
        if self.most_category:
            category = self.shelves.category(number)
            if category != 0:
                self.categories[self.count] = self.shelves.cut(category, self.depth)
        if self.most_brand:
            self.brands[self.count] = self.shelves.brand(number)
        self.count += 1
        return 0


cdef class Diverse:
    """`diversity.DiverseOrder` over the near ones, with the same heap: as values only grow, only who is on top is valued
    again, against the places that were given since."""

    cdef int begin(self, const double* keys) except -1:
        cdef Py_ssize_t at
        cdef double top = 0.0, key
        cdef Near* one
        for at in range(self.count):
            key = keys[self.near[at].place]
            top = key if at == 0 or key > top else top
        for at in range(self.count):
            one = &self.near[at]
            one.category = one.heard = -1
            one.categories_seen = one.places_seen = 0
            one.has_brand = one.has_group = False
            one.to_category = one.neighbour = 0.0
            one.worth = (1 - self.diversity) * (keys[one.place] / top if top > 0 else 0.0)
            one.value = -one.worth
            self.heap[at] = <int32_t>at
        self.waiting = self.count
        for at in range(self.count // 2 - 1, -1, -1):
            self.sink(at)
        return 0

    cdef void sink(self, Py_ssize_t at) noexcept:
        """The one at this place of the heap goes down to where it belongs."""
        cdef Py_ssize_t child
        cdef int32_t mine = self.heap[at]
        cdef double value = self.near[mine].value, other
        while True:
            child = 2 * at + 1
            if child >= self.waiting:
                break
            other = self.near[self.heap[child]].value
            if child + 1 < self.waiting and self.is_before(self.heap[child + 1], self.heap[child]):
                child += 1
                other = self.near[self.heap[child]].value
            if value < other or value == other and mine < self.heap[child]:
                break
            self.heap[at] = self.heap[child]
            at = child
        self.heap[at] = mine

    cdef bint is_before(self, int32_t one, int32_t other) noexcept:
        cdef double mine = self.near[one].value, theirs = self.near[other].value
        return mine < theirs or mine == theirs and one < other

    cdef double likeness(self, Near* one) except -1.0:
        """`Likeness.of`."""
        cdef Py_ssize_t at
        cdef uint32_t number
        cdef double likeness
        if one.category < 0:
            number = self.work.entries[one.place].number
            one.category = self.shelves.category(number)
            one.brand, one.group = self.shelves.brand(number), self.shelves.group(number)
        for at in range(one.places_seen, self.takes):
            one.has_brand = one.has_brand or one.brand == self.brands[at]
            one.has_group = one.has_group or one.group == self.groups[at]
        one.places_seen = self.takes
        if one.has_group:
            return 1.0
        for at in range(one.categories_seen, self.category_count):
            likeness = self.shelves.likeness(self.categories[at], one.category)
            if likeness > one.to_category:
                one.to_category = likeness
        one.categories_seen = self.category_count
        likeness = one.to_category
        if one.neighbour > likeness:
            likeness = one.neighbour
        return _SAME_BRAND if one.has_brand and _SAME_BRAND > likeness else likeness

    cdef Py_ssize_t next(self) except -2:
        """The place among the near ones of the next; -1: none is left."""
        cdef Near* one
        cdef Py_ssize_t at
        cdef double value
        while self.waiting:
            at = self.heap[0]
            one = &self.near[at]
            value = self.diversity * self.likeness(one) - one.worth
            if value > one.value:
                one.value = value
                self.sink(0)
                continue
            self.waiting -= 1
            self.heap[0] = self.heap[self.waiting]
            if self.waiting:
                self.sink(0)
            return at
        return -1

    cdef int take(self, Py_ssize_t place) except -1:
        """It has a place now: what is like it is worth less. `next` has handed it out."""
        cdef Near* mine = &self.near[place]
        cdef Near* one
        cdef Columns columns = self.columns
        cdef const uint32_t* numbers = <const uint32_t*>columns.neighbours.data
        cdef const float* similarities = <const float*>columns.similarities.data
        cdef Py_ssize_t at, start = 0, end = 0
        cdef uint32_t number = self.work.entries[mine.place].number
        cdef Entry* entry
        cdef int32_t near_at
        if mine.category != 0:
            for at in range(self.category_count):
                if self.categories[at] == mine.category:
                    break
            else:
                self.categories[self.category_count] = mine.category
                self.category_count += 1
        if <Py_ssize_t>number < columns.offsets.size - 1:
            start = (<const uint32_t*>columns.offsets.data)[number]
            end = (<const uint32_t*>columns.offsets.data)[number + 1]
            end = min(end, min(columns.neighbours.size, columns.similarities.size))
        for at in range(end - 1, start - 1, -1):  # of a neighbour that is named twice the last one counts
            entry = self.work.find(numbers[at])
            if entry is NULL:
                continue
            near_at = self.near_at[entry - self.work.entries]
            if near_at < 0 or self.near[near_at].heard == self.takes:
                continue
            one = &self.near[near_at]
            one.heard = self.takes
            if one.neighbour < similarities[at]:
                one.neighbour = similarities[at] if similarities[at] < 1.0 else 1.0
        self.brands[self.takes] = mine.brand if mine.brand != NOWHERE else -1
        self.groups[self.takes] = mine.group if mine.group != NOWHERE else -1
        self.takes += 1
        return 0
