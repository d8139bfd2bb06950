"""`train(config)`: what `train.py` and `pefx train` call."""

from pefx.config import TrainConfig
from pefx.distributed import owner
from pefx.errors import PefxError
from pefx.invariance import check_row_invariance
from pefx.mesh import on_mesh, resolved
from pefx.training.adapters import AdapterTraining, MakeCurriculum
from pefx.training.curriculum import Texts
from pefx.training.loop import drive, finished, mark_finished
from pefx.training.pretrain import pretrain


def train(config: TrainConfig, curriculum: MakeCurriculum = Texts) -> int:
    """Run a training config to its end: adapters over a base, by the lessons of a curriculum, or (`config.pretrain`) a
    base.

    Returns the exit code: 0 when the run is complete (also when it already was), 143 after SIGTERM and 130 after
    Ctrl-C, with all state saved: the same call then goes on. Raises PefxError on bad input, before anything is trained.
    """
    if config.pretrain is not None and (config.users or config.base):
        raise PefxError("config field 'pretrain' trains a base and goes with neither 'users' nor 'base'")
    done = finished(config)
    if done is not None:
        if owner():
            print(f"{config.name}  already finished in {config.output}; nothing to do")
        return 0
    check_row_invariance()
    if config.pretrain is not None:
        return pretrain(config, config.pretrain)
    users = len(config.users)
    mesh = resolved(config.mesh, min(users, config.data.users_per_step, config.slots or users))
    with on_mesh(mesh):
        trainee, outcome = drive(lambda: AdapterTraining(config, mesh, curriculum), config)
        committed = trainee.commit(outcome) if outcome.exit_code == 0 else {}
    if outcome.exit_code == 0:
        for policy, revision in committed.items():
            print(f"{config.name}  committed {policy}@{revision['revision']}  {revision['content_hash'][:19]}")
        mark_finished(config, {"revisions": committed})
        trainee.finished()
    return outcome.exit_code
