"""Weights in fewer bits, decoded into the first-level cache as they are multiplied.

    int8        w[N/16, K/128, 2112]    int8     1.03 bytes per weight
    lossless    w[N/16, K/128, 3208]    uint8    1.57 bytes per weight

A block is 16 rows of W by 128 columns, one stream. Every decoded weight is a bfloat16, so what multiplies
them does not know the difference: the results have the bits that a bfloat16 checkpoint of these values gives,
on every path.

int8: the 128 weights of a row in a block have a scale s, the largest of them / 127, and each is q * s,
rounded to bfloat16. Normal weights are off by 0.65 % of their standard deviation then; with a scale for every
32 they would be by 0.54 %, for every 256 by 0.70 %, and all but a fiftieth of it is the rounding of q.

    scales      [16]        float32
    q           [128, 16]   -127 to 127, column by column

lossless: of the 8 bits of a bfloat16's exponent a block uses few values. Code c stands for exponent base + c,
code 0 for exponent 0. The weights of other exponents are listed.

    header      base, the number of weights listed, 14 unused bytes
    rest        [128, 16]   sign and mantissa: 2 * mantissa + sign
    codes       [64, 16]    of column 2k in the lower half, of column 2k + 1 in the upper
    listed      [30, 4]     column * 16 + row (little-endian), and the bfloat16

That 16 exponents hold nearly all weights of a language model: Zhang et al., "70% Size, 100% Accuracy"
(DFloat11), arXiv:2504.11651.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .jit import inline
from .panels import ROWS, pairs_of_rounded, rounded, store_columns
from .simd import (
    broadcast,
    f32x16,
    i8,
    load,
    pointer,
    prefetch,
    store,
    v16,
    v16i,
    v16s,
    vector_load,
)

COLUMNS = 128  # of a block: 8 KB of float32, a fourth of the first-level cache
SCALES = 4 * ROWS  # bytes
INT8_BYTES = SCALES + COLUMNS * ROWS
# Of normal weights 15 exponents leave out 0.2 of a block on average; 30 places are 4 % of the memory.
HEADER, MOST_LISTED = 16, 30
LISTED = HEADER + COLUMNS * ROWS * 3 // 2  # where they begin
LOSSLESS_BYTES = LISTED + 4 * MOST_LISTED
FORMATS = {"lossless": (np.uint8, LOSSLESS_BYTES), "int8": (np.int8, INT8_BYTES)}

v16c = ir.VectorType(i8, 16)


def compact(array: Any) -> bool:
    """Tell whether a Numba array type is weights in fewer bits."""
    return array.dtype in (types.int8, types.uint8)


def _int32(b: Any, value: int) -> Any:
    return ir.Constant(v16i, [value] * 16)


@intrinsic
def prefetch_behind(typingctx, w, index):
    """Prefetch the bytes of W that are decoded some blocks later."""

    def codegen(context, b, sig, args):
        prefetch(b, pointer(context, b, sig.args[0], *args))
        return context.get_dummy_value()

    return types.void(w, types.intp), codegen


@intrinsic
def load_scales(typingctx, w, index):
    """Load 16 rows' scales."""

    def codegen(context, b, sig, args):
        return vector_load(b, pointer(context, b, sig.args[0], *args), v16)

    return f32x16(w, types.intp), codegen


@intrinsic
def load_int8(typingctx, w, index):
    """Load 16 rows' q."""

    def codegen(context, b, sig, args):
        return b.sitofp(b.sext(vector_load(b, pointer(context, b, sig.args[0], *args), v16c, 1), v16i), v16)

    return f32x16(w, types.intp), codegen


