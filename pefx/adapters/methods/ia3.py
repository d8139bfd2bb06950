"""IA3 (Liu et al. 2022, 2205.05638): a gain for each output of a projection.

What the paper multiplies before `down_proj` are the outputs of `up_proj`: that is the site to name.
"""

from pefx.adapters.methods.method import ONE, Leaf, Method, rows_only, unscaled

IA3 = Method({"gains": Leaf("one", "writes", ONE, "writes")}, unscaled, refuses=rows_only)
