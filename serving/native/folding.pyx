# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Events folded into session records as they are packed, without the objects of a `SessionState`. The twin is
`Applier._fold_subject` with `speed.session_state.fold_event` and `speed.trends.vote_changes`; it says what is right.

Known here are records that `rows` reads, and events that come in order, say nothing about consent, channel, cart,
purchases, dislikes or regions, and name one item or none. All of a subject's events are looked at before the first of
them changes anything; whatever else comes is handed back.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memmove

from serving.native.batches cimport BotGuard, position_of
from serving.native.rows cimport (
    ROOM, ByDay, Count, Deed, EVENTS, INTERESTS, KINDS, Mark, NOWHERE, Record, SEEN, SHOWN, STEPS, Vote, VOTES, Word, compare,
    day_order, marks_in_order, name_of, opened, packed, vote_order,
)

from feature_repo.contracts.events import EventType
from feature_repo.contracts.packing import FLAG_BOT
from feature_repo.contracts.session_record import EVENT_TYPE_ORDER, MAX_COUNT, MAX_WEIGHT, WORD_ORDER, session_hash
from feature_repo.contracts.trend_record import MAX_VOTES, WINDOWS
from serving.speed.entries import LoggedEvent
from serving.speed.session_state import DAY_MICROS, MAX_WORD_BYTES, PLANS, VOTED_PERIODS, VOTING_TYPES
from serving.speed.stores import Write
from serving.speed.trends import VoteChange


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    bint PyUnicode_IS_ASCII(object text)
    object PyUnicode_DecodeUTF8(const char* data, Py_ssize_t size, const char* errors)


cdef struct Plan:
    bint is_known, touches, is_step, sees, shows, votes
    int64_t halves

cdef struct Text:
    const char* at       # NULL: none
    Py_ssize_t size

cdef struct Coming:      # an event that is to be folded
    Deed deed
    Text item, device, language

cdef struct Window:
    int64_t seconds, bucket_seconds, buckets

cdef enum:
    DEEDS = 128          # of one subject in a batch; more are for the twin
    POSITION = 1
    NUMBER = 2
    EVENT = 5
    SUBJECT = 6
    MICROS = 8

cdef object _tuple_of = tuple.__new__, _session_hash = session_hash
cdef Coming[DEEDS] _coming
cdef Plan[KINDS] _plan
cdef dict _kinds = {}    # an event type's number
cdef Window[3] _windows
cdef uint32_t[256] _crc
cdef int64_t _day = DAY_MICROS, _max_count = MAX_COUNT, _max_weight = MAX_WEIGHT
cdef Py_ssize_t _voted_periods = VOTED_PERIODS, _max_votes = MAX_VOTES, _max_word = MAX_WORD_BYTES
cdef int64_t _flag_bot = FLAG_BOT
cdef uint8_t DEVICE = WORD_ORDER.index("device"), LANGUAGE = WORD_ORDER.index("language")

assert LoggedEvent._fields == (
    "partition", "position", "number", "raw", "nonce", "event", "subject", "problem", "micros",
)
assert Write._fields == ("key", "value", "seconds", "until")
assert VoteChange._fields == ("window", "bucket", "region", "item_id", "is_withdrawn")
assert [window.number for window in WINDOWS] == [0, 1, 2]
assert 3 * DEEDS <= ROOM  # an item and two words each


def _fill_tables():
    cdef uint32_t crc
    cdef int at
    for at, name in enumerate(EVENT_TYPE_ORDER):
        plan = PLANS[name]
        _kinds[name] = at
        # the cart, purchases and dislikes are rare, and have lists of their own
        _plan[at].is_known = (
            plan.is_removal is None and not plan.buys and not plan.dismisses and name != EventType.UNMERGE
        )
        _plan[at].touches, _plan[at].is_step, _plan[at].sees = plan.touches, plan.is_step, plan.sees
        _plan[at].shows, _plan[at].halves, _plan[at].votes = plan.shows, plan.halves, name in VOTING_TYPES
        assert plan.touches or not plan.halves  # so votes come in order
    for at, window in enumerate(WINDOWS):
        _windows[at].seconds, _windows[at].bucket_seconds = window.seconds, window.bucket_seconds
        _windows[at].buckets = window.buckets
        assert all(window.expires_at(n) == (n + 1) * window.bucket_seconds + 2 * window.seconds for n in (0, 9, 30_000))
    for at in range(256):
        crc = at
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
        _crc[at] = crc


_fill_tables()


