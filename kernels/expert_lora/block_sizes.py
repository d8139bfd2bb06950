"""Rows of an expert tile and of an (expert, slot) subtile.

A decode is likely the only row of its (expert, slot), a chunk has many. In the portable form no tile is below 2 rows or
above 32: from 2 to 32 a row keeps its bits whatever the size of the expert's matrix. On a TPU a tile fills the matrix
unit, rows of several pairs share it, and gradients are summed in parts of one register of bfloat16.
"""

DECODE, CHUNKS = (8, 1), (32, 16)
WINDOW = 32
TPU_DECODE, TPU_CHUNKS = (8, 1), (128, 1)
TPU_SUMS = 16
# Factors of a tile that are copied together and make one product with its rows.
RUNS = 8
