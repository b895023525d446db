"""What somebody began and did not buy. Declarations; `begun.pyx` says what each does."""

from serving.native.sessions cimport Record
from serving.native.votes cimport Votes

cdef enum:
    MOST_BEGUN = 128  # items of a session and a cart


cdef Py_ssize_t find_begun(Votes list_, Record record, const Py_ssize_t* places, Py_ssize_t picked) except -1
cdef list begun_words()
