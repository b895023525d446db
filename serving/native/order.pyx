# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Best first, in native code: entries of a slate by a number each. The twin is `pipeline.order`."""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from serving.native.borrowed cimport PyUnicode_Compare
from serving.native.work cimport Work


cdef class Room:
    """Memory that is kept for the next slate."""

    def __dealloc__(self):
        PyMem_Free(self.data)

    cdef void* of(self, Py_ssize_t size) except NULL:
        """At least so many bytes, with anything in them."""
        if size > self.size or self.data is NULL:
            PyMem_Free(self.data)
            self.data, self.size = NULL, 0
            self.data = PyMem_Malloc(max(2 * size, 8192))
            if self.data is NULL:
                raise MemoryError()
            self.size = max(2 * size, 8192)
        return self.data


cdef int sort_places(
    uint32_t* places, Py_ssize_t count, const double* keys, uint32_t* spare, Work work, list item_ids
) except -1:
    """Places into `work.entries` by `keys` (one of each place, no NaN), the largest first. Of equal ones the smaller item
    id is first; with `item_ids` None the one that was first. `spare` has room for as many places."""
    cdef uint32_t* source = places
    cdef uint32_t* target = spare
    cdef uint32_t* other
    cdef Py_ssize_t width = 8, start, middle, end, left, right, at, to
    cdef uint32_t one
    for start in range(0, count, 8):  # runs of eight by insertion
        end = min(start + 8, count)
        for at in range(start + 1, end):
            one, to = places[at], at
            while to > start and _is_before(one, places[to - 1], keys, work, item_ids):
                places[to] = places[to - 1]
                to -= 1
            places[to] = one
    while width < count:
        start = 0
        while start < count:
            middle = min(start + width, count)
            end = min(start + 2 * width, count)
            left, right = start, middle
            for at in range(start, end):
                if left < middle and (
                    right >= end or not _is_before(source[right], source[left], keys, work, item_ids)
                ):
                    target[at] = source[left]
                    left += 1
                else:
                    target[at] = source[right]
                    right += 1
            start = end
        other = source
        source = target
        target = other
        width *= 2
    if source != places:
        memcpy(places, source, count * sizeof(uint32_t))
    return 0


cdef inline bint _is_before(uint32_t one, uint32_t other, const double* keys, Work work, list item_ids) except -1:
    if keys[one] != keys[other] or item_ids is None:
        return keys[one] > keys[other]
    return PyUnicode_Compare(item_ids[work.entries[one].number], item_ids[work.entries[other].number]) < 0
