"""The kernels, in Triton's language. Importing this module imports triton."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

# How signs are held (SIGNS): by one scale, by a scale each, whose products are separate, or by a zero point.
PLAIN, DUAL, ZERO_POINT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# How columns are cut into runs, each with scales of its own (RUNS): not at all; into runs of RUN columns, one step of
# the product each; or as `table` lists them: [start, stop, weight scale, input piece, whether signs are apart].
ONE, EQUAL, LISTED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
TINY = tl.constexpr(2.0**-126)
"""The least scale, as segquant.numerics.functional chooses it."""
TO_WHOLE = tl.constexpr(12582912.0)
"""1.5 · 2²³: added and taken off again, it rounds to whole numbers, ties to even."""
UNSPECIALIZED = ("rows", "rows_class")
"""No kernel of their own for one row, or for multiples of 16."""


@triton.jit
def _whole(x):
    return (x + TO_WHOLE) - TO_WHOLE


@triton.jit
def _scale(amax, top):
    return tl.where(amax > 0, tl.maximum(tl.div_rn(amax, top), TINY), 1.0)


@triton.jit
def _scales(most, least, dual, top, SIGNS: tl.constexpr):
    """Of rows from their largest values and the smallest's magnitudes, as segquant.numerics.input_grid."""
    plain = _scale(tl.maximum(most, least), top)
    if SIGNS == PLAIN:
        return plain, plain
    if SIGNS == DUAL:
        above = tl.maximum(tl.div_rn(most, top), TINY)
        below = tl.maximum(tl.div_rn(least, top + 1), TINY)
        first = tl.where(most > 0, above, tl.where(least > 0, below, 1.0))
        second = tl.where(least > 0, below, tl.where(most > 0, above, 1.0))
        return tl.where(dual != 0, first, plain), tl.where(dual != 0, second, plain)
    wide = _scale(most + least, 2 * top + 1)
    zero = tl.minimum(_whole(tl.minimum(tl.div_rn(least, wide), 2 * top + 1)), 2 * top + 1)
    return tl.where(dual != 0, wide, plain), tl.where(dual != 0, zero, top + 1)


@triton.jit
def _values(x, smooth, at, columns, inside, SMOOTH: tl.constexpr):
    """Of the layer's input [rows, columns], smoothed, in float32."""
    values = tl.load(x + at, inside, 0.0).to(tl.float32)
    if SMOOTH:
        values = tl.div_rn(values, tl.load(smooth + columns, columns >= 0, 1.0)[None, :])
    return values


@triton.jit
def _ratio(values, first, second, SIGNS: tl.constexpr):
    scale = first[:, None] + tl.zeros_like(values)
    if SIGNS == DUAL:
        scale = tl.where(values >= 0, scale, second[:, None])
    return tl.div_rn(values, scale)


