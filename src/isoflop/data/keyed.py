"""Numbers that depend on a key and nothing else: the only source of randomness in the data.

A draw is a hash of (key, epoch, index, stream), so it can be made for any sample at any time, in any process, in any
order. Everything works on whole batches: a hash costs about 5 ns.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)


def derive_key(*parts: int | str) -> int:
    """A 64-bit key hashed (BLAKE2b) from numbers and words; ("a", 1) and ("a1",) give different keys."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def mix(values: U64) -> U64:
    """A bijective scrambling of 64-bit words, elementwise: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    mixed = values ^ (values >> np.uint64(30))
    mixed *= _MULTIPLY_1
    mixed ^= mixed >> np.uint64(27)
    mixed *= _MULTIPLY_2
    mixed ^= mixed >> np.uint64(31)
    return mixed


def words(key: int, epochs: NDArray[np.int64] | int, indices: NDArray[np.int64], streams: int) -> U64:
    """Independent 64-bit words, shape (n, streams), for n samples given by `indices` (n,) in `epochs` (n,) or one
    epoch.
    """
    with np.errstate(over="ignore"):
        epoch_part = mix(np.asarray(epochs).astype(np.uint64) * _GOLDEN + np.uint64(key))
        sample_part = mix(np.asarray(indices).astype(np.uint64) * _MULTIPLY_2 + epoch_part)
        return mix(sample_part[:, None] + np.arange(1, streams + 1, dtype=np.uint64) * _GOLDEN)


def uniforms(
    key: int, epochs: NDArray[np.int64] | int, indices: NDArray[np.int64], streams: int
) -> NDArray[np.float64]:
    """Independent numbers in [0, 1), shape (n, streams), with 53 random bits each; arguments as for `words`."""
    bits = words(key, epochs, indices, streams) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
