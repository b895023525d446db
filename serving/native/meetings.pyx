# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""How a request meets the records of who asks, in native code: from the question to the store, and from the store's replies
to the answer. The twin is `Recommender.submit_step_by_step` with all that it calls: the breaker, the store, the turns.

Only for somebody who is known by one name, or by none, and who says no to nothing; whatever is odd, in the question or in
the replies, goes the twin's way from there on.
"""

import logging
from functools import partial

from cpython.bytes cimport PyBytes_CheckExact
from cpython.list cimport PyList_CheckExact

from serving.adapters.online import NO_HASHES, NO_STRINGS, OnlineRecords

_logger = logging.getLogger("nightjar.serving")
cdef object _tuple_of = tuple.__new__
cdef object _no_hashes = NO_HASHES, _no_strings = NO_STRINGS, _kind_of_records = OnlineRecords


cdef class Meetings:
    """Of one recommender, whose store is Redis behind a breaker. `writer` packs the commands (`reads.CommandWriter`)."""

    cdef object recommender, shelf, overlay, identities, guard, breaker, store, commands, writer, reads
    cdef object asked_version   # of the catalogue that was asked for last,
    cdef bytes own              # with the key of a list of it, up to the id
    cdef bytes pointer          # that was read last,
    cdef str version            # and what it says

    def __init__(self, recommender, shelf, overlay, identities, guard, breaker, store, commands, writer, reads):
        self.recommender, self.shelf, self.overlay, self.identities = recommender, shelf, overlay, identities
        self.guard, self.breaker, self.store = guard, breaker, store
        self.commands, self.writer, self.reads = commands, writer, reads

    def submit(self, object request, object build, object answered, object at_once):
        """`Recommender.submit_meeting`; False where the twin has to do it."""
        cdef object catalogue = self.shelf.current, user_id, anonymous_id, turns
        cdef bytes packed
        cdef Py_ssize_t count
        cdef Meeting meeting
        if catalogue is None or request.personalize is False or self.breaker.probing is not None:
            return False
        user_id, anonymous_id = request.user_id, request.anonymous_id
        meeting = Meeting.__new__(Meeting)
        if user_id is not None:
            if not user_id or user_id in self.overlay.refusing:
                return False
            if request.region is None and self.overlay.region_of(user_id) is not None:
                return False
            meeting.asked = "u:" + user_id
            if meeting.asked in self.identities:
                return False
            if catalogue.version is not self.asked_version:
                self.own, self.asked_version = self.commands.own_list(catalogue.version), catalogue.version
            packed, count = self.writer.of_user(user_id, self.own), 3
        elif anonymous_id is not None:
            meeting.asked = "a:" + anonymous_id
            if not anonymous_id or meeting.asked in self.identities:
                return False
            packed, count = self.writer.of_device(anonymous_id), 2
        else:
            packed, count = b"", 0
        if packed is None:
            return False
        meeting.means, meeting.request, meeting.catalogue = self, request, catalogue
        meeting.build, meeting.answered, meeting.at_once = build, answered, at_once
        if not self.reads.ask(packed, count, meeting, meeting.failed):
            return False
        turns = self.recommender.turns
        turns.expected += 1
        return True

    cdef str told(self, bytes pointer):
        if pointer != self.pointer:
            self.version, self.pointer = pointer.decode(), pointer
        return self.version


cdef class Meeting:
    """One request that waits for its records, then for its turn."""

    cdef Meetings means
    cdef object request, catalogue, build, answered, at_once
    cdef str asked
    cdef object records

    def __call__(self, object pointer, list replies):
        """The replies have come: `RedisOnlineStore.take`, what the breaker makes of them, and the request's turn."""
        cdef Meetings means = self.means
        self.records = self.taken(pointer, replies)
        if self.records is None:
            means.store.take(self.request.user_id, self.request.anonymous_id, (), self.by_steps(), pointer, replies)
            return
        if means.breaker.failures.value:
            means.breaker.note(has_failed=False)
        means.recommender.turns.do(_answer, self)

    def failed(self, object error):
        """There are no replies."""
        self.means.store.on_failure(
            self.by_steps(), self.catalogue.version, self.request.user_id, self.request.anonymous_id, (), error
        )

    cdef object taken(self, object pointer, list replies):
        """The records of the served version; None where they are odd, of another version, or of several names."""
        cdef object candidates = None, segment = None, segment_time = None, one
        cdef list first
        if not PyBytes_CheckExact(pointer) or self.means.told(pointer) != self.catalogue.version:
            return None
        for one in replies:
            if not PyList_CheckExact(one):
                return None
        if self.asked is None:
            return _tuple_of(
                _kind_of_records, (self.means.version, None, None, None, None, _no_hashes, _no_strings)
            )
        if len(replies) < 2 or len(<list>replies[0]) < 2 or len(<list>replies[1]):
            return None
        first = <list>replies[0]
        if self.request.user_id is not None:
            if len(replies) != 3 or len(first) != 3 or len(<list>replies[2]) != 2:
                return None
            candidates, segment, segment_time = first[2], (<list>replies[2])[0], (<list>replies[2])[1]
        return _tuple_of(
            _kind_of_records,
            (
                self.means.version, candidates, first[0] if first[0] is not None else first[1], segment, segment_time,
                _no_hashes, _no_strings,
            ),
        )

    cdef object by_steps(self):
        """What the twin calls when there are records, or an error in their place."""
        cdef object recommender = self.means.recommender
        made = partial(
            recommender.on_records, self.request, self.catalogue, self.asked, None, [], self.build, self.answered,
            self.at_once,
        )
        return partial(self.means.guard.on_read, partial(recommender.turns.do, made))


def _answer(Meeting meeting):
    """It is the request's turn."""
    cdef object made = None
    if meeting.at_once is not None:
        try:
            made = meeting.at_once(meeting.catalogue, meeting.records)
        except Exception:
            _logger.exception("an answer could not be written at once; it is made step by step")
        if made is not None:
            meeting.answered(made)
            return
    meeting.means.recommender.on_records(
        meeting.request, meeting.catalogue, meeting.asked, None, [], meeting.build, meeting.answered, None,
        meeting.records,
    )
