"""The table of losses: names, default numbers, and what the host prepares for each. Standard library only.

What a loss is comes in two parts. The host makes constants for each token: a weight, an advantage, an old
log-probability, the base's log-probability; and for each policy what its gradient is divided by. The device computes
the part that depends on the live log-probability, the surrogate (`pefx.losses.policy`), for which there are few: many
losses differ in what the host makes alone. A new loss is a row here, and a function there where its surrogate is new.

Formulas below are of what is minimised. `logp` is the live log-probability of a token, `old` that of the policy named
in the row, `r = exp(logp - old)`, `A` the advantage, `clip(r) = min(max(r, 1 - clip_low), 1 + clip_high)`; `sg` stops
the gradient. To each token of any row may be added `kl (exp(d) - d - 1)` with `d = base - logp`, which estimates the
divergence from the base (k3 of Schulman 2020, "Approximating KL divergence"), and `-entropy H`. Both are 0 by default.
"""

from dataclasses import dataclass
from typing import Literal

# What the device computes of a token.
Surrogate = Literal["cross_entropy", "ratio", "clipped", "clipped_weight", "quadratic", "logistic"]
# What log-ratio a surrogate reads: the token's own, the mean over the tokens of its sequence that have a weight, or the
# sum over them minus the same of the sequence that it is paired with.
Over = Literal["token", "sequence", "pair"]
# Whose log-probabilities the log-ratio is against. "none": it is not read. "sampler": as the rollout recorded them.
# "trainer": of the policy as it is before the batch's first update, by the trainer's own forward; corrections of the
# mismatch are between this one and the sampler's. "proximal": the same, and the weight of a token is multiplied by
# exp(proximal - sampler). "base": of the frozen base.
Old = Literal["none", "sampler", "trainer", "proximal", "base"]
# From the rewards R of a group (the samples of one prompt). "none": not read. "group_centred": R - mean.
# "group_normalised": (R - mean) / (std + 1e-6). "batch_normalised": the group centred, then all of the policy's batch
# brought to mean 0 and standard deviation 1. "preference": 1 for the better of a pair, -1 for the worse. "context":
# group-normalised, of another number than rewards: the log-probability of the whole answer by the same policy with the
# problem's context before the prompt, less the old one without.
Advantage = Literal["none", "group_centred", "group_normalised", "batch_normalised", "preference", "context"]
# How tokens add up. "token_mean": the mean over all tokens of the batch. "sequence_mean": the mean over sequences of
# the mean over the tokens of each. "constant": the sum over all tokens, divided by the number of sequences times the
# longest completion allowed. Tokens that a correction rejects count nowhere.
Aggregation = Literal["token_mean", "sequence_mean", "constant"]


@dataclass(frozen=True)
class Loss:
    """One row. Ratios stay in [1 - `clip_low`, 1 + `clip_high`], `beta` is the number so named in the formula; a loss
    that does not read one has 0 there.
    """

    surrogate: Surrogate
    old: Old
    advantage: Advantage
    aggregation: Aggregation
    formula: str
    source: str
    over: Over = "token"
    clip_low: float = 0.0
    clip_high: float = 0.0
    beta: float = 0.0


CLIPPED = "-min(r A, clip(r) A)"
LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(
        surrogate="cross_entropy",
        old="none",
        advantage="none",
        aggregation="token_mean",
        formula="-logp",
        source="maximum likelihood",
    ),
    "importance_sampling": Loss(
        surrogate="ratio",
        old="sampler",
        advantage="group_centred",
        aggregation="constant",
        formula="-r A",
        source="policy gradient of Williams 1992, off policy",
    ),
    "ppo": Loss(
        surrogate="clipped",
        old="trainer",
        advantage="group_centred",
        aggregation="token_mean",
        formula=CLIPPED,
        source="Schulman et al. 2017 (1707.06347), eq. 7; a group's mean in place of the critic",
        clip_low=0.2,
        clip_high=0.2,
    ),
    "grpo": Loss(
        surrogate="clipped",
        old="trainer",
        advantage="group_normalised",
        aggregation="sequence_mean",
        formula=CLIPPED,
        source="Shao et al. 2024 (2402.03300), eq. 3",
        clip_low=0.2,
        clip_high=0.2,
    ),
    "dr_grpo": Loss(
        surrogate="clipped",
        old="trainer",
        advantage="group_centred",
        aggregation="constant",
        formula=CLIPPED,
        source="Liu et al. 2025 (2503.20783), section 3.2",
        clip_low=0.2,
        clip_high=0.2,
    ),
    "dapo": Loss(
        surrogate="clipped",
        old="trainer",
        advantage="group_normalised",
        aggregation="token_mean",
        formula=CLIPPED,
        source="Yu et al. 2025 (2503.14476), eq. 8",
        clip_low=0.2,
        clip_high=0.28,
    ),
    "gspo": Loss(
        surrogate="clipped",
        over="sequence",
        old="trainer",
        advantage="group_normalised",
        aggregation="sequence_mean",
        formula="-min(s A, clip(s) A), s = exp(mean of logp - old over the sequence)",
        source="Zheng et al. 2025 (2507.18071), eq. 5",
        clip_low=0.0003,
        clip_high=0.0004,
    ),
    "cispo": Loss(
        surrogate="clipped_weight",
        old="trainer",
        advantage="group_normalised",
        aggregation="token_mean",
        formula="-sg(clip(r)) A logp",
        source="MiniMax 2025 (2506.13585), eq. 4; ratios up to 5 as in Khatri et al. 2025 (2510.13786)",
        clip_low=1.0,
        clip_high=4.0,
    ),
    "dro": Loss(
        surrogate="quadratic",
        old="sampler",
        advantage="group_centred",
        aggregation="constant",
        formula="-(logp A - beta / 2 (logp - old)^2)",
        source="Richemond et al. 2024 (2405.19107), for each token",
        beta=0.05,
    ),
    "decoupled_ppo": Loss(
        surrogate="clipped",
        old="proximal",
        advantage="group_centred",
        aggregation="token_mean",
        formula="-w min(r A, clip(r) A), w = exp(old - sampler)",
        source="Hilton et al. 2022 (2110.00641), section 3",
        clip_low=0.2,
        clip_high=0.2,
    ),
    "reinforce_pp": Loss(
        surrogate="clipped",
        old="trainer",
        advantage="batch_normalised",
        aggregation="token_mean",
        formula=CLIPPED,
        source="Hu et al. 2025 (2501.03262), REINFORCE++-baseline",
        clip_low=0.2,
        clip_high=0.2,
    ),
    "dpo": Loss(
        surrogate="logistic",
        over="pair",
        old="base",
        advantage="preference",
        aggregation="sequence_mean",
        formula="-log sigmoid(beta A m), m = sum of logp - old over the sequence, less its partner's",
        source="Rafailov et al. 2023 (2305.18290), eq. 7",
        beta=0.1,
    ),
    "context": Loss(
        surrogate="ratio",
        old="trainer",
        advantage="context",
        aggregation="token_mean",
        formula="-r A, A of the sum of (logp given the context - old) over the answer",
        source="on-policy distillation, Agarwal et al. 2024 (2306.13649), eq. 4, from itself with the context",
    ),
}
# The number by which the device knows a loss.
NUMBER = {name: index for index, name in enumerate(LOSSES)}
