# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""The body of a common question, read in native code. The twin is `hot_slates.read_question` behind orjson.

Read here are the fields that nearly all send, as plain JSON: strings without escapes, no events, of a policy the
placement's rules alone. Whatever
else comes is declined (None), and the twin looks at it; so it is with what may be wrong.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcmp, strlen

from feature_repo.contracts.events import MAX_ID_BYTES
from serving.pipeline.policy import SlatePolicy
from serving.pipeline.values import SlateRequest


cdef extern from "Python.h":
    object PyUnicode_DecodeUTF8(const char* data, Py_ssize_t size, const char* errors)


cdef class _Odd(Exception):
    """The twin has to look at it."""


cdef Py_ssize_t _MOST_BYTES = MAX_ID_BYTES
cdef object _tuple_of = tuple.__new__
cdef frozenset _NOBODY = frozenset()


cdef class Body:
    """JSON under way, from left to right. Every step ends before the next thing that says something, or raises _Odd."""

    cdef const char* at
    cdef const char* end

    cdef char next(self) noexcept:
        """The next character that is no white space; 0 at the end."""
        while self.at < self.end and (self.at[0] == 32 or self.at[0] == 10 or self.at[0] == 13 or self.at[0] == 9):
            self.at += 1
        return self.at[0] if self.at < self.end else 0

    cdef int take(self, char wanted) except -1:
        if self.next() != wanted:
            raise _Odd
        self.at += 1
        return 0

    cdef bint took(self, const char* word) except -1:
        """Whether the next thing is this word (`null`, `true`, `false`)."""
        cdef Py_ssize_t size = strlen(word)
        self.next()
        if self.end - self.at < size or memcmp(self.at, word, size) != 0:
            return False
        self.at += size
        return True

    cdef Py_ssize_t string(self, const char** start) except -1:
        """Takes a string without escapes: its bytes, and how many."""
        self.take(34)
        start[0] = self.at
        while self.at < self.end and self.at[0] != 34:
            if <unsigned char>self.at[0] < 32 or self.at[0] == 92:
                raise _Odd
            self.at += 1
        if self.at == self.end:
            raise _Odd
        self.at += 1
        return self.at - 1 - start[0]

    cdef object text(self):
        """A string, or None for null."""
        cdef const char* start
        cdef Py_ssize_t size
        if self.took(b"null"):
            return None
        size = self.string(&start)
        return PyUnicode_DecodeUTF8(start, size, NULL)

    cdef object id(self):
        """A string that `schemas.Id` takes."""
        cdef const char* start
        cdef Py_ssize_t size = self.string(&start)
        if not 0 < size <= _MOST_BYTES:
            raise _Odd
        return PyUnicode_DecodeUTF8(start, size, NULL)

    cdef object word(self):
        """true, false, or None for null."""
        if self.took(b"null"):
            return None
        if self.took(b"true"):
            return True
        if self.took(b"false"):
            return False
        raise _Odd

    cdef int number(self) except -1:
        """A whole number of at most four digits, without a sign."""
        cdef int found = 0, digits = 0
        self.next()
        while self.at < self.end and 48 <= self.at[0] <= 57:
            found = 10 * found + self.at[0] - 48
            digits += 1
            self.at += 1
            if digits > 4:
                raise _Odd
        if not digits or found < 10 ** (digits - 1) or self.next() not in (44, 125):  # a comma, or the end
            raise _Odd
        return found

    cdef bint goes_on(self, char close) except -1:
        """Behind an entry: whether another follows; else the list or object is closed."""
        cdef char found = self.next()
        self.at += 1
        if found == 44:
            return True
        if found != close:
            raise _Odd
        return False


cdef frozenset _ids(Body body, Py_ssize_t most):
    cdef list found = []
    body.take(91)
    if body.next() == 93:
        body.at += 1
        return _NOBODY
    while True:
        found.append(body.id())
        if not body.goes_on(93):
            break
    if len(found) > most:
        raise _Odd
    return frozenset(found)


cdef inline bint _is(const char* name, Py_ssize_t size, const char* wanted) noexcept:
    return size == <Py_ssize_t>strlen(wanted) and memcmp(name, wanted, size) == 0


