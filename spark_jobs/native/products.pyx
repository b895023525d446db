# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The product of two sparse matrices as a dense block: the sums of scipy's own product, added up where they belong.

scipy finds how many cells will be filled, then makes a list of them, and then the block from the list: three times the
work, most of it in places far apart.
"""

from libc.stdint cimport int32_t, int64_t


def add_product(
    const int64_t[::1] left_starts,
    const int32_t[::1] left_columns,
    const float[::1] left_values,
    const int64_t[::1] right_starts,
    const int32_t[::1] right_columns,
    const float[::1] right_values,
    float[:, ::1] into,
):
    """Add left @ right to `into`, row by row, each row's terms in the order in which they are stored. Other threads run
    meanwhile. Raises ValueError when shapes do not fit, IndexError on a place outside of the matrices."""
    cdef int64_t rows = into.shape[0], columns = into.shape[1], inner = right_starts.shape[0] - 1
    cdef int64_t left_count = left_columns.shape[0], right_count = right_columns.shape[0]
    cdef int64_t row, at, other, first, last, begin, end
    cdef int32_t middle, column
    cdef float value
    cdef float *cells
    cdef bint is_outside = False
    if left_starts.shape[0] != rows + 1 or left_values.shape[0] != left_count or inner < 0:
        raise ValueError("the left matrix does not fit")
    if right_values.shape[0] != right_count:
        raise ValueError("the right matrix does not fit")
    if rows == 0 or columns == 0:
        return
    with nogil:
        for row in range(rows):
            first, last = left_starts[row], left_starts[row + 1]
            if first < 0 or last > left_count:
                is_outside = True
                break
            cells = &into[row, 0]
            for at in range(first, last):
                middle = left_columns[at]
                if middle < 0 or middle >= inner:
                    is_outside = True
                    break
                value = left_values[at]
                begin, end = right_starts[middle], right_starts[middle + 1]
                if begin < 0 or end > right_count:
                    is_outside = True
                    break
                for other in range(begin, end):
                    column = right_columns[other]
                    if column < 0 or column >= columns:
                        is_outside = True
                        break
                    cells[column] += value * right_values[other]
    if is_outside:
        raise IndexError("a sparse matrix points outside of itself")
