# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""What somebody began and did not buy, from the record where it lies. The twins are `own_items.continue_slate` and `cart`."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from serving.native.borrowed cimport PyUnicode_Compare
from serving.native.sessions cimport CART, EVENT, EVENTS, MARK, Record, Sections, eight, two
from serving.native.votes cimport Votes
from serving.native.work cimport Entry, Work

from feature_repo.contracts.events import EventType
from feature_repo.contracts.session_record import EVENT_TYPE_ORDER
from serving.native.columns import Declined
from serving.pipeline import own_items


cdef struct Begun:
    uint32_t number
    int step          # -1: nothing was begun
    uint32_t words    # their place in `_words`
    int64_t micros
    int64_t bought    # by the record, which empties the cart; -1: never
    int64_t paid      # with the session's purchases
    int64_t removed   # from the cart, by the session; -1: not
    int64_t put       # into the cart; -1: never
    int64_t held      # in the cart


cdef int _PURCHASE = EVENT_TYPE_ORDER.index(EventType.PURCHASE)
cdef int _ADD = EVENT_TYPE_ORDER.index(EventType.ADD_TO_CART)
cdef int _REMOVE = EVENT_TYPE_ORDER.index(EventType.REMOVE_FROM_CART)
cdef int _step_of[256]
cdef uint32_t _words_of[256]
cdef list _words = [own_items._IN_CART[1], own_items._LOOKED[1]]
cdef int _IN_CART_STEP = own_items._IN_CART[0]

for _at, _kind in enumerate(EVENT_TYPE_ORDER):
    _step, _said = own_items._STEPS.get(EventType(_kind), own_items._LOOKED)
    if _said not in _words:
        _words.append(_said)
    _step_of[_at] = _step
    _words_of[_at] = _words.index(_said)


cdef list begun_words():
    """In words, why an item is there, by `first` of its entry."""
    return _words


cdef Begun* _begun_of(Begun* begun, Work work, int64_t number) except NULL:
    """That of an item, made where there is none; it lies where the item's entry does."""
    cdef Py_ssize_t before = work.entry_count, at
    cdef Begun* one
    at = work.enter(<uint32_t>number) - work.entries
    one = &begun[at]
    if work.entry_count > before:
        one.number = <uint32_t>number
        one.step = -1
        one.micros = one.held = 0
        one.bought = one.paid = one.removed = one.put = -1
    return one


cdef bint _is_before(const Begun* one, const Begun* other, list item_ids) except -1:
    if one.step != other.step:
        return one.step < other.step
    if one.micros != other.micros:
        return one.micros > other.micros
    return PyUnicode_Compare(item_ids[one.number], item_ids[other.number]) < 0


cdef Py_ssize_t find_begun(Votes list_, Record record, const Py_ssize_t* places, Py_ssize_t picked) except -1:
    """The rows of `continue_slate`: numbers in `work.order`, scores in `work.heap`, and `first` of each entry says which
    words; how many. Nothing may lie in the memory of the list yet."""
    cdef const Sections* told = &record.told
    cdef Work work = list_.work
    cdef Begun begun[MOST_BEGUN]
    cdef uint32_t ordered[MOST_BEGUN]
    cdef Py_ssize_t at, to, count = 0
    cdef int64_t number, micros
    cdef const char* row
    cdef Begun* one
    cdef Entry* entry
    cdef int kind
    cdef list item_ids = list_.columns.item_ids
    if told.cart > EVENTS:
        raise Declined
    for at in range(picked):
        number = record.number(told.event_rows + places[at] * EVENT + 21)
        if number >= 0:
            _begun_of(begun, work, number)
    for at in range(told.cart):
        number = record.number(told.cart_rows + at * CART + 15)
        if number >= 0:
            _begun_of(begun, work, number)
    for at in range(told.bought):
        number = record.number(told.bought_rows + at * MARK + 8)
        entry = work.find(<uint32_t>number) if number >= 0 else NULL
        if entry is not NULL:
            one = &begun[entry - work.entries]
            one.bought = one.paid = eight(told.bought_rows + at * MARK)
    for at in range(picked - 1, -1, -1):
        row = told.event_rows + places[at] * EVENT
        number = record.number(row + 21)
        if number >= 0 and <uint8_t>row[8] == _PURCHASE:
            one = _begun_of(begun, work, number)
            one.paid = max(one.paid, eight(row))
    for at in range(picked - 1, -1, -1):
        row = told.event_rows + places[at] * EVENT
        number, micros, kind = record.number(row + 21), eight(row), <uint8_t>row[8]
        if number < 0 or kind == _PURCHASE or kind == _ADD:
            continue
        one = _begun_of(begun, work, number)
        if kind == _REMOVE:
            one.removed, one.step = micros, -1
        elif micros > one.paid and (one.step < 0 or _step_of[kind] <= one.step):
            one.step, one.words, one.micros = _step_of[kind], _words_of[kind], micros
    _fill_cart(begun, work, record)
    for at in range(picked - 1, -1, -1):  # what the record's cart has not heard of
        row = told.event_rows + places[at] * EVENT
        number, micros = record.number(row + 21), eight(row)
        if number < 0 or <uint8_t>row[8] != _ADD:
            continue
        one = _begun_of(begun, work, number)
        if micros > max(one.paid, one.removed):
            one.put, one.held = max(micros, one.put), max(one.held, 1)
    for at in range(work.entry_count):
        one = &begun[at]
        if one.held > 0:
            one.step, one.words, one.micros = _IN_CART_STEP, 0, one.put
        if one.step < 0:
            continue
        work.entries[at].first = one.words
        to = count
        while to > 0 and _is_before(one, &begun[ordered[to - 1]], item_ids):
            ordered[to] = ordered[to - 1]
            to -= 1
        ordered[to] = <uint32_t>at
        count += 1
    for at in range(count):
        work.order[at] = begun[ordered[at]].number
        work.heap[at] = 1.0 / <double>(1 + at)
    return count


cdef int _fill_cart(Begun* begun, Work work, Record record) except -1:
    """`cart_contents`, and when each item was put there last."""
    cdef const Sections* told = &record.told
    cdef Py_ssize_t at
    cdef int64_t number, quantity
    cdef const char* row
    cdef Begun* one
    for at in range(told.cart):
        row = told.cart_rows + at * CART
        number, quantity = record.number(row + 15), two(row + 9)
        if number < 0:
            continue
        one = _begun_of(begun, work, number)
        if not row[8]:
            one.put = eight(row)
        if eight(row) <= one.bought:
            continue
        if not row[8]:
            one.held += quantity
        else:
            one.held = max(one.held - quantity, 0) if quantity else 0
    return 0
