"""The places of a page. Declarations; `pages.pyx` says what each does."""

from serving.native.answers cimport AnswerWriter
from serving.native.page_work cimport PageWork
from serving.native.shelving cimport Shelving
from serving.native.votes cimport Votes


cdef class PageWriter(AnswerWriter):
    pass


cdef class Page(PageWork):
    cdef int recommend(self, object policy) except -1
    cdef int choose(self, object policy) except -1
    cdef int arrange(self, object policy) except -1
    cdef int put_recommended(self, Votes slate, object policy, object propensities) except -1
    cdef Shelving shelving(self)
    cdef int decline_dismissed(self) except -1
    cdef int shelve_similar(self, object item_id) except -1
    cdef int shelve_together(self, object item_id) except -1
    cdef int shelve_trending(self, object votes) except -1
    cdef int shelve_new(self) except -1
    cdef int shelve_continued(self) except -1
    cdef bytes known(self, bint is_whole)
    cdef bytes trend(self)
    cdef int top_up(self, Shelving shelf, object category, object region, double* ceiling, dict said) except -1
    cdef int put_shelved(self, Shelving shelf, dict said, str own, object why_not, bytes more) except -1
    cdef dict counts_of(self, Shelving shelf)