cdef uint32_t _crc32(const char* text, Py_ssize_t size) noexcept:
    cdef uint32_t crc = 0xFFFFFFFF
    cdef Py_ssize_t at
    for at in range(size):
        crc = _crc[(crc ^ <uint8_t>text[at]) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


# --- what comes -------------------------------------------------------------------------------------------------------


cdef bint _look(Record* record, list logged) except -1:
    """Whether all of these events are of the common way, in order behind what the record has; they are in `_coming`."""
    cdef Py_ssize_t at
    cdef int64_t last_event = -1, last_step = -1
    cdef Coming* one
    cdef Plan* plan
    if len(logged) > DEEDS:
        return False
    if record.events:
        last_event = record.event[record.events - 1].micros
    if record.steps:
        last_step = record.step[record.steps - 1].micros
    for at in range(len(logged)):
        one = &_coming[at]
        if not _read(one, <tuple>logged[at]):
            return False
        plan = &_plan[one.deed.kind]
        if plan.touches:
            if one.item.at is not NULL:
                if one.deed.micros <= last_event:
                    return False
                last_event = one.deed.micros
        elif plan.is_step:
            if one.deed.micros <= last_step:
                return False
            last_step = one.deed.micros
    return True


cdef bint _read(Coming* to, tuple logged) except -1:
    cdef dict event = <dict?>logged[EVENT]
    cdef object kind = _kinds.get(event["event_type"]), session, item, context
    cdef int64_t micros = logged[MICROS]
    cdef Text mark
    if kind is None or not _plan[<int>kind].is_known or not 0 <= micros < _day * 65_536:
        return False
    if "items" in event or "channel" in event or event.get("consent"):
        return False
    to.deed.micros, to.deed.kind = micros, <uint8_t><int>kind
    if not _text(event["event_id"], &mark):
        return False
    to.deed.mark = _crc32(mark.at, mark.size) or 1
    session = event.get("session_id")
    to.deed.session = _session_hash(session) if session else 0
    item = event.get("item_id")
    to.item.at = to.device.at = to.language.at = NULL
    if item is not None and not _text(item, &to.item):
        return False
    context = event.get("context")
    return not context or _hear(to, context)


cdef bint _text(object text, Text* found) except -1:
    """Whether it is a text that a record can hold."""
    if type(text) is not str:
        return False
    try:
        found.at = PyUnicode_AsUTF8AndSize(text, &found.size)
    except UnicodeEncodeError:
        return False
    return found.size > 0 and memchr(found.at, 0, found.size) is NULL


cdef bint _hear(Coming* to, object context) except -1:
    """Whether a context says no more about region and words than device and language, in plain words."""
    cdef dict said
    cdef bint is_plain
    if type(context) is not dict:
        return False
    said = <dict>context
    for name in ("region", "country", "location", "referrer", "page", "locale"):
        if name in said:
            return False
    is_plain = _word(said.get("device"), &to.device)
    return is_plain and _word(said.get("language"), &to.language)


cdef bint _word(object word, Text* found) except -1:
    if word is None or word == "":
        return True
    return type(word) is str and PyUnicode_IS_ASCII(word) and _text(word, found) and found.size <= _max_word


# --- what it does -----------------------------------------------------------------------------------------------------


cdef int _fold(Record* record, Coming* one, int64_t* flags) except -1:
    cdef Plan* plan = &_plan[one.deed.kind]
    cdef uint16_t item = NOWHERE
    cdef int64_t micros = one.deed.micros
    if one.item.at is not NULL:
        item = name_of(one.item.at, one.item.size)
    if plan.touches:
        if item != NOWHERE:
            one.deed.name = item
            record.events = _keep(record.event, record.events, EVENTS - 1, one.deed)
    elif plan.is_step:
        record.steps = _keep(record.step, record.steps, STEPS - 1, one.deed)
    if item != NOWHERE:
        if plan.sees:
            _see(record, micros, item)
        if plan.shows:
            record.shown = _add(record.showing, record.shown, SHOWN - 1, micros // _day, item, 1)
        if plan.halves:
            record.interests = _add(record.interest, record.interests, INTERESTS - 1, micros // _day, item, plan.halves)
            if not flags[0] & _flag_bot:
                _vote(record, micros // 1_000_000, item)
    _count(record, one.deed.kind)
    if not 0 < record.first <= micros:
        record.first = min(record.first, micros) if record.first else micros
    record.last = max(record.last, micros)
    if one.device.at is not NULL:
        _say(record, DEVICE, micros, &one.device)
    if one.language.at is not NULL:
        _say(record, LANGUAGE, micros, &one.language)
    return 0


cdef Py_ssize_t _keep(Deed* rows, Py_ssize_t count, Py_ssize_t most, Deed row) noexcept:
    if count == most:
        memmove(rows, rows + 1, (count - 1) * sizeof(Deed))
        count -= 1
    rows[count] = row
    return count + 1


cdef void _see(Record* record, int64_t micros, uint16_t item) noexcept:
    cdef Mark* rows = record.seen_at
    cdef Mark row
    cdef Py_ssize_t at, count = record.seen
    for at in range(count):
        if rows[at].name == item:
            if rows[at].micros >= micros:
                return
            memmove(&rows[at], &rows[at + 1], (count - at - 1) * sizeof(Mark))
            count -= 1
            break
    row.micros, row.name = micros, item
    at = count
    while at and marks_in_order(&row, &rows[at - 1]):
        at -= 1
    memmove(&rows[at + 1], &rows[at], (count - at) * sizeof(Mark))
    rows[at] = row
    count += 1
    if count == SEEN:
        count -= 1
        memmove(rows, rows + 1, count * sizeof(Mark))
    record.seen = count


cdef Py_ssize_t _add(ByDay* rows, Py_ssize_t count, Py_ssize_t most, int64_t day, uint16_t item, int64_t added) noexcept:
    cdef ByDay row
    cdef Py_ssize_t at = count
    cdef int order = 1
    row.day, row.name, row.number = <uint16_t>day, item, <uint16_t>added
    while at:
        order = day_order(&row, &rows[at - 1])
        if order > 0:
            break
        at -= 1
        if order == 0:
            rows[at].number = <uint16_t>min(rows[at].number + added, _max_weight)
            return count
    memmove(&rows[at + 1], &rows[at], (count - at) * sizeof(ByDay))
    rows[at] = row
    count += 1
    if count > most:
        count -= 1
        memmove(rows, rows + 1, count * sizeof(ByDay))
    return count


cdef void _count(Record* record, uint8_t kind) noexcept:
    cdef Count* rows = record.count
    cdef Py_ssize_t at = record.counts
    while at and rows[at - 1].kind > kind:
        at -= 1
    if at and rows[at - 1].kind == kind:
        if rows[at - 1].number < _max_count:
            rows[at - 1].number += 1
        return
    memmove(&rows[at + 1], &rows[at], (record.counts - at) * sizeof(Count))
    rows[at].kind, rows[at].number = kind, 1
    record.counts += 1


cdef void _say(Record* record, uint8_t which, int64_t micros, Text* text) noexcept:
    cdef Word* rows = record.word
    cdef Py_ssize_t at = record.words
    cdef uint16_t name = name_of(text.at, text.size)
    while at and rows[at - 1].which > which:
        at -= 1
    if at and rows[at - 1].which == which:
        at -= 1
        if rows[at].micros > micros or (rows[at].micros == micros and compare(rows[at].name, name) >= 0):
            return
    else:
        memmove(&rows[at + 1], &rows[at], (record.words - at) * sizeof(Word))
        record.words += 1
    rows[at].which, rows[at].micros, rows[at].name = which, micros, name


cdef void _vote(Record* record, int64_t seconds, uint16_t item) noexcept:
    """Events come in order: a vote that is there stays in its bucket."""
    cdef Vote row
    cdef Vote* rows = record.vote
    cdef int window
    cdef int64_t length
    cdef Py_ssize_t at
    cdef int order
    for window in range(3):
        length = _windows[window].seconds
        row.window, row.period, row.name = <uint8_t>window, <uint32_t>(seconds // length), item
        row.bucket, row.number = <uint8_t>(seconds % length // _windows[window].bucket_seconds), _next_number(record)
        if not _has_room(record, window, row.period):
            continue
        at = record.votes
        order = 1
        while at:
            order = vote_order(&row, &rows[at - 1])
            if order >= 0:
                break
            at -= 1
        if at and order == 0:
            if row.bucket < rows[at - 1].bucket:
                rows[at - 1].bucket = row.bucket
            continue
        memmove(&rows[at + 1], &rows[at], (record.votes - at) * sizeof(Vote))
        rows[at] = row
        record.votes += 1
        _silence(record, window, row.period)


cdef uint32_t _next_number(Record* record) noexcept:
    cdef uint32_t found = 0
    cdef Py_ssize_t at
    for at in range(record.votes):
        found = max(found, record.vote[at].number + 1)
    return found


cdef bint _has_room(Record* record, int window, uint32_t period) noexcept:
    """Whether votes of a period are kept; the oldest one goes for a new one."""
    cdef Vote* rows = record.vote
    cdef Py_ssize_t at, first = -1, end = 0, periods = 0
    for at in range(record.votes):
        if rows[at].window != window:
            continue
        if rows[at].period == period:
            return True
        if first < 0:
            first = at
        periods += at == first or rows[at].period != rows[at - 1].period
        if rows[at].period == rows[first].period:
            end = at + 1
    if periods < _voted_periods:
        return True
    if period < rows[first].period:
        return False
    memmove(&rows[first], &rows[end], (record.votes - end) * sizeof(Vote))
    record.votes -= end - first
    return True


cdef void _silence(Record* record, int window, uint32_t period) noexcept:
    """Of too many votes of a period, the one whose item comes last by its hash goes."""
    cdef Vote* rows = record.vote
    cdef Py_ssize_t at, last = -1, count = 0
    cdef uint32_t crc, highest = 0
    for at in range(record.votes):
        count += rows[at].window == window and rows[at].period == period
    if count <= _max_votes:
        return
    for at in range(record.votes):
        if rows[at].window == window and rows[at].period == period:
            crc = _crc32(record.name[rows[at].name].at, record.name[rows[at].name].size)
            if last < 0 or crc > highest or (crc == highest and compare(rows[at].name, rows[last].name) > 0):
                last, highest = at, crc
    record.votes -= 1
    memmove(&rows[last], &rows[last + 1], (record.votes - last) * sizeof(Vote))


# --- what the tables must learn -----------------------------------------------------------------------------------------


cdef list _changes(Record* record, int64_t newest):
    """`speed.trends.vote_changes`."""
    cdef list found = []
    cdef Py_ssize_t at, begin, n
    cdef Vote* row
    cdef uint32_t number, next_one
    at = 0
    while at < record.votes:  # a period at a time
        begin, row = at, &record.vote[at]
        while at < record.votes and record.vote[at].window == row.window and record.vote[at].period == row.period:
            at += 1
        for n in range(record.old_votes):
            if record.old_vote[n].window == row.window and record.old_vote[n].period == row.period:
                if not _is_among(&record.old_vote[n], record.vote, record.votes):
                    _note(found, record, &record.old_vote[n], newest, True)
        number = 0
        while True:  # those that came, in the order in which they did
            next_one = 0xFFFFFFFF
            for n in range(begin, at):
                if number <= record.vote[n].number < next_one:
                    next_one, row = record.vote[n].number, &record.vote[n]
            if next_one == 0xFFFFFFFF:
                break
            if not _is_among(row, record.old_vote, record.old_votes):
                _note(found, record, row, newest, False)
            number = next_one + 1
    return found


cdef bint _is_among(Vote* one, Vote* rows, Py_ssize_t count) noexcept:
    cdef Py_ssize_t at
    for at in range(count):
        if (
            rows[at].name == one.name and rows[at].bucket == one.bucket and rows[at].window == one.window
            and rows[at].period == one.period
        ):
            return True
    return False


cdef int _note(list found, Record* record, Vote* vote, int64_t newest, bint is_withdrawn) except -1:
    cdef Window* window = &_windows[vote.window]
    cdef int64_t bucket = vote.period * window.buckets + vote.bucket
    if (bucket + 1) * window.bucket_seconds + 2 * window.seconds > newest:
        item = PyUnicode_DecodeUTF8(record.name[vote.name].at, record.name[vote.name].size, NULL)
        found.append(_tuple_of(VoteChange, (<int>vote.window, bucket, "", item, is_withdrawn)))
    return 0


# --- a batch ------------------------------------------------------------------------------------------------------------


cdef class Folded:
    """What a batch did natively: how many events, and how many of them were a bot's."""

    cdef readonly Py_ssize_t applied, of_bots


def fold_records(dict by_key, dict records, BotGuard guard, seconds, list writes, dict votes, odd):
    """`Applier._fold`: new records into `writes`, for so many seconds, and vote changes into `votes`. A subject that is
    not of the common way goes to `odd(key, logged)`, in its turn."""
    cdef Folded done = Folded.__new__(Folded)
    cdef Record* record
    cdef Py_ssize_t at, of_bots
    cdef int64_t flags, newest, position
    cdef bint speaks
    cdef tuple stored, one
    cdef list logged, changes
    for key, some in by_key.items():
        logged, stored = some, <tuple>records[key]
        record = NULL
        if stored[1] is None:
            record = opened(stored[0])
        if record is NULL or not _look(record, logged):
            odd(key, logged)
            continue
        speaks, flags, of_bots = False, record.flags, 0
        try:
            newest = (position_of((<tuple>logged[len(logged) - 1])[POSITION]) >> 20) // 1000
            for at in range(len(logged)):
                one = <tuple>logged[at]
                position = position_of(one[POSITION])
                of_bots += guard.judged(
                    &flags, record.last, one[EVENT], one[SUBJECT], _coming[at].deed.micros, position, one[NUMBER]
                )
                _fold(record, &_coming[at], &flags)
                speaks = speaks or _plan[_coming[at].deed.kind].votes
        except Exception:
            odd(key, logged)  # nothing was written yet, and the guard knows what it has seen
            continue
        record.flags = <uint8_t>flags
        done.applied += len(logged)
        done.of_bots += of_bots
        writes.append(_tuple_of(Write, (key, packed(), seconds, None)))
        if speaks:
            changes = _changes(record, newest)
            if changes:
                votes.setdefault((<tuple>logged[0])[0], []).extend(changes)
    return done
