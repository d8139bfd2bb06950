"""Widths of the blocks in which the TPU's kernel walks an expert's matrix.

Chosen so that two matrices, two tiles of 128 rows and the adapters' factors fit 16 MiB of VMEM (v4, v5e, v5p), and
that the experts of a 30B-A3B (2048 x 768) take one block: consecutive tiles of one expert then read it once.
"""

LANES = 128
MATRIX_BYTES = 7 * 512 * 1024


def width_of_block(width: int, depth: int, itemsize: int) -> int | None:
    """The widest block of columns, `depth` long, that divides `width` evenly; None where there is none.

    It depends on the matrix alone, never on a batch.
    """
    limit = MATRIX_BYTES // (depth * itemsize)
    if width <= limit:
        return width
    lanes, rest = divmod(width, LANES)
    if rest:
        return None
    return next((LANES * n for n in range(limit // LANES, 0, -1) if lanes % n == 0), None)
