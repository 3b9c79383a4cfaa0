"""Philox4x32-10 (Salmon et al., SC 2011) in numpy, with the engine's key and counter layout (src/rng.rs).

Integers are exactly the engine's; uniform and normal numbers are computed from them in float64, where the engine
uses float32, so normals agree to about 1e-6 and times exactly (24 bits fit both).
"""

import numpy as np

NOISE, TIME, LABEL_DROP = 1, 2, 11  # src/rng.rs: enum Stream
FIXTURE = 1000  # streams from here on make inputs and weights of the fixtures; the engine has no such streams

_MASK = np.uint64(0xFFFF_FFFF)


def philox(counter, key):
    """Returns four arrays of words for four counter words and two key words (scalars or arrays)."""
    c = [np.asarray(word, np.uint64) for word in counter]
    k = [np.asarray(word, np.uint64) for word in key]
    for _ in range(10):
        p0 = np.uint64(0xD251_1F53) * c[0]
        p1 = np.uint64(0xCD9E_8D57) * c[2]
        shift = np.uint64(32)
        c = [(p1 >> shift) ^ c[1] ^ k[0], p1 & _MASK, (p0 >> shift) ^ c[3] ^ k[1], p0 & _MASK]
        k = [(k[0] + np.uint64(0x9E37_79B9)) & _MASK, (k[1] + np.uint64(0xBB67_AE85)) & _MASK]
    return c


def check_known_answers():
    """Raises unless Philox gives the vectors published with Random123 (kat_vectors, philox4x32 10)."""
    ones = 0xFFFF_FFFF
    cases = [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ones] * 4, [ones] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    for counter, key, expected in cases:
        found = [int(word) for word in philox(counter, key)]
        if found != expected:
            raise AssertionError(f"philox({counter}, {key}) = {found}, expected {expected}")


class Draw:
    """The random numbers of one (seed, stream, step), addressed by sample, replica and element."""

    def __init__(self, seed, stream, step=0):
        words = philox([stream, 0, 0, 0], [seed & 0xFFFF_FFFF, seed >> 32])
        self.key = words[:2]
        self.step = step

    def words(self, sample, replica, block):
        high = (replica << 20) | ((sample >> 32 & 0x3FF) << 10) | (self.step >> 32 & 0x3FF)
        return philox([block, sample & 0xFFFF_FFFF, self.step & 0xFFFF_FFFF, high], self.key)

    def uniform(self, sample, replica=0):
        """Returns a number in [0, 1): the upper 24 bits of word 0 of block 0."""
        return float(_unit(self.words(sample, replica, 0)[0]))

    def normals(self, count, sample, replica=0):
        """Returns `count` standard normals: Box-Muller on words (0, 1) and (2, 3) of each block."""
        words = self.words(sample, replica, np.arange((count + 3) // 4))
        pairs = [_normal_pair(words[0], words[1]), _normal_pair(words[2], words[3])]
        return np.stack([*pairs[0], *pairs[1]], axis=1).reshape(-1)[:count]


def _unit(word):
    return (word >> np.uint64(8)).astype(np.float64) * 2.0**-24


def _normal_pair(a, b):
    radius = np.sqrt(-2.0 * np.log(_unit(a) + 2.0**-24))  # the argument lies in (0, 1]
    angle = 2.0 * np.pi * _unit(b)
    return radius * np.cos(angle), radius * np.sin(angle)
