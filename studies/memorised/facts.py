"""What one memory holds: a numbered list of names, some corrected later, and the questions that are asked about it."""

from dataclasses import dataclass
from random import Random

CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxz", "aeiou"
NAMES = len(CONSONANTS) ** 2 * len(VOWELS)
CORRECTED = 4  # one slot in so many

POSITION, ADJACENCY, CORRECTION = KINDS = ("position", "adjacency", "correction")


@dataclass(frozen=True)
class Question:
    """A question, its right answer, and what kind it is (None: learned, but not asked)."""

    prompt: str
    answer: str
    kind: str | None


@dataclass(frozen=True)
class Memory:
    """Names by slot; `before` are those of corrected slots as they were first, which count no more."""

    names: tuple[str, ...]
    before: dict[int, str]

    @property
    def notes(self) -> str:
        """The memory as a context would hold it: a line for each slot, then a line for each correction."""
        first = [f"{slot} {self.before.get(slot, name)}\n" for slot, name in enumerate(self.names)]
        return "".join([*first, *(f"{slot} {self.names[slot]}\n" for slot in sorted(self.before))])

    @property
    def questions(self) -> list[Question]:
        """All that there is to ask, and what corrected slots were called before."""
        asked = [
            Question(f"{slot}?", name, CORRECTION if slot in self.before else POSITION)
            for slot, name in enumerate(self.names)
        ]
        asked += [
            Question(f"{name}>", after, ADJACENCY) for name, after in zip(self.names, self.names[1:], strict=False)
        ]
        return asked + [Question(f"{slot}-", name, None) for slot, name in sorted(self.before.items())]


def memory(slots: int, seed: int) -> Memory:
    """A list of `slots` names, all drawn without replacement, of which a share was corrected; the same for a seed."""
    random = Random(f"memory {slots} {seed}")
    corrected = sorted(random.sample(range(slots), slots // CORRECTED))
    drawn = random.sample(range(NAMES), slots + len(corrected))
    names = [_name(number) for number in drawn]
    return Memory(tuple(names[:slots]), dict(zip(corrected, names[slots:], strict=True)))


def _name(number: int) -> str:
    """A consonant, a vowel, a consonant."""
    rest, last = divmod(number, len(CONSONANTS))
    first, vowel = divmod(rest, len(VOWELS))
    return CONSONANTS[first] + VOWELS[vowel] + CONSONANTS[last]
