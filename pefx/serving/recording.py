"""Which rows of a step a sequence wants, and what came out for them. Plain Python."""

import math

from pefx.errors import PefxError
from pefx.serving.generation import Outcome
from pefx.serving.sequence import SAMPLE, Sequence, Wanted
from pefx.serving.shaping import Shaper


def wanted_rows(index: int, sequence: Sequence, size: int) -> list[Wanted]:
    """Rows of a sequence's span: the prompt's next tokens where they are to be scored, and the token to draw."""
    begin, end, prompt = sequence.done, sequence.done + size, sequence.prompt
    rows = []
    if sequence.score_prompt:
        first, last = max(begin, len(sequence.prompt_logprobs) - 1), min(end, len(prompt) - 1)
        rows = [Wanted(index, i - begin, prompt[i + 1]) for i in range(first, last)]
    if end == sequence.known and sequence.max_tokens:
        rows.append(Wanted(index, size - 1, SAMPLE))
    return rows


def _shape(sequence: Sequence, shaper: Shaper, token: int) -> None:
    """What the token that was drawn means for the next one."""
    try:
        shaper.push(token)
    except PefxError as error:
        sequence.error = error
        return
    if shaper.over:
        sequence.generation.finish()


def record(sequence: Sequence, row: Wanted, outcome: Outcome) -> None:
    """What came out for a row of a sequence; a number that is none is its error."""
    if sequence.error is not None:
        return
    if not math.isfinite(outcome.logprob):
        name = "the bare base" if sequence.revision is None else f"revision {sequence.revision.key}"
        sequence.error = PefxError(f"{name} gave a log-probability that is no finite number", "not_finite")
    elif row.target == SAMPLE:
        sequence.generation.push(outcome)
        if sequence.shaper is not None and sequence.generation.finish_reason is None:
            _shape(sequence, sequence.shaper, outcome.token)
    else:
        sequence.prompt_logprobs.append(outcome.logprob)
