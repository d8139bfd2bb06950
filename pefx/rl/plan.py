"""What reinforcement means for one session of a run: its task, what it draws, its loss with all numbers."""

from dataclasses import dataclass

from pefx.config import PolicyLossConfig, RolloutConfig, TrainConfig
from pefx.errors import PefxError
from pefx.losses.rows import LOSSES, NUMBER, Loss
from pefx.rl.tasks.protocol import Task
from pefx.rl.tasks.table import make_task
from pefx.training.sessions import Session


@dataclass(frozen=True)
class RewardPlan:
    """Of one session. `elsewhere`: answers are not drawn by the policy that is trained, to the bit."""

    session: Session
    task: Task
    rollout: RolloutConfig
    loss: PolicyLossConfig
    elsewhere: bool

    @property
    def row(self) -> Loss:
        return LOSSES[self.loss.name]

    @property
    def groups(self) -> int:
        """Prompts of one drawing."""
        return self.rollout.prompts * self.rollout.updates

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one drawing."""
        return self.rollout.updates * self.session.accumulate

    @property
    def longest(self) -> int:
        """Tokens that one answer has at most, in all of its turns."""
        return self.rollout.max_tokens * self.task.turns

    @property
    def trainer(self) -> bool:
        """Whether what the trainer itself makes of the answers must be known before they are learned from."""
        asked = self.row.old in ("trainer", "proximal") or self.loss.correction != "none"
        return self.loss.replay == "trainer" or (asked and self.elsewhere)

    @property
    def reference(self) -> bool:
        """Whether the base's log-probabilities are read."""
        return self.row.old == "base" or self.loss.kl != 0

    @property
    def context(self) -> bool:
        """Whether answers are scored with the problem's context."""
        return self.row.advantage == "context"

    @property
    def clips(self) -> tuple[float, float]:
        """How far a ratio may be below and above 1."""
        loss, row = self.loss, self.row
        low = row.clip_low if loss.clip_low is None else loss.clip_low
        return low, row.clip_high if loss.clip_high is None else loss.clip_high

    def numbers(self) -> dict[str, float]:
        """Fields of a `PolicyNumbers`, but for the denominator."""
        loss, row = self.loss, self.row
        low, high = self.clips
        beta = row.beta if loss.beta is None else loss.beta
        return {
            "loss": float(NUMBER[loss.name]),
            "clip_low": low,
            "clip_high": high,
            "beta": beta,
            "kl": loss.kl,
            "entropy": loss.entropy,
        }


def make_plan(config: TrainConfig, session: Session) -> RewardPlan | None:
    """The plan of a session that has a task; None where it learns from text. Raises PefxError naming user and field."""
    user = session.user
    if user.task is None:
        return None
    try:
        task = make_task(user.task)
    except PefxError as error:
        raise PefxError(f"user '{user.name}': {error}") from None
    rollout, loss = user.rollout or config.rollout, user.policy_loss or config.policy_loss
    if (rollout.context or loss.name == "context") and not task.problem(0, "train").context:
        raise PefxError(f"user '{user.name}': problems of task '{user.task.name}' have no context")
    sampler = config.sampler
    elsewhere = sampler.stale > 0 or sampler.weights not in (None, config.base_weights)
    return RewardPlan(session, task, rollout, loss, elsewhere)
