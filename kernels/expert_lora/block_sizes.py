"""Rows of an expert tile and of an (expert, slot) subtile, by the kind of batch."""

DECODE, MIXED, CHUNKS = (8, 2), (32, 2), (32, 16)


def block_sizes(singles: int, tokens: int) -> tuple[int, int]:
    """(tile, subtile) of a batch whose first `singles` of `tokens` rows are decodes.

    A decode is likely the only row of its (expert, slot), a chunk has many. Never below 2 rows or above 32: from 2 to
    32 a row keeps its bits whatever the size of the expert's matrix.
    """
    if not singles:
        return CHUNKS
    return DECODE if singles == tokens else MIXED