cdef class QuestionReader:
    """Of one process. `kind_of_question` is `answering.Question`; `plain` is `plain_placements`, `ruled` the
    `ruled_placements`."""

    cdef object kind_of_question, plain, ruled, usual, new_id, kind
    cdef str default
    cdef Py_ssize_t most_excluded
    cdef int most_results

    def __init__(self, kind_of_question, kind, plain, ruled, default, new_id, most_results, most_excluded):
        self.kind_of_question, self.kind, self.plain, self.default = kind_of_question, kind, plain, default
        self.ruled = ruled
        self.usual, self.new_id = plain[default], new_id
        self.most_results, self.most_excluded = most_results, most_excluded

    def read(self, object data, object now_micros):
        """The question in a body; None when the twin has to look at it."""
        cdef Body body
        if type(data) is not bytes:
            return None
        body = Body.__new__(Body)
        body.at = PyBytes_AS_STRING(data)
        body.end = body.at + PyBytes_GET_SIZE(data)
        try:
            return self.question(body, now_micros)
        except (_Odd, UnicodeDecodeError):
            return None

    cdef object question(self, Body body, object now_micros):
        cdef object user_id = None, anonymous_id = None, session_id = None, category = None, region = None
        cdef object personalize = None, may_store = True, usual, policy = None, ruled, new_id
        cdef str placement = self.default
        cdef frozenset excluded = _NOBODY
        cdef int num_results = 0
        cdef const char* name
        cdef Py_ssize_t size
        cdef bint goes_on
        body.take(123)
        goes_on = body.next() != 125
        if not goes_on:
            body.at += 1
        while goes_on:
            size = body.string(&name)
            body.take(58)
            if _is(name, size, b"user_id"):
                user_id = None if body.took(b"null") else body.id()
            elif _is(name, size, b"session_id"):
                session_id = None if body.took(b"null") else body.id()
            elif _is(name, size, b"num_results"):
                num_results = 0
                if not body.took(b"null"):
                    num_results = body.number()
                    if not 1 <= num_results <= self.most_results:
                        raise _Odd
            elif _is(name, size, b"anonymous_id"):
                anonymous_id = None if body.took(b"null") else body.id()
            elif _is(name, size, b"placement"):
                placement = body.id()
            elif _is(name, size, b"exclude_item_ids"):
                excluded = _ids(body, self.most_excluded)
            elif _is(name, size, b"context"):
                category = region = None
                body.take(123)
                if body.next() == 125:
                    body.at += 1
                else:
                    while True:
                        size = body.string(&name)
                        body.take(58)
                        if _is(name, size, b"category"):
                            category = body.text()
                        elif _is(name, size, b"region"):
                            region = body.text()
                        else:
                            raise _Odd
                        if not body.goes_on(125):
                            break
            elif _is(name, size, b"consent"):
                personalize, may_store = None, True
                body.take(123)
                if body.next() == 125:
                    body.at += 1
                else:
                    while True:
                        size = body.string(&name)
                        body.take(58)
                        said = body.word()
                        if _is(name, size, b"personalize"):
                            personalize = said
                        elif _is(name, size, b"store"):
                            may_store = said is not False
                        elif not (_is(name, size, b"train") or _is(name, size, b"share")):
                            raise _Odd
                        if not body.goes_on(125):
                            break
            elif not (_is(name, size, b"explain") and body.took(b"false")):
                raise _Odd
            goes_on = body.goes_on(125)
        if body.next() or body.at < body.end:
            raise _Odd
        usual = self.plain.get(placement, self.usual)
        ruled = self.ruled.get(placement) if usual is None else None
        if usual is None and ruled is None:
            return None
        new_id = self.new_id()
        if ruled is not None:
            usual = ruled.num_results
            policy = SlatePolicy(ruled.rules, placement, True, None, None, ruled.reasons, new_id)
        slate = SlateRequest(
            num_results or usual, user_id, anonymous_id, session_id, category, region, (), excluded, personalize, False,
            policy
        )
        return _tuple_of(
            self.kind_of_question, (slate, new_id, placement, may_store, now_micros, (), False, self.kind)
        )
