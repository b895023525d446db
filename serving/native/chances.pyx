# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""What is left to chance, in native code: the draws of `random.Random` of a text, and the seed of a day. The twins are
`pipeline.exploration` and `rotation.rotation_seed`.

A generator is seeded with the words of the text and of its SHA-512, as `random.Random` does it (MT19937, Matsumoto and
Nishimura 1998); its words are made one by one, as they are drawn.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from serving.native.blake cimport blake2b_8

from hashlib import sha512

from serving.native.columns import Declined
from serving.pipeline.rotation import DAY_MICROS

cdef enum:
    WORDS = 624       # of the state
    AHEAD = 397
    MOST_KEY = 1024   # words of a seed

cdef int64_t _DAY_MICROS = DAY_MICROS
cdef int64_t _day = -1
cdef bytes _said = b""
"""The day, and how a text about it begins."""


cdef struct Draws:
    uint32_t words[624]
    Py_ssize_t at


cdef uint32_t _first[624]
"""The state that every seed is mixed into."""


cdef int _begin_states() except -1:
    cdef Py_ssize_t at
    _first[0] = 19650218
    for at in range(1, WORDS):
        _first[at] = <uint32_t>1812433253 * (_first[at - 1] ^ (_first[at - 1] >> 30)) + <uint32_t>at
    return 0


_begin_states()


cdef int seed_draws(Draws* draws, str seed) except -1:
    """`random.Random(seed)`."""
    cdef bytes text = seed.encode()
    cdef bytes key = text + <bytes>sha512(text).digest()
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(key)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(key), start = 0, count, at, step, place
    cdef uint32_t numbers[MOST_KEY]
    cdef uint32_t last  # the word before: the next one follows from it, and shall not wait for the memory
    cdef uint32_t* words = draws.words
    while start < size and data[start] == 0:  # the key is one number, most significant byte first
        start += 1
    count = max(1, (size - start + 3) // 4)
    if count > MOST_KEY:
        raise Declined
    for at in range(count):
        numbers[at] = 0
        for step in range(4):
            place = size - 1 - 4 * at - step
            if place >= start:
                numbers[at] |= <uint32_t>data[place] << (8 * step)
    memcpy(words, _first, sizeof(_first))
    for at in range(count):
        numbers[at] += <uint32_t>at
    at, place, last = 1, 0, words[0]
    for step in range(max(WORDS, count)):
        last = words[at] = (words[at] ^ ((last ^ (last >> 30)) * <uint32_t>1664525)) + numbers[place]
        at += 1
        place += 1
        if at == WORDS:
            words[0] = words[WORDS - 1]
            at = 1
        if place == count:
            place = 0
    for step in range(WORDS - 1):
        last = words[at] = (words[at] ^ ((last ^ (last >> 30)) * <uint32_t>1566083941)) - <uint32_t>at
        at += 1
        if at == WORDS:
            words[0] = words[WORDS - 1]
            at = 1
    words[0] = <uint32_t>0x80000000
    draws.at = 0
    return 0


cdef uint32_t next_word(Draws* draws) noexcept:
    cdef uint32_t* words = draws.words
    cdef Py_ssize_t at = draws.at, after = at + 1 if at + 1 < WORDS else 0
    cdef Py_ssize_t ahead = at + AHEAD if at + AHEAD < WORDS else at + AHEAD - WORDS
    cdef uint32_t mixed = (words[at] & <uint32_t>0x80000000) | (words[after] & <uint32_t>0x7FFFFFFF)
    cdef uint32_t word = words[ahead] ^ (mixed >> 1) ^ (<uint32_t>0x9908B0DF if mixed & 1 else <uint32_t>0)
    words[at] = word
    draws.at = after
    word ^= word >> 11
    word ^= (word << 7) & <uint32_t>0x9D2C5680
    word ^= (word << 15) & <uint32_t>0xEFC60000
    return word ^ (word >> 18)


cdef double next_draw(Draws* draws) noexcept:
    """`Random.random`."""
    cdef uint32_t high = next_word(draws) >> 5, low = next_word(draws) >> 6
    return (<double>high * 67108864.0 + <double>low) * (1.0 / 9007199254740992.0)


cdef int leave_to_chance(
    uint32_t* slate, Py_ssize_t count, list spares, list untried, list propensities, double share,
    double untried_share, str seed
) except -1:
    """`explore`: changes the slate, its propensities (1 each) and the order of the others."""
    cdef Draws draws
    cdef Py_ssize_t size = len(spares), size_new = len(untried), at, drawn = 0, drawn_new = 0
    cdef Py_ssize_t first_new = count - size_new if untried_share > 0 else count
    seed_draws(&draws, "exploration/" + seed)
    for at in range(max(0, count - size), count):
        if next_draw(&draws) >= share:
            propensities[at] = 1.0 - share
            continue
        if at >= first_new and next_draw(&draws) < untried_share:
            slate[at] = _drawn(untried, drawn_new, &draws)
            propensities[at] = share * untried_share / <double>size_new
            drawn_new += 1
        else:
            slate[at] = _drawn(spares, drawn, &draws)
            propensities[at] = share * (1.0 - untried_share if at >= first_new else 1.0) / <double>size
            drawn += 1
    return 0


cdef object _drawn(list items, Py_ssize_t at, Draws* draws):
    """`exploration._draw`."""
    cdef Py_ssize_t other = at + <Py_ssize_t>(next_draw(draws) * <double>(len(items) - at))
    items[at], items[other] = items[other], items[at]
    return items[at]


cdef uint64_t day_seed(str subject, int64_t now_micros) except? 1:
    """`rotation_seed`; None: nobody's. Raises UnicodeError."""
    global _day, _said
    cdef bytes text
    if now_micros // _DAY_MICROS != _day:
        _day = now_micros // _DAY_MICROS
        _said = b"%d/" % _day
    text = _said if subject is None else _said + subject.encode()
    return blake2b_8(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))


def draws_of(str seed, Py_ssize_t count):
    """The first draws of `random.Random(seed)`."""
    cdef Draws draws
    seed_draws(&draws, seed)
    return [next_draw(&draws) for _ in range(count)]


def seed_of_day(subject, now_micros):
    """`rotation_seed`."""
    return day_seed(subject, now_micros)
