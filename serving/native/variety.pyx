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
    """`diversity.DiverseOrder` over the near ones. Whose value is the least of all now is handed out next: so it is with
    the heap of the twin, which values again whoever comes to its top, as values only grow."""

    cdef int begin(self, const double* keys) except -1:
        cdef Py_ssize_t at, of
        cdef double top = 0.0, key
        cdef int32_t category
        cdef uint32_t number
        cdef Near* one
        cdef Shelves shelves = self.shelves
        self.best = -1
        for at in range(self.count):
            key = keys[self.near[at].place]
            top = key if at == 0 or key > top else top
        for at in range(self.count):
            one = &self.near[at]
            number = self.work.entries[one.place].number
            category = shelves.category(number)
            for of in range(self.category_count):
                if self.categories[of] == category:
                    break
            else:
                of = self.category_count
                self.categories[of], self.to_category[of] = category, 0.0
                self.is_taken[of] = category == 0
                self.category_count += 1
            one.category = <int32_t>of
            one.brand, one.group = shelves.brand(number), shelves.group(number)
            one.heard = -1
            one.is_gone = one.has_brand = one.has_group = False
            one.neighbour = 0.0
            one.worth = (1 - self.diversity) * (keys[one.place] / top if top > 0 else 0.0)
            one.value = self.diversity * 0.0 - one.worth
        return 0

    cdef Py_ssize_t next(self) noexcept:
        """The place among the near ones of the next; -1: none is left."""
        cdef Py_ssize_t at, best = self.best
        if best < 0:
            for at in range(self.count):
                if not self.near[at].is_gone and (best < 0 or self.near[at].value < self.near[best].value):
                    best = at
        self.best = -1
        if best >= 0:
            self.near[best].is_gone = True
        return best

    cdef int take(self, Py_ssize_t place) except -1:
        """It has a place now: what is like it is worth less."""
        cdef Near* mine = &self.near[place]
        cdef Near* one
        cdef Columns columns = self.columns
        cdef Work work = self.work
        cdef const uint32_t* numbers = <const uint32_t*>columns.neighbours.data
        cdef const float* similarities = <const float*>columns.similarities.data
        cdef Py_ssize_t at, start = 0, end = 0
        cdef uint32_t number = work.entries[mine.place].number
        cdef double likeness, nearest
        cdef Entry* entry
        cdef int32_t near_at
        if not self.is_taken[mine.category]:
            self.is_taken[mine.category] = True
            for at in range(self.category_count):
                likeness = self.shelves.likeness(self.categories[mine.category], self.categories[at])
                if likeness > self.to_category[at]:
                    self.to_category[at] = likeness
        if <Py_ssize_t>number < columns.offsets.size - 1:
            start = (<const uint32_t*>columns.offsets.data)[number]
            end = (<const uint32_t*>columns.offsets.data)[number + 1]
            end = min(end, min(columns.neighbours.size, columns.similarities.size))
        for at in range(end - 1, start - 1, -1):  # of a neighbour that is named twice the last one counts
            entry = work.find(numbers[at])
            if entry is NULL:
                continue
            near_at = self.near_at[entry - work.entries]
            if near_at < 0 or self.near[near_at].heard == self.takes:
                continue
            one = &self.near[near_at]
            one.heard = self.takes
            if one.neighbour < similarities[at]:
                one.neighbour = similarities[at] if similarities[at] < 1.0 else 1.0
        self.takes += 1
        self.best = -1
        for at in range(self.count):
            one = &self.near[at]
            if one.is_gone:
                continue
            if mine.brand != NOWHERE and one.brand == mine.brand:
                one.has_brand = True
            if mine.group != NOWHERE and one.group == mine.group:
                one.has_group = True
            if one.has_group:
                nearest = 1.0
            else:
                nearest = self.to_category[one.category]
                if one.neighbour > nearest:
                    nearest = one.neighbour
                if one.has_brand and _SAME_BRAND > nearest:
                    nearest = _SAME_BRAND
            one.value = self.diversity * nearest - one.worth
            if self.best < 0 or one.value < self.near[self.best].value:
                self.best = at
        return 0
