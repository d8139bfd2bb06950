"""The cells of the capacity law: where an adapter lies, how large it is, how much it has to hold."""

from dataclasses import dataclass

from pefx.adapters.methods.counting import parameters
from pefx.config import AdapterSpec, ModelConfig

# Experts share the factor on the hidden side, so that one rank of any placement is a small step in parameters.
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("down_proj", "experts.down_proj")
SITES = {"MLP": MLP, "attention": ATTENTION, "all": ATTENTION + MLP, "unembedding": ("unembed",)}
# Ranks by size and placement. Over a base of width 32, where a rank of attention is 896 numbers, of the MLP 800 and of
# the unembedding 296, adapters of a size differ by 12 % at most.
RANKS = {
    "tiny": {"MLP": 1, "attention": 1, "unembedding": 3},
    "small": {"MLP": 2, "attention": 2, "all": 1, "unembedding": 6},
    "large": {"MLP": 8, "attention": 8, "all": 4},
}


@dataclass(frozen=True)
class Cell:
    """Adapters of one placement and size."""

    placement: str
    size: str

    @property
    def label(self) -> str:
        return f"{self.placement}-{self.size}"

    @property
    def spec(self) -> AdapterSpec:
        rank = RANKS[self.size][self.placement]
        return AdapterSpec(rank=rank, alpha=2.0 * rank, targets=SITES[self.placement], expert_form="shared_hidden")

    def parameters(self, model: ModelConfig) -> int:
        """Numbers that one of them learns."""
        return parameters(model, self.spec)


CELLS = tuple(Cell(placement, size) for size, ranks in RANKS.items() for placement in ranks)
