"""Law 2 while serving: some answers are computed again, as one prompt, and their log-probabilities compared in bits."""

from pefx.serving.generation import Generation
from pefx.serving.requests import MAX_PRIORITY
from pefx.serving.scheduler import Scheduler
from pefx.serving.sequence import Sequence


class SelfCheck:
    """One answer in `every` (0: none) is checked, when nothing else waits. Sequences of checks have handles below 0."""

    def __init__(self, scheduler: Scheduler, every: int):
        self._scheduler, self._every = scheduler, every
        self._seen = 0
        self._expected: dict[int, list[float]] = {}
        self.checked = self.mismatches = 0

    def consider(self, sequence: Sequence) -> None:
        """An answer was given: is it the one to be checked?"""
        self._seen += 1
        logprobs = sequence.generation.logprobs
        if not self._every or self._seen % self._every or not logprobs:
            return
        handle = -self._seen
        again = Sequence(
            handle=handle,
            prompt=sequence.prompt + sequence.generation.tokens,
            revision=sequence.revision,
            sampling=sequence.sampling,
            generation=Generation(lambda ids: "", 0, (), frozenset()),
            max_tokens=0,
            score_prompt=True,
            priority=-MAX_PRIORITY - 1,
            memory=sequence.memory,
        )
        if self._scheduler.fits(again):
            self._expected[handle] = list(logprobs)
            self._scheduler.submit(again)

    def compare(self, sequence: Sequence) -> None:
        """A check is over."""
        expected = self._expected.pop(sequence.handle)
        if sequence.error is None:
            self.checked += 1
            self.mismatches += sequence.prompt_logprobs[-len(expected) :] != expected
