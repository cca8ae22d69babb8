"""A row of D numbers in registers, for kernels that hold whole rows.

Triton's blocks are powers of two, so a row is a tuple of them: as many as fit of the width at which each thread has one
vector, then one or two for the rest: 2304 = 1024 + 1024 + 256 without a lane of padding. Each thread holds the same
columns of every row whatever its dtype, so rows are added and converted without an exchange between threads.

PIECES is a constexpr tuple of (start, width, vector, keep, pass), the last two of them hints for the L2 cache: whether
gathered rows are to stay in it, and whether stored ones are to leave it first. The padding of the last piece loads as 0.
"""

import triton
import triton.language as tl

VECTOR = 4  # elements: 16 bytes of fp32, and more of a narrower dtype would be other columns
Pieces = tuple[tuple[int, int, int, int, int], ...]


def pieces_of(D: int, num_warps: int, keep_gathered: bool = True, pass_stored: bool = False) -> Pieces:
    """Start, width and elements loaded at once by a thread, for each piece of a row of D; and the hints (0 or 1)."""
    threads = 32 * num_warps
    widths = [VECTOR * threads] * (D // (VECTOR * threads))
    rest = D - sum(widths)
    if rest:
        first = 1 << (rest.bit_length() - 1)
        second = triton.next_power_of_2(rest - first) if rest > first else 0
        widths += [2 * first] if second == first else [first, second] if second else [first]
    starts = [sum(widths[:i]) for i in range(len(widths))]
    aligned = D & -D  # row j begins at j * D: the largest power of two that divides all of these
    vectors = [min(VECTOR, aligned, max(1, width // threads)) for width in widths]
    hints = int(keep_gathered), int(pass_stored)
    return tuple((*piece, *hints) for piece in zip(starts, widths, vectors, strict=True))


@triton.jit
def zeros(PIECES: tl.constexpr):
    row = ()
    for i in tl.static_range(len(PIECES)):
        row += (tl.zeros((tl.constexpr(PIECES[i][1]),), tl.float32),)
    return row


@triton.jit
def load_row(ptr, offset, D: tl.constexpr, PIECES: tl.constexpr, zero=0):
    """The row that starts at ptr + offset (int64), in the dtype of memory.

    What is read once in a step should not push out of the cache what is read often.
    """
    row = ()
    for i in tl.static_range(len(PIECES)):
        cols = tl.arange(0, PIECES[i][1])
        at = offset + PIECES[i][0] + (cols + zero)
        if PIECES[i][2] > 1:  # Triton fails on a hint for a row of one number
            at = tl.multiple_of(at, tl.constexpr(PIECES[i][2]))
        if PIECES[i][0] + PIECES[i][1] <= D:
            row += (tl.load(ptr + at, eviction_policy="evict_first"),)
        else:
            in_row = cols < D - PIECES[i][0]
            row += (tl.load(ptr + at, mask=in_row, other=0, eviction_policy="evict_first"),)
    return row


@triton.jit
def store_row(ptr, offset, row, D: tl.constexpr, PIECES: tl.constexpr, READ_SOON: tl.constexpr = False):
    """READ_SOON: by a kernel of the same step, so that it is not to leave the cache, whatever PIECES says."""
    for i in tl.static_range(len(PIECES)):
        cols = tl.arange(0, PIECES[i][1])
        at = offset + PIECES[i][0] + cols
        if PIECES[i][2] > 1:  # Triton fails on a hint for a row of one number
            at = tl.multiple_of(at, tl.constexpr(PIECES[i][2]))
        value = row[i].to(ptr.dtype.element_ty)
        if PIECES[i][0] + PIECES[i][1] <= D:
            tl.store(ptr + at, value, eviction_policy="evict_first" if PIECES[i][4] and not READ_SOON else "")
        else:
            tl.store(
                ptr + at,
                value,
                mask=cols < D - PIECES[i][0],
                eviction_policy="evict_first" if PIECES[i][4] and not READ_SOON else "",
            )


@triton.jit
def gather_rows(ptr, rows, valid, zero, D: tl.constexpr, PIECES: tl.constexpr):
    """rows [R] int64 -> tuple of [R, width]. Rows without `valid` and the padding are 0.

    zero: a 0 of which the compiler does not know. It would add ptr to the columns once per program and keep the sums,
    two registers for each piece, to the end.
    """
    tiles = ()
    for i in tl.static_range(len(PIECES)):
        cols = tl.arange(0, PIECES[i][1])
        at = (rows * D + PIECES[i][0])[:, None] + (cols + zero)[None, :]
        if PIECES[i][2] > 1:
            at = tl.multiple_of(at, [1, tl.constexpr(PIECES[i][2])])
        mask = valid[:, None]
        if PIECES[i][0] + PIECES[i][1] > D:
            mask = mask & (cols < D - PIECES[i][0])[None, :]
        tiles += (
            tl.load(ptr + at, mask=mask, other=0.0, eviction_policy="evict_last" if PIECES[i][3] else ""),
        )
    return tiles


@triton.jit
def add_scaled(row, scale, other):
    """row + scale * other in fp32."""
    out = ()
    for i in tl.static_range(len(row)):
        out += (row[i] + scale * other[i].to(tl.float32),)
    return out


@triton.jit
def add_rows(row, scales, tiles):
    """row + sum over r of scales[r] * tiles[r] in fp32."""
    out = ()
    for i in tl.static_range(len(row)):
        out += (row[i] + tl.sum(scales[:, None] * tiles[i].to(tl.float32), axis=0),)
    return out


@triton.jit
def dot(left, right):
    """Pieces of one width are added first: each reduction waits for all threads."""
    products = left[0] * right[0]
    total = 0.0
    for i in tl.static_range(1, len(left)):
        if left[i].shape[0] == left[i - 1].shape[0]:
            products += left[i] * right[i]
        else:
            total += tl.sum(products)
            products = left[i] * right[i]
    return total + tl.sum(products)


@triton.jit
def largest(row):
    """The largest |x| of a row."""
    largest_of = tl.abs(row[0])
    result = 0.0
    for i in tl.static_range(1, len(row)):
        if row[i].shape[0] == row[i - 1].shape[0]:
            largest_of = tl.maximum(largest_of, tl.abs(row[i]))
        else:
            result = tl.maximum(result, tl.max(largest_of))
            largest_of = tl.abs(row[i])
    return tl.maximum(result, tl.max(largest_of))


@triton.jit
def row_dots(tiles, row):
    """-> [R]: the product of each of R rows with `row`."""
    products = tiles[0].to(tl.float32) * row[0][None, :]
    total = tl.zeros((tiles[0].shape[0],), tl.float32)
    for i in tl.static_range(1, len(row)):
        if row[i].shape[0] == row[i - 1].shape[0]:
            products += tiles[i].to(tl.float32) * row[i][None, :]
        else:
            total += tl.sum(products, axis=1)
            products = tiles[i].to(tl.float32) * row[i][None, :]
    return total + tl.sum(products, axis=1)
