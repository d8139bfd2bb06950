"""What `mixed_adapters` measures: cases side by side, and the ratios they are asked for."""

from dataclasses import dataclass, replace

from benchmarks.peers.case import Case

PEFX, SKYRL, TORCH = "pefx", "skyrl", "torch"
NAMES = {PEFX: "pefx", SKYRL: "SkyRL tx", TORCH: "transformers + PEFT"}


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: a case, and whose program runs it."""

    peer: str
    case: Case

    @property
    def name(self) -> str:
        case = self.case
        adapters = f"{case.adapters} adapters" if case.adapters else "bare base"
        resident = f", {case.slots} slots" if case.adapters and self.peer != TORCH else ""
        return f"{NAMES[self.peer]}, {adapters}{resident}"


@dataclass(frozen=True)
class Target:
    """The rate of one entry over another's, by their places in the comparison, and what it should at least be."""

    entry: int
    over: int
    least: float


@dataclass(frozen=True)
class Comparison:
    """Entries that run in turn, one repetition each, again and again. The first is pefx's."""

    name: str
    title: str
    entries: tuple[Entry, ...]
    targets: tuple[Target, ...]


def train(adapters: int, sequences: int) -> Case:
    """A training step over sequences of 64 tokens; a slot for each adapter, one more for SkyRL's base."""
    return Case("train", adapters, sequences, slots=adapters + 1, rank=16, seed=1, length=64)


def generate(adapters: int, sequences: int) -> Case:
    """32 new tokens after prompts of 64."""
    return Case("generate", adapters, sequences, slots=adapters + 1, rank=16, seed=1, prompt=64, new=32)


def among(slots: int, case: Case) -> Case:
    """The case with this many slots resident."""
    return replace(case, slots=slots)


def all_three(case: Case) -> tuple[Entry, ...]:
    return tuple(Entry(peer, case) for peer in (PEFX, SKYRL, TORCH))


def own(case: Case) -> Entry:
    return Entry(PEFX, case)


COMPARISONS = (
    Comparison(
        "train-4",
        "train, 4 adapters, 8 sequences",
        (*all_three(train(4, 8)), own(among(257, train(4, 8)))),
        (Target(0, 1, 10), Target(0, 2, 1), Target(3, 0, 1 / 1.10)),
    ),
    Comparison(
        "train-8",
        "train, 8 adapters, 8 sequences",
        all_three(train(8, 8)),
        (Target(0, 1, 20), Target(0, 2, 1.5)),
    ),
    Comparison(
        "train-16",
        "train, 16 adapters, 16 sequences",
        all_three(train(16, 16)),
        (Target(0, 2, 2.5),),
    ),
    Comparison(
        "train-64",
        "train, 64 sequences",
        (own(train(64, 64)), own(train(1, 64))),
        (Target(0, 1, 0.8),),
    ),
    Comparison(
        "generate-4",
        "generate, 4 adapters, 8 sequences",
        (*all_three(generate(4, 8)), own(among(257, generate(4, 8)))),
        (Target(0, 1, 6), Target(0, 2, 2), Target(3, 0, 1 / 1.10)),
    ),
    Comparison(
        "generate-8",
        "generate, 8 adapters, 8 sequences",
        (*all_three(generate(8, 8)), own(generate(0, 8)), Entry(TORCH, generate(0, 8))),
        (Target(0, 1, 6), Target(0, 2, 2)),
    ),
    Comparison(
        "generate-64",
        "generate, 64 adapters, 64 sequences",
        (*all_three(generate(64, 64)), own(generate(0, 64))),
        (Target(0, 1, 10), Target(0, 2, 4), Target(0, 3, 0.85)),
    ),
    # With train-4, the picture of resident slots. One SkyRL at a time: each takes some GB.
    *(
        Comparison(
            f"resident-{slots}",
            f"train, 4 adapters among {slots} slots",
            (own(among(slots, train(4, 8))), Entry(SKYRL, among(slots, train(4, 8)))),
            (Target(0, 1, 10),),
        )
        for slots in (9, 17)
    ),
    Comparison("resident-65", "train, 4 adapters among 65 slots", (own(among(65, train(4, 8))),), ()),
)
