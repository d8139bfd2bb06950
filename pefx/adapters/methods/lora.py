"""LoRA (Hu et al. 2021) and its kin that differ in scale or rates: the factors themselves are trained."""

from pefx.adapters.methods.method import ZERO, Leaf, Method, by_rank, uniform

LEAVES = {"a": Leaf("rank", "reads", uniform, "reads"), "b": Leaf("rank", "writes", ZERO, "writes")}

LORA = Method(LEAVES, by_rank)
# Kalajdzievski 2023 (2312.03732), eq. 4.
RSLORA = Method(LEAVES, lambda alpha, rank: alpha / rank**0.5)
# Hayou et al. 2024 (2402.12354), section 4: B learns 16 times as fast as A.
LORA_PLUS = Method(LEAVES, by_rank, rates={"b": 16.0})
