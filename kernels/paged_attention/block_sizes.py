"""Sizes of the blocks in which the TPU's attention kernels walk keys and queries.

Chosen so that every kernel fits 16 MiB of VMEM with double buffers (v4, v5e, v5p) at heads of 128 numbers, from one to
eight query heads to a key head.
"""

LANES, SUBLANES = 128, 8
KEYS = 256  # of a block that is multiplied at once
KEYS_OF_GRADIENT = 128  # whose gradient is summed at once
# Of one product. A row's bits do not depend on it.
ROWS = 256
# Bytes that one block of keys has in VMEM, of all the key heads that a place of the grid takes.
BLOCK_BYTES = 512 * 1024
# Bytes that the queries of a place of the grid have in VMEM.
QUERY_BYTES = 512 * 1024
TABLE = 128 * 1024  # numbers of pages of all sequences, each sequence's padded to whole lanes, in 1 MiB of SMEM


def keys_at_once(page: int) -> int:
    """Keys of a block of whole pages. It depends on a pool alone: a row's bits must not depend on who else is there."""
    return max(1, KEYS // page) * page


def heads_at_once(groups: int, rows: int, keys: int, row_bytes: int) -> int:
    """Key heads that one place of the grid takes, a divisor of `groups`: all of them, or a multiple of eight.

    `rows` queries and `keys` keys a head, each of `row_bytes`.
    """
    most = max(1, min(BLOCK_BYTES // (keys * row_bytes), QUERY_BYTES // (rows * row_bytes)))
    if groups <= most:
        return groups
    return max((n for n in range(1, most + 1) if groups % n == 0), default=1)


def queries_at_once(tile: int, group: int, row_bytes: int) -> int:
    """Queries of a tile that one place of the grid takes; `group` rows each, of `row_bytes`.

    At least eight, or fewer where those of one query fill whole sublanes.
    """
    least = 1 if group % SUBLANES == 0 else SUBLANES
    while tile > least and tile % 2 == 0 and tile * group * row_bytes > QUERY_BYTES:
        tile //= 2
    return tile
