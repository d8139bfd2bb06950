"""Widths of the blocks in which the TPU's kernels walk a factor's long axis.

Chosen so that every kernel fits 16 MiB of VMEM with double buffers (v4, v5e, v5p) at ranks up to 64, and that the
shapes of small projections take one block.
"""

LANES = 128
# Rank times width of a block of a factor: eight slots' blocks are in VMEM twice when single rows are gathered.
FACTOR_ELEMENTS = 64 * 1024
# Widest block of rows, for tiles of up to 128: inner is contracted (x), outer is added to (y). Backward the sums of
# gradients take room too.
INNER, OUTER, OUTER_BACKWARD = 4096, 4096, 2048
# Float32 sums of one slot's gradients kept in VMEM, elements; more of them and a and b take a kernel each.
SUMS = 9 * 256 * 1024


def width_of_block(width: int, rank: int, most: int) -> int | None:
    """The widest block of at most `most` columns that divides `width` evenly; None where there is none.

    A block is the whole axis or a multiple of 128 lanes of it. It depends on what a bank looks like, never on a batch:
    an inner axis is summed block by block, and a row's bits must not depend on who else is there.
    """
    limit = min(most, FACTOR_ELEMENTS // rank)
    if width <= limit:
        return width
    lanes, rest = divmod(width, LANES)
    if rest:
        return None
    return next((LANES * n for n in range(limit // LANES, 0, -1) if lanes % n == 0), None)
