"""Category, brand and group of items. Declarations; `shelves.pyx` says what each does."""

from libc.stdint cimport int32_t

cdef enum:
    NOWHERE = 0  # no category, brand or group
    EMPTY = 1    # an empty text instead of one


cdef class Shelves:
    cdef object catalogue, brand_column, group_column
    cdef dict prefixes, paths, brands, groups
    cdef int32_t* category_of
    cdef int32_t* brand_of
    cdef int32_t* group_of
    cdef int32_t* starts
    cdef int32_t* counts
    cdef int32_t* levels
    cdef Py_ssize_t size, path_room, level_count, level_room

    cdef int32_t category(self, Py_ssize_t number) except -1
    cdef int32_t brand(self, Py_ssize_t number) except -1
    cdef int32_t group(self, Py_ssize_t number) except -1
    cdef int32_t cut(self, int32_t category, Py_ssize_t depth) noexcept
    cdef double likeness(self, int32_t one, int32_t other) noexcept
    cdef int32_t add_path(self, object path) except -1


cdef Shelves shelves_of(object catalogue)
