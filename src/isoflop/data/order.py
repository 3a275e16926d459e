"""The order in which a run sees its samples: a pure function of (seed, position), with O(1) memory.

Position p of a run lies in epoch p // N; within an epoch the samples 0 … N-1 are visited in the order of a keyed
permutation. So nothing has to be stored to resume, no worker has to know another, and an epoch of four billion
samples starts at once.

The permutation is a 6-round generalised Feistel network over a grid of about √N × √N values, with cycle walking
(Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): a value that falls outside 0 … N-1 is encrypted
again until it falls inside, which is rare, because the grid is at most one row too large. The round keys are *hashed*
from (seed, epoch): keys such as seed + epoch would let seeds repeat each other's epochs.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import DataError

ALGORITHM = "feistel6-v1"
"""The name of this order. It is part of what must not change when a run resumes."""

_ROUNDS = 6
# a Feistel network over a smaller grid has too few permutations; walking a grid of 256 costs nothing
_MINIMUM_SIDE = 16
_LARGEST = 1 << 60
_CHUNK = 1 << 14  # positions at a time: the temporaries stay in the cache

_I64 = NDArray[np.int64]
_U32 = NDArray[np.uint32]
_MULTIPLY_1 = np.uint32(0x7FEB352D)
_MULTIPLY_2 = np.uint32(0x846CA68B)


def locate(positions: _I64, num_samples: int, seed: int) -> tuple[_I64, _I64]:
    """The (epochs, indices) of the samples at `positions`, both int64 of the same shape (n,).

    Each index 0 … num_samples-1 occurs exactly once among the positions e·num_samples … (e+1)·num_samples-1 of epoch e.
    Raises DataError for a negative position or an empty data set.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if num_samples < 1:
        raise DataError(f"an order needs at least one sample, not {num_samples}")
    if positions.size and int(positions.min()) < 0:
        raise DataError(f"position {int(positions.min())} is before the start of the run")
    epochs = positions // num_samples
    offsets = positions - epochs * num_samples
    return epochs, permute(offsets, num_samples, seed, epochs)


def permute(values: _I64, size: int, seed: int, epochs: _I64 | int = 0) -> _I64:
    """`values` in 0 … size-1 sent through the permutation that belongs to (seed, epoch), elementwise; shape (n,).

    `size` may be anything up to 2^60.
    """
    if size == 1:
        return np.zeros_like(values)
    if size > _LARGEST:
        raise DataError(f"an order of {size} samples is beyond the 2^60 that it is made for")
    permuted = np.empty_like(values)
    per_value = np.broadcast_to(np.asarray(epochs, dtype=np.int64), values.shape)
    for start in range(0, len(values), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        permuted[chunk] = _walk(values[chunk], size, _key_columns(seed, per_value[chunk]))
    return permuted


def _walk(values: _I64, size: int, keys: _U32) -> _I64:
    """Encrypts until every value is below `size`; `keys` is (rounds, 2, 1) for one epoch or (rounds, 2, n)."""
    low_bits = max(_MINIMUM_SIDE.bit_length() - 1, (size - 1).bit_length() // 2)
    rows = max(_MINIMUM_SIDE, -(-size >> low_bits))
    walked = _encrypt(values, rows, low_bits, keys)
    outside = np.flatnonzero(walked >= size)
    while outside.size:
        own_keys = keys if keys.shape[-1] == 1 else keys[..., outside]
        walked[outside] = _encrypt(walked[outside], rows, low_bits, own_keys)
        outside = outside[walked[outside] >= size]
    return walked


def _encrypt(values: _I64, rows: int, low_bits: int, keys: _U32) -> _I64:
    """A keyed bijection of 0 … rows·2^low_bits-1: row and column are shifted in turn, each by a hash of the other."""
    row = (values >> low_bits).astype(np.uint32)
    column = (values & ((1 << low_bits) - 1)).astype(np.uint32)
    column_shift = np.uint32(32 - low_bits)
    for round_index in range(0, _ROUNDS, 2):
        hashed = _round(column, keys[round_index]).astype(np.uint64)
        row += ((hashed * np.uint64(rows)) >> np.uint64(32)).astype(np.uint32)
        # modulo `rows`: below it, the unsigned difference wraps to a large one
        row = np.minimum(row, row - np.uint32(rows))
        column ^= _round(row, keys[round_index + 1]) >> column_shift
    return (row.astype(np.int64) << low_bits) | column


def _round(half: _U32, keys: _U32) -> _U32:
    """A hash of 32-bit words whose high bits are the good ones (multiply, fold, multiply)."""
    hashed: _U32 = half ^ keys[0]
    hashed *= _MULTIPLY_1
    hashed ^= hashed >> np.uint32(16)
    hashed += keys[1]
    hashed *= _MULTIPLY_2
    return hashed


def _key_columns(seed: int, epochs: _I64) -> _U32:
    """The round keys (rounds, 2, 1) if `epochs` (n,) are all the same, else (rounds, 2, n)."""
    first, last = int(epochs.min()), int(epochs.max())
    if first == last:
        return _round_keys(seed, first)[..., None]
    distinct, inverse = np.unique(epochs, return_inverse=True)
    columns: _U32 = np.stack([_round_keys(seed, int(epoch)) for epoch in distinct], axis=-1)
    own: _U32 = np.take(columns, inverse, axis=-1)
    return own


@lru_cache(maxsize=4096)
def _round_keys(seed: int, epoch: int) -> _U32:
    """Twelve 32-bit words (rounds, 2), hashed by BLAKE2b."""
    digest = hashlib.blake2b(f"{ALGORITHM} {seed} {epoch}".encode(), digest_size=_ROUNDS * 8).digest()
    keys: _U32 = np.frombuffer(digest, dtype="<u4").astype(np.uint32)
    return keys.reshape(_ROUNDS, 2)
