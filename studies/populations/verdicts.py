"""What a page says of a claim, by an interval."""

from pefx.sweeping.intervals import Interval

# What all these pages share, and what it limits.
LIMITS = (
    "How sure is this? Seeds differ in problems, order and start; intervals are over six of them, and are not "
    "corrected for how many there are on this page. The base has 1.3 million parameters, has read nothing but such "
    "tasks, and knows half of what is asked already. Adapters are on attention and dense layers, not on experts; "
    "runs are short (30 updates). Matrices are 128 wide, so that rank 64 is half of all there is, and their last "
    "directions are not what is left over of a trillion tokens. What shows here is that such effects can be "
    "measured with these tools; it says little about which of them a large base has."
)


def verdict(found: Interval, above: str, below: str, neither: str) -> str:
    """One of three things to say: where the interval lies above 0, below it, or holds it."""
    if found.low > 0:
        return above
    return below if found.high < 0 else neither