@intrinsic
def load_lossless(typingctx, w, rest_at, codes_at, odd, base):
    """Load 16 rows of one column, `odd` of its pair: sign, mantissa and exponent put together."""

    def codegen(context, b, sig, args):
        w, rest_at, codes_at, odd, base = args

        def sixteen(value: Any) -> Any:
            return ir.Constant(v16s, [value] * 16)

        def lanes(scalar: Any) -> Any:
            return broadcast(b, b.trunc(scalar, ir.IntType(16)))

        rest = b.zext(vector_load(b, pointer(context, b, sig.args[0], w, rest_at), v16c, 1), v16s)
        codes = b.zext(vector_load(b, pointer(context, b, sig.args[0], w, codes_at), v16c, 1), v16s)
        shift = lanes(b.mul(odd, ir.Constant(odd.type, 4)))
        code = b.and_(b.lshr(codes, shift), sixteen(15))
        zero = b.icmp_unsigned("==", code, sixteen(0))
        exponent = b.select(zero, sixteen(0), b.add(code, lanes(base)))
        bits = b.or_(b.or_(b.lshr(rest, sixteen(1)), b.shl(rest, sixteen(15))), b.shl(exponent, sixteen(7)))
        return b.bitcast(b.shl(b.zext(bits, v16i), _int32(b, 16)), v16)

    return f32x16(w, types.intp, types.intp, types.intp, types.intp), codegen


def decode(w, block, rows, at):
    """Write block number `block`, counted through all of w, as float32 [128, 16] to rows[at] and behind."""


