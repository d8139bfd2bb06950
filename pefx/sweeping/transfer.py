"""What a rate that was found at one rank means at another, by rules as data. Plain Python.

Alpha goes as a power of the rank, and so does the factor on an adapter's product, `alpha / rank` of LoRA and
`alpha / sqrt(rank)` of rsLoRA. A rule of rates has, for each power of that factor that it says something of, the power
that the rate goes by; of what it says nothing, it moves no rate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from pefx.config import AlphaRule, RateRule, Record
from pefx.errors import PefxError

HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)

# alpha ~ rank ** power. By rank, alpha / rank is fixed, as most recipes have it; by root, alpha / sqrt(rank).
ALPHAS: dict[AlphaRule, Fraction] = {"by_rank": Fraction(1), "by_root": HALF, "constant": Fraction(0)}
# factor ~ alpha / rank ** power, of methods that train both factors (Hu et al. 2021; Kalajdzievski 2023).
METHOD_POWERS = {"lora": Fraction(1), "lora_plus": Fraction(1), "rslora": HALF}


@dataclass(frozen=True)
class Rule:
    """`powers`: by the power of the rank in the factor on the product, that in the rate. `everywhere`: rates stay, and
    of any method and start.
    """

    powers: Mapping[Fraction, Fraction]
    everywhere: bool = False


RULES: dict[RateRule, Rule] = {
    # What is done where nothing is known.
    "unchanged": Rule({}, everywhere=True),
    # The first step moves the product by rate * factor ** 2 * rank, which is `rate alpha ** 2 / rank` of LoRA; the
    # rate keeps that ("On the Scaling of PEFT", 2606.02437): alpha by root moves no rate, alpha by rank does.
    "first_step": Rule({Fraction(0): Fraction(-1), -HALF: Fraction(0), Fraction(-1): Fraction(1)}),
    # Under Adam, A drawn and B zero (Chen, Villar, Hayou 2026, 2602.06204): a factor of 1 / rank keeps the best rate,
    # one of 1 / sqrt(rank) moves it by rank ** -1/4. A fixed factor transfers worst, and has no rule here.
    "mu_a": Rule({Fraction(-1): Fraction(0), -HALF: -QUARTER}),
}


def at(record: Record, rank: int) -> Record:
    """What a record means at `rank`: the adapter with its alpha there, and the learning rate.

    Raises PefxError (kind "bad_adapter") for a rank below 1, and where the rule of rates says nothing of such adapters.
    """
    if rank < 1:
        raise PefxError(f"rank {rank} is none; an adapter has a rank of 1 or more", "bad_adapter")
    own = record.adapter
    if rank == own.rank:
        return record
    ratio, by_alpha = rank / own.rank, ALPHAS[record.scaling.alpha]
    adapter = replace(own, rank=rank, alpha=own.alpha * ratio ** float(by_alpha))
    return replace(record, adapter=adapter, learning_rate=record.learning_rate * ratio ** float(_power(record)))


def _power(record: Record) -> Fraction:
    """The power of the rank that the learning rate goes by."""
    name, own = record.scaling.rate, record.adapter
    rule = RULES[name]
    if rule.everywhere:
        return Fraction(0)
    if own.method not in METHOD_POWERS or own.init != "default" or own.frozen != "none":
        told = f"rule '{name}' is of {', '.join(METHOD_POWERS)} that train a and b from the default start"
        what = f"method '{own.method}', init '{own.init}', frozen '{own.frozen}'"
        raise PefxError(f"{told}, not of {what}; 'unchanged' is of all", "bad_adapter")
    factor = ALPHAS[record.scaling.alpha] - METHOD_POWERS[own.method]
    if factor not in rule.powers:
        known = [alpha for alpha, by_alpha in ALPHAS.items() if by_alpha - METHOD_POWERS[own.method] in rule.powers]
        told = f"rule '{name}' says nothing of '{own.method}' with alpha '{record.scaling.alpha}'"
        raise PefxError(f"{told}; it does of alpha {', '.join(map(repr, known))}", "bad_adapter")
    return rule.powers[factor]
