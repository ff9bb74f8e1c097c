"""Hashes of ids: XXH64 of integers and strings, splitmix64 of integers.

Sources: XXH64 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md); splitmix64, the output function of
Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from erless.errors import QueryError

__all__ = ["hash_ids", "splitmix64", "xxh64_integers", "xxh64_strings"]

Hashes = NDArray[np.uint64]

_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(prime)
    for prime in (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )
)
_MASK = (1 << 64) - 1
_STRIPE = 32  # bytes


def hash_ids(ids: NDArray[Any], function: Literal["xxh64", "splitmix64"], seed: int) -> Hashes:
    """The hash of each of `ids` (n,): integers, or an object array of bytes.

    Raises:
        QueryError: `splitmix64` of strings.
    """
    if ids.dtype == object:
        if function != "xxh64":
            raise QueryError(f"{function} takes integers, not strings")
        return xxh64_strings(ids, seed)
    numbers = ids.astype(np.int64).view(np.uint64)
    return xxh64_integers(numbers, seed) if function == "xxh64" else splitmix64(numbers, seed)


def splitmix64(numbers: Hashes, seed: int = 0) -> Hashes:
    """Mix each number XOR `seed`.

    >>> int(splitmix64(np.zeros(1, np.uint64))[0]) == 0xE220A8397B1DCDAF
    True
    """
    with np.errstate(over="ignore"):
        z = (numbers ^ np.uint64(seed)) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def xxh64_integers(numbers: Hashes, seed: int = 0) -> Hashes:
    """XXH64 of each number's eight little-endian bytes."""
    with np.errstate(over="ignore"):
        state = np.full(len(numbers), (seed + int(_P5) + 8) & _MASK, np.uint64)
        return _avalanche(_word(state, numbers))


def xxh64_strings(strings: NDArray[Any], seed: int = 0) -> Hashes:
    """XXH64 of each of `strings`, an object array of bytes.

    Strings of one length are hashed together, so that the work is numpy's.
    """
    out = np.empty(len(strings), np.uint64)
    lengths = np.fromiter(map(len, strings), np.int64, len(strings))
    for length in np.unique(lengths).tolist():
        places = np.flatnonzero(lengths == length)
        joined = b"".join(strings[places].tolist())
        texts = np.frombuffer(joined, np.uint8).reshape(len(places), length)
        out[places] = _xxh64(texts, seed)
    return out


def _rotate(x: Hashes, bits: int) -> Hashes:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


def _round(state: Hashes, word: Hashes) -> Hashes:
    return _rotate(state + word * _P2, 31) * _P1


def _word(state: Hashes, word: Hashes) -> Hashes:
    """Eight more bytes of the tail."""
    return _rotate(state ^ _round(np.zeros_like(word), word), 27) * _P1 + _P4


def _avalanche(state: Hashes) -> Hashes:
    state = (state ^ (state >> np.uint64(33))) * _P2
    state = (state ^ (state >> np.uint64(29))) * _P3
    return state ^ (state >> np.uint64(32))


def _words(texts: NDArray[np.uint8], begin: int, end: int, dtype: str) -> Hashes:
    """Bytes [begin, end) of each text as little-endian numbers, (n, numbers)."""
    part = np.ascontiguousarray(texts[:, begin:end])
    return part.view(dtype).astype(np.uint64)


def _xxh64(texts: NDArray[np.uint8], seed: int) -> Hashes:
    """XXH64 of each of `texts` (n, length)."""
    count, length = texts.shape
    at = 0
    with np.errstate(over="ignore"):
        if length >= _STRIPE:
            state, at = _stripes(texts, seed)
        else:
            state = np.full(count, (seed + int(_P5)) & _MASK, np.uint64)
        state = state + np.uint64(length)
        eights = (length - at) // 8
        for word in _words(texts, at, at + 8 * eights, "<u8").T:
            state = _word(state, word)
        at += 8 * eights
        if length - at >= 4:
            word = _words(texts, at, at + 4, "<u4")[:, 0]
            state = _rotate(state ^ word * _P1, 23) * _P2 + _P3
            at += 4
        for byte in texts[:, at:].T:
            state = _rotate(state ^ byte.astype(np.uint64) * _P5, 11) * _P1
        return _avalanche(state)


def _stripes(texts: NDArray[np.uint8], seed: int) -> tuple[Hashes, int]:
    """The state after all whole stripes of 32 bytes, and where they end."""
    count, length = texts.shape
    end = length // _STRIPE * _STRIPE
    words = _words(texts, 0, end, "<u8")
    begins = [seed + int(_P1) + int(_P2), seed + int(_P2), seed, seed - int(_P1)]
    lanes = [np.full(count, begin & _MASK, np.uint64) for begin in begins]
    for stripe in range(end // _STRIPE):
        for lane in range(4):
            lanes[lane] = _round(lanes[lane], words[:, 4 * stripe + lane])
    turns = (1, 7, 12, 18)
    first, *others = (_rotate(lane, bits) for lane, bits in zip(lanes, turns, strict=True))
    state = first
    for turned in others:
        state = state + turned
    for lane_state in lanes:
        state = (state ^ _round(np.zeros_like(lane_state), lane_state)) * _P1 + _P4
    return state, end
