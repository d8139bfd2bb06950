"""Rows of an expert tile and of an (expert, slot) subtile, and room for factors in a TPU's VMEM.

A decode is likely the only row of its (expert, slot), a chunk has many. In the portable form no tile is below 2 rows or
above 32: from 2 to 32 a row keeps its bits whatever the size of the expert's matrix. On a TPU a tile fills the matrix
unit, and a subtile one register of bfloat16.
"""

DECODE, CHUNKS = (8, 1), (32, 16)
WINDOW = 32
TPU_DECODE, TPU_CHUNKS = (8, 1), (128, 16)
# Bytes of one of the two buffers into which a tile's blocks of a factor are gathered.
FACTOR_BYTES = 512 * 1024
