"""Rows of an expert tile and of an (expert, slot) subtile.

A decode is likely the only row of its (expert, slot), a chunk has many. No tile below 2 rows or above 32: from 2 to 32
a row keeps its bits whatever the size of the expert's matrix.
"""

DECODE, CHUNKS = (8, 1), (32, 16)
WINDOW = 32
