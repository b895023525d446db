# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Category, brand and group of each item as small numbers: worked out when somebody first asks, and kept with the version,
because the shop changes none of them while it is served (but categories of items that it puts meanwhile: who changes one
says `forget_category`)."""

from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Realloc
from libc.stdint cimport int32_t

from serving.pipeline.item_facts import CATEGORY_SEPARATOR


cdef class Shelves:
    """A number stands for an equal text; NOWHERE for none. Of a category path each prefix has a number too."""

    def __cinit__(self, catalogue):
        self.catalogue = catalogue
        self.size = len(catalogue.item_ids)
        facts = catalogue.facts
        self.brand_column = facts.brand if len(facts.brand) == self.size else None
        self.group_column = facts.group_id if len(facts.group_id) == self.size else None
        self.prefixes, self.paths = {}, {}
        self.brands, self.groups = {None: NOWHERE, "": EMPTY}, {None: NOWHERE, "": EMPTY}
        self.category_of = <int32_t*>PyMem_Calloc(self.size + 1, sizeof(int32_t))  # 0: nobody asked; else one more
        self.brand_of = <int32_t*>PyMem_Calloc(self.size + 1, sizeof(int32_t))
        self.group_of = <int32_t*>PyMem_Calloc(self.size + 1, sizeof(int32_t))
        if not (self.category_of and self.brand_of and self.group_of):
            raise MemoryError()
        self.add_path("")

    def __dealloc__(self):
        PyMem_Free(self.category_of)
        PyMem_Free(self.brand_of)
        PyMem_Free(self.group_of)
        PyMem_Free(self.starts)
        PyMem_Free(self.counts)
        PyMem_Free(self.levels)

    def forget_category(self, Py_ssize_t number):
        """The item is in another one now."""
        self.category_of[number] = 0

    cdef int32_t category(self, Py_ssize_t number) except -1:
        """Of an item of the catalogue."""
        if not self.category_of[number]:
            path = self.catalogue.category(number) or ""
            found = self.paths.get(path)
            self.category_of[number] = 1 + (self.add_path(path) if found is None else <int32_t>found)
        return self.category_of[number] - 1

    cdef int32_t brand(self, Py_ssize_t number) except -1:
        if self.brand_column is None:
            return NOWHERE
        if not self.brand_of[number]:
            self.brand_of[number] = 1 + <int32_t>self.brands.setdefault(self.brand_column[number], len(self.brands))
        return self.brand_of[number] - 1

    cdef int32_t group(self, Py_ssize_t number) except -1:
        if self.group_column is None:
            return NOWHERE
        if not self.group_of[number]:
            self.group_of[number] = 1 + <int32_t>self.groups.setdefault(self.group_column[number], len(self.groups))
        return self.group_of[number] - 1

    cdef int32_t cut(self, int32_t category, Py_ssize_t depth) noexcept:
        """What stands for the path of a category after so many levels (0: the whole path). Not a category's number."""
        cdef int32_t count = self.counts[category]
        if 0 < depth < count:
            count = <int32_t>depth
        return self.levels[self.starts[category] + count - 1]

    cdef double likeness(self, int32_t one, int32_t other) noexcept:
        """`diversity.category_likeness`."""
        cdef int32_t mine = self.counts[one], theirs = self.counts[other], shared = 0
        if one == other:
            return 1.0
        while shared < mine and shared < theirs:
            if self.levels[self.starts[one] + shared] != self.levels[self.starts[other] + shared]:
                break
            shared += 1
        return <double>shared / <double>(mine if mine > theirs else theirs)

    cdef int32_t add_path(self, object path) except -1:
        cdef Py_ssize_t number = len(self.paths), depth
        cdef list parts = path.split(CATEGORY_SEPARATOR)
        cdef Py_ssize_t count = len(parts)
        cdef void* grown
        if number >= self.path_room:
            self.path_room = 2 * self.path_room + 64
            grown = PyMem_Realloc(self.starts, self.path_room * sizeof(int32_t))
            if not grown:
                raise MemoryError()
            self.starts = <int32_t*>grown
            grown = PyMem_Realloc(self.counts, self.path_room * sizeof(int32_t))
            if not grown:
                raise MemoryError()
            self.counts = <int32_t*>grown
        if self.level_count + count > self.level_room:
            self.level_room = 2 * (self.level_count + count) + 64
            grown = PyMem_Realloc(self.levels, self.level_room * sizeof(int32_t))
            if not grown:
                raise MemoryError()
            self.levels = <int32_t*>grown
        self.starts[number], self.counts[number] = <int32_t>self.level_count, <int32_t>count
        for depth in range(count):
            prefix = CATEGORY_SEPARATOR.join(parts[: depth + 1])
            self.levels[self.level_count] = <int32_t>self.prefixes.setdefault(prefix, len(self.prefixes))
            self.level_count += 1
        self.paths[path] = number
        return <int32_t>number


cdef Shelves shelves_of(object catalogue):
    """Of a catalogue, made once."""
    remembered = catalogue.remember("native")
    found = remembered.get("shelves")
    if found is None:
        found = remembered["shelves"] = Shelves(catalogue)
    return found