@triton.jit
def _codes(ratio, second, top, SIGNS: tl.constexpr, BITS: tl.constexpr):
    """int8. With a zero point of 8 bits less 128; of 4 bits less the zero point, which fits."""
    if SIGNS == ZERO_POINT:
        zero = second[:, None]
        codes = tl.maximum(tl.minimum(ratio, 2 * top + 1 - zero), -zero)
        codes = _whole(codes)
        if BITS == 8:
            codes += zero - (top + 1)
        return codes.to(tl.int8)
    return _whole(tl.maximum(tl.minimum(ratio, top), -top - 1)).to(tl.int8)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def quantize(
    x, smooth, above, below, cuts, codes, first, second, rows, columns, pieces,
    top: tl.constexpr, SMOOTH: tl.constexpr, STATIC: tl.constexpr, SIGNS: tl.constexpr, BITS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Codes [rows, columns] and scales [rows, pieces] of an input; a program does a piece of ROWS rows.

    A row and piece that holds what is no number gets a scale that is none.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    piece = tl.program_id(1)
    start = tl.multiple_of(tl.load(cuts + 3 * piece), ALIGN)
    stop = tl.multiple_of(tl.load(cuts + 3 * piece + 1), ALIGN)
    known = row < rows
    if STATIC:
        one = tl.load(above + piece) + tl.zeros((ROWS,), tl.float32)
        other = one
        if SIGNS != PLAIN:
            other = tl.load(below + piece) + tl.zeros((ROWS,), tl.float32)
    else:
        most = tl.zeros((ROWS,), tl.float32)
        least = tl.zeros((ROWS,), tl.float32)
        for begin in range(start, stop, BLOCK):
            column = begin + tl.arange(0, BLOCK)
            inside = known[:, None] & (column < stop)[None, :]
            at = row[:, None] * columns + column[None, :]
            values = _values(x, smooth, at, tl.where(column < stop, column, start), inside, SMOOTH)
            most = tl.maximum(most, tl.max(values, 1))
            least = tl.maximum(least, tl.max(-values, 1))
        one, other = _scales(most, least, tl.load(cuts + 3 * piece + 2), top, SIGNS)
    bad = tl.zeros((ROWS,), tl.int32)
    for begin in range(start, stop, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        inside = known[:, None] & (column < stop)[None, :]
        at = row[:, None] * columns + column[None, :]
        values = _values(x, smooth, at, tl.where(column < stop, column, start), inside, SMOOTH)
        ratio = _ratio(values, one, other, SIGNS)
        none = ratio != ratio
        bad = tl.maximum(bad, tl.max(none.to(tl.int32), 1))
        tl.store(codes + at, _codes(tl.where(none, 0.0, ratio), other, top, SIGNS, BITS), inside)
    at = row * pieces + piece
    tl.store(first + at, tl.where(bad != 0, float("nan"), one), known)
    if SIGNS == DUAL:
        tl.store(second + at, tl.where(bad != 0, float("nan"), other), known)
    if SIGNS == ZERO_POINT:
        tl.store(second + at, top + 1 - other, known)  # times the sums of weights' codes, it is added


@triton.jit
def _weights(weight, output, stride, start, stop, STEP: tl.constexpr, BITS: tl.constexpr, EVEN: tl.constexpr):
    """Codes [STEP, outputs] from `start`, int8; of 4 bits an even column is the low half of a byte."""
    if BITS == 8:
        column = start + tl.arange(0, STEP)
        at = weight + output[:, None] * stride + column[None, :]
        found = tl.load(at) if EVEN else tl.load(at, (column < stop)[None, :], 0)
    else:
        byte = start // 2 + tl.arange(0, STEP // 2)
        at = weight + output[:, None] * stride + byte[None, :]
        both = tl.load(at) if EVEN else tl.load(at, (2 * byte < stop)[None, :], 0)
        low = ((both & 15).to(tl.int8) ^ 8) - 8
        high = ((both >> 4).to(tl.int8) ^ 8) - 8
        found = tl.interleave(low, high)
    return tl.trans(found)


@triton.jit
def _multiply_step(
    codes, weight, row, output, columns, stride, start, stop, high, low,
    SPLIT: tl.constexpr, STEP: tl.constexpr, BITS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    column = start + tl.arange(0, STEP)
    at = codes + row[:, None] * columns + column[None, :]
    left = tl.load(at) if EVEN else tl.load(at, (column < stop)[None, :], 0)
    right = _weights(weight, output, stride, start, stop, STEP, BITS, EVEN)
    if SPLIT:  # one load of the weights, two products
        nothing = tl.zeros_like(left)
        high = tl.dot(tl.maximum(left, nothing), right, high, out_dtype=tl.int32)
        low = tl.dot(tl.minimum(left, nothing), right, low, out_dtype=tl.int32)
    else:
        high = tl.dot(left, right, high, out_dtype=tl.int32)
    return high, low


@triton.jit
def _scaled(
    total, high, low, first, second, weight_scale, sums, row, output, outputs, pieces, groups, group, piece, run,
    SIGNS: tl.constexpr, SPLIT: tl.constexpr, LIFTED: tl.constexpr,
):  # fmt: skip
    """total + a run's product in float32."""
    own = tl.load(weight_scale + output * groups + group).to(tl.float32)
    scale = tl.load(first + row * pieces + piece)
    if LIFTED:
        offset = tl.load(second + row * pieces + piece).to(tl.int32)
        high += offset[:, None] * tl.load(sums + run * outputs + output).to(tl.int32)[None, :]
    product = high.to(tl.float32) * scale[:, None]
    if SPLIT:
        product += low.to(tl.float32) * tl.load(second + row * pieces + piece)[:, None]
    return total + product * own[None, :]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def multiply(
    codes, weight, first, second, weight_scale, sums, table, bias, beside, out,
    rows, outputs, columns, stride, pieces, groups, runs, sums_stride, beside_stride, out_stride, rows_class,
    RUNS: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr, PIECE: tl.constexpr, RUN_STEP: tl.constexpr,
    SHARED: tl.constexpr, ALIGN: tl.constexpr, SIGNS: tl.constexpr, SPLIT: tl.constexpr, LIFTED: tl.constexpr,
    BITS: tl.constexpr, BIAS: tl.constexpr, BESIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """[rows, columns] codes times [outputs, columns] codes, scaled, with what is added: [rows, outputs].

    A program does a tile of BLOCK_M rows and BLOCK_N outputs; BAND tiles of rows share outputs one after the other, so
    that weights stay in the cache. SHARED divides the lengths of all runs.
    """
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(outputs, BLOCK_N)
    tile = tl.program_id(0)
    band = tile // (BAND * tiles_n)
    height = min(tiles_m - band * BAND, BAND)
    tile_m = band * BAND + tile % (BAND * tiles_n) % height
    tile_n = tile % (BAND * tiles_n) // height
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    known = (row < rows)[:, None] & (output < outputs)[None, :]
    row, output = (row % rows).to(tl.int64), (output % outputs).to(tl.int64)  # loads need no mask
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    nothing = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    if RUNS == ONE:
        high, low = nothing, nothing
        for start in range(0, columns, BLOCK_K):
            high, low = _multiply_step(
                codes, weight, row, output, columns, stride, start, columns, high, low,
                SPLIT, BLOCK_K, BITS, SHARED % BLOCK_K == 0,
            )  # fmt: skip
        total = _scaled(
            total, high, low, first, second, weight_scale, sums, row, output, sums_stride, pieces, groups, 0, 0, 0,
            SIGNS, SPLIT, LIFTED,
        )  # fmt: skip
    elif RUNS == EQUAL:
        for run in range(0, runs):
            start = run * RUN
            high, low = _multiply_step(
                codes, weight, row, output, columns, stride, start, start + RUN, nothing, nothing,
                SPLIT, RUN_STEP, BITS, RUN == RUN_STEP,
            )  # fmt: skip
            total = _scaled(
                total, high, low, first, second, weight_scale, sums, row, output, sums_stride, pieces, groups,
                start // GROUP, start // PIECE, run, SIGNS, SPLIT, LIFTED,
            )  # fmt: skip
    else:
        for run in range(0, runs):
            begin = tl.multiple_of(tl.load(table + 5 * run), ALIGN)
            stop = tl.multiple_of(tl.load(table + 5 * run + 1), ALIGN)
            group, piece = tl.load(table + 5 * run + 2), tl.load(table + 5 * run + 3)
            high, low = nothing, nothing
            if SPLIT:  # of a piece whose signs are not apart one product is enough: this loop then is empty
                apart = tl.where(tl.load(table + 5 * run + 4) != 0, stop, begin)
                for start in range(begin, apart, BLOCK_K):
                    high, low = _multiply_step(
                        codes, weight, row, output, columns, stride, start, stop, high, low,
                        True, BLOCK_K, BITS, SHARED % BLOCK_K == 0,
                    )  # fmt: skip
                begin = tl.multiple_of(apart, ALIGN)
            for start in range(begin, stop, BLOCK_K):
                high, low = _multiply_step(
                    codes, weight, row, output, columns, stride, start, stop, high, low,
                    False, BLOCK_K, BITS, SHARED % BLOCK_K == 0,
                )  # fmt: skip
            total = _scaled(
                total, high, low, first, second, weight_scale, sums, row, output, sums_stride, pieces, groups,
                group, piece, run, SIGNS, SPLIT, LIFTED,
            )  # fmt: skip
    if BESIDE:
        total += tl.load(beside + row[:, None] * beside_stride + output[None, :]).to(tl.float32)
    if BIAS:
        total += tl.load(bias + output)[None, :]
    tl.store(out + row[:, None] * out_stride + output[None, :], total.to(out.dtype.element_ty), known)
