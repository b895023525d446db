# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""What filters say of items, looked up where it is remembered. The twin is `pipeline.item_filters`: it is asked what is
not known yet, and about items that a person has to do with.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t

from serving.native.columns import Declined


cdef class Filters:
    """The filters of one slate (`item_filters.ItemFilter`, `PersonalFilter`): all of them have to hold."""

    cdef bint admit(self, uint32_t number) except -1:
        """Whether the item, one of the catalogue, passes."""
        cdef Py_ssize_t at
        cdef uint8_t said
        for at in range(self.count):
            said = self.known[at][number]
            if self.apart[at] and number in self.apart[at] or not said:
                if not self.asked[at](number):
                    return False
            elif said == 1:
                return False
        return True


cdef Filters filters_of(object asked, Py_ssize_t size):
    """None for no filters. `size`: items of the catalogue."""
    cdef Filters found
    cdef bytearray known
    cdef Py_ssize_t at
    if not asked:
        return None
    found = Filters.__new__(Filters)
    found.asked, found.count, found.apart = list(asked), len(asked), []
    if found.count > MOST_FILTERS:
        raise Declined
    for at in range(found.count):
        known = found.asked[at].known  # never of another size, so that it stays where it is
        if PyByteArray_GET_SIZE(known) != size:
            raise Declined
        found.known[at] = <const uint8_t*>PyByteArray_AS_STRING(known)
        found.apart.append(found.asked[at].apart)
    return found
