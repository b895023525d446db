"""The first 64 bits of BLAKE2b with a digest of eight bytes (RFC 7693), as a little-endian number: what `session_hash` and
`session_digest` take. In C: it is half as long as the call of Python's."""

from libc.stdint cimport uint64_t


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static inline uint64_t nightjar_turned(uint64_t word, int by) { return word >> by | word << (64 - by); }

    static uint64_t nightjar_blake2b_8(const void *data, size_t size) {
        static const uint64_t start[8] = {
            0x6A09E667F3BCC908ULL, 0xBB67AE8584CAA73BULL, 0x3C6EF372FE94F82BULL, 0xA54FF53A5F1D36F1ULL,
            0x510E527FADE682D1ULL, 0x9B05688C2B3E6C1FULL, 0x1F83D9ABFB41BD6BULL, 0x5BE0CD19137E2179ULL
        };
        static const uint8_t order[10][16] = {
            {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
            {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
            {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
            {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
            {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
            {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
            {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
            {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
            {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
            {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}
        };
        static const uint8_t of[8][4] = {
            {0, 4, 8, 12}, {1, 5, 9, 13}, {2, 6, 10, 14}, {3, 7, 11, 15},
            {0, 5, 10, 15}, {1, 6, 11, 12}, {2, 7, 8, 13}, {3, 4, 9, 14}
        };
        uint64_t state[8], block[16], v[16];
        size_t done = 0;
        memcpy(state, start, sizeof state);
        state[0] ^= 0x01010008;
        do {
            size_t part = size - done < 128 ? size - done : 128;
            memset(block, 0, sizeof block);
            memcpy(block, (const char *)data + done, part);
            done += part;
            memcpy(v, state, sizeof state);
            memcpy(v + 8, start, sizeof start);
            v[12] ^= done;
            if (done == size) v[14] = ~v[14];
            for (int round = 0; round < 12; round++) {
                const uint8_t *words = order[round % 10];
                for (int step = 0; step < 8; step++) {
                    uint64_t *a = v + of[step][0], *b = v + of[step][1], *c = v + of[step][2], *d = v + of[step][3];
                    *a += *b + block[words[2 * step]];
                    *d = nightjar_turned(*d ^ *a, 32);
                    *c += *d;
                    *b = nightjar_turned(*b ^ *c, 24);
                    *a += *b + block[words[2 * step + 1]];
                    *d = nightjar_turned(*d ^ *a, 16);
                    *c += *d;
                    *b = nightjar_turned(*b ^ *c, 63);
                }
            }
            for (int at = 0; at < 8; at++) state[at] ^= v[at] ^ v[at + 8];
        } while (done < size);
        return state[0];
    }
    """
    uint64_t blake2b_8 "nightjar_blake2b_8"(const void* data, size_t size) nogil