@overload(decode, jit_options={"nogil": True})
def _decode(w, block, rows, at):
    if w.dtype == types.int8:

        def int8(w, block, rows, at):
            first = block * w.shape[2]
            scales = load_scales(w, first)
            for k in range(COLUMNS):
                prefetch_behind(w, first + k * ROWS)
                row = load_int8(w, first + SCALES + k * ROWS) * scales
                store(rows, at + k * ROWS, rounded(row))

        return int8

    def lossless(w, block, rows, at):
        first = block * w.shape[2]
        entries = w.reshape(w.size)
        base, listed = np.int64(entries[first]), np.int64(entries[first + 1])
        rest_at, codes_at = first + HEADER, first + HEADER + COLUMNS * ROWS
        for k in range(0, COLUMNS, 2):
            prefetch_behind(w, first + k // 2 * 3 * ROWS)
            for odd in range(2):
                row = load_lossless(w, rest_at + (k + odd) * ROWS, codes_at + k // 2 * ROWS, odd, base)
                store(rows, at + (k + odd) * ROWS, row)
        bits = rows.view(np.uint32)
        for i in range(first + LISTED, first + LISTED + 4 * listed, 4):
            place = np.int64(entries[i]) + np.int64(entries[i + 1]) * 256
            low, high = np.uint32(entries[i + 2]), np.uint32(entries[i + 3])
            bits[at + place] = low << np.uint32(16) | high << np.uint32(24)

    return lossless


@inline
def decode_pairs(w, block, rows, at):
    """Write a block as bfloat16 pairs [64, 16, 2] to float32 scratch, a pair in each 32 bits.

    Behind them 128 rows of scratch are written, too.
    """
    wide = at + COLUMNS // 2 * ROWS
    decode(w, block, rows, wide)
    for k in range(0, COLUMNS, 2):
        pair = pairs_of_rounded(load(rows, wide + k * ROWS), load(rows, wide + (k + 1) * ROWS))
        store(rows, at + k // 2 * ROWS, pair)


@inline
def decode_tiles(w, n, block, rows, at, bases):
    """Write 32 rows of a block as tiles [4, 2, 16, 32] of bfloat16 to float32 scratch.

    Args:
        w: the weights.
        n: rows 32n to 32n + 31.
        block: columns 128 * block and on.
        rows: scratch.
        at: where, and behind it 192 * 16 float32 of scratch.
        bases: int64 [16], scratch.
    """
    pairs_at = at + COLUMNS * ROWS
    words = rows.view(np.uint16)
    for half in range(2):
        decode_pairs(w, (2 * n + half) * w.shape[1] + block, rows, pairs_at)
        for step in range(COLUMNS // 32):
            for row in range(ROWS):
                bases[row] = 2 * at + ((step * 2 + half) * ROWS + row) * 32
            store_columns(words, bases, 0, words, 2 * (pairs_at + step * 16 * ROWS))


def encode(source, pairs, packed, tile, tile_step, first, last):
    """Encode tiles [first, last), of 16 rows each, of a matrix; return the most weights a block had to list.

    Above MOST_LISTED the rest of them is lost.

    Args:
        source: [N, K] words of 32 bits: float32 values, or pairs of bfloat16.
        pairs: which of the two.
        packed: [tiles, blocks, bytes], zeros before.
        tile: source's tile n goes to tile `tile + n * tile_step` of packed.
        tile_step: 2, where two matrices take turns.
        first: of this thread's share of source's tiles.
        last: the tile behind the share.
    """


@overload(encode, jit_options={"nogil": True})
def _encode(source, pairs, packed, tile, tile_step, first, last):
    block_encoder = encode_int8 if packed.dtype == types.int8 else encode_lossless

    def each_block(source, pairs, packed, tile, tile_step, first, last):
        block, most = np.zeros((COLUMNS, ROWS), np.uint32), 0
        columns = source.shape[1] * (2 if pairs else 1)
        for n in range(first, last):
            rows = min(ROWS, source.shape[0] - n * ROWS)
            for i in range(packed.shape[1]):
                block[:] = 0
                for k in range(min(COLUMNS, columns - i * COLUMNS)):
                    at = i * COLUMNS + k
                    for r in range(rows):
                        word = source[n * ROWS + r, at // 2 if pairs else at]
                        if pairs:
                            word = word & np.uint32(0xFFFF0000) if at % 2 else word << np.uint32(16)
                        block[k, r] = word
                most = max(most, block_encoder(block, packed[tile + n * tile_step, i]))
        return most

    return each_block


@inline
def pack_int8(source, scales, packed, tile, tile_step, first, last):
    """Pack tiles [first, last) of a matrix that is int8 already.

    Args:
        source: int8 [N, K].
        scales: float32 [N, K/128].
        packed: as for encode; as are the further arguments.
        tile: as for encode.
        tile_step: as for encode.
        first: as for encode.
        last: as for encode.
    """
    for n in range(first, last):
        rows = min(ROWS, source.shape[0] - n * ROWS)
        for i in range(packed.shape[1]):
            block = packed[tile + n * tile_step, i]
            of_rows = block[:SCALES].view(np.float32)
            for r in range(rows):
                row = n * ROWS + r
                of_rows[r] = scales[row, i] if i < scales.shape[1] else np.float32(0)
                for k in range(min(COLUMNS, source.shape[1] - i * COLUMNS)):
                    block[SCALES + k * ROWS + r] = source[row, i * COLUMNS + k]


@inline
def encode_int8(block, packed):
    """Encode float32 bits [128, 16] as int8; a row that is not finite becomes NaN. Return 0."""
    values, scales = block.view(np.float32), packed[:SCALES].view(np.float32)
    for r in range(ROWS):
        largest, finite = np.float32(0), True
        for k in range(COLUMNS):
            size = abs(values[k, r])
            finite &= size < np.inf
            largest = max(largest, size)
        scales[r] = largest / np.float32(127) if finite else np.float32(np.nan)
        for k in range(COLUMNS):
            q = np.rint(values[k, r] / scales[r]) if finite and scales[r] > 0 else np.float32(0)
            packed[SCALES + k * ROWS + r] = np.int8(max(min(q, np.float32(127)), np.float32(-127)))
    return 0


@inline
def encode_lossless(block, packed):
    """Encode bfloat16 values, as float32 bits [128, 16]; return how many have to be listed."""
    counts = np.zeros(256, np.int64)
    for bits in block.flat:
        counts[bits >> np.uint32(23) & np.uint32(255)] += 1
    base, covered = 0, np.int64(-1)
    for start in range(256 - 15):
        mine = counts[start + 1 : start + 16].sum()
        if mine > covered:
            base, covered = start, mine
    listed = 0
    for k in range(COLUMNS):
        for r in range(ROWS):
            word = block[k, r] >> np.uint32(16)
            exponent = np.int64(word >> np.uint32(7) & np.uint32(255))
            code = exponent - base if exponent > 0 else 0
            if exponent > 0 and not 1 <= code <= 15:
                code = 0
                if listed < MOST_LISTED:
                    place, at = k * ROWS + r, LISTED + 4 * listed
                    packed[at], packed[at + 1] = place & 255, place >> 8
                    packed[at + 2], packed[at + 3] = word & np.uint32(255), word >> np.uint32(8)
                listed += 1
            packed[HEADER + k * ROWS + r] = (word & np.uint32(127)) << np.uint32(1) | word >> np.uint32(15)
            codes_at = HEADER + COLUMNS * ROWS + k // 2 * ROWS + r
            packed[codes_at] |= np.uint8(code << (4 if k % 2 else 0))
    packed[0], packed[1] = base, min(listed, MOST_LISTED)
    return listed
