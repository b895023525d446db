# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""What trees say of the candidates of an answer, in native code. The twin is `pipeline.tree_scores`."""

from libc.math cimport NAN
from libc.stdlib cimport free, malloc

from feature_repo.contracts.tree_text import DEFAULT_LEFT, IS_CATEGORY, MISSING_NAN, MISSING_ZERO, ZERO


cdef double _ZERO = ZERO
cdef int _IS_CATEGORY = IS_CATEGORY, _DEFAULT_LEFT = DEFAULT_LEFT
cdef int _MISSING_NAN = MISSING_NAN, _MISSING_ZERO = MISSING_ZERO


cdef class TreeScorer:
    """The trees of one ranker."""

    cdef const int[::1] roots, leaves, inputs, lefts, rights, sets, first_sets
    cdef const double[::1] thresholds, outputs
    cdef const unsigned char[::1] kinds
    cdef const unsigned int[::1] bits
    cdef Py_ssize_t trees, width

    def __init__(self, trees):
        self.roots, self.leaves, self.inputs = trees.roots, trees.leaves, trees.inputs
        self.lefts, self.rights = trees.lefts, trees.rights
        self.sets, self.first_sets, self.bits = trees.sets, trees.first_sets, trees.bits
        self.thresholds, self.outputs, self.kinds = trees.thresholds, trees.outputs, trees.kinds
        self.trees = len(trees.roots) - 1
        self.width = len(trees.names)

    def scores(
        self, Py_ssize_t count, Py_ssize_t own_width, const float[::1] own, const int[::1] numbers,
        Py_ssize_t item_width, const float[::1] items, const float[::1] user, Py_ssize_t category_width,
        const int[::1] places, const float[::1] by_category,
    ):
        """By candidate (`Inputs`)."""
        cdef Py_ssize_t at, n, to, item, place, users = user.shape[0]
        cdef Py_ssize_t known = items.shape[0] // item_width if item_width else 0
        if own_width + item_width + users + category_width != self.width:
            raise ValueError("the candidates have other values than the trees look at")
        if own.shape[0] < count * own_width or numbers.shape[0] < count or places.shape[0] < count:
            raise ValueError("there are fewer candidates than are asked for")
        cdef double* values = <double*>malloc((self.width + 1) * sizeof(double))
        if values is NULL:
            raise MemoryError()
        found = []
        try:
            for at in range(count):
                to = 0
                for n in range(own_width):
                    values[to] = own[at * own_width + n]
                    to += 1
                item = numbers[at]
                for n in range(item_width):
                    values[to] = items[item * item_width + n] if 0 <= item < known else NAN
                    to += 1
                for n in range(users):
                    values[to] = user[n]
                    to += 1
                place = places[at]
                if place < 0 or (place + 1) * category_width > by_category.shape[0]:
                    raise ValueError("a candidate is in a category that is not there")
                for n in range(category_width):
                    values[to] = by_category[place * category_width + n]
                    to += 1
                for n in range(to):
                    if -_ZERO <= values[n] <= _ZERO:
                        values[n] = 0.0
                found.append(self.score(values))
        finally:
            free(values)
        return found

    cdef double score(self, const double* values):
        cdef double total = 0.0, value
        cdef Py_ssize_t tree, at, root
        cdef int node, kind, missing
        cdef bint is_left
        for tree in range(self.trees):
            root = self.roots[tree]
            node = -1 if self.roots[tree + 1] == root else 0
            while node >= 0:
                at = root + node
                value = values[self.inputs[at]]
                kind = self.kinds[at]
                if kind & _IS_CATEGORY:
                    is_left = self.is_among(tree, <int>self.thresholds[at], value)
                else:
                    missing = (kind >> 2) & 3
                    if value != value and missing != _MISSING_NAN:
                        value = 0.0
                    if (missing == _MISSING_NAN and value != value) or (missing == _MISSING_ZERO and value == 0.0):
                        is_left = (kind & _DEFAULT_LEFT) != 0
                    else:
                        is_left = value <= self.thresholds[at]
                node = self.lefts[at] if is_left else self.rights[at]
            total += self.outputs[self.leaves[tree] - node - 1]
        return total

    cdef bint is_among(self, Py_ssize_t tree, int number, double value):
        """Whether the category is in this set of the tree."""
        cdef Py_ssize_t first, size, word
        cdef unsigned int category
        if not (-1.0 < value < 2147483648.0):
            return False
        category = <unsigned int><int>value
        first = self.sets[self.first_sets[tree] + number]
        size = self.sets[self.first_sets[tree] + number + 1] - first
        word = category >> 5
        return word < size and ((self.bits[first + word] >> (category & 31)) & 1) != 0
