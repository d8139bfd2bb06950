"""`sweep(config)`: what `pefx sweep` calls."""

from collections.abc import Sequence
from pathlib import Path

from pefx.config import SweepConfig
from pefx.distributed import owner
from pefx.errors import PefxError
from pefx.rl.run import learn
from pefx.sweeping.cells import cells, population, results
from pefx.sweeping.report import elsewhere, table, write
from pefx.training.journal import METRICS, Measure, read_rows


def sweep(config: SweepConfig, ranks: Sequence[int] = ()) -> int:
    """Trains all cells in one run, which goes on where it was cut, and writes what they came to beside its curves.

    Printed too is what the best means at `ranks`. Raises PefxError where it can mean nothing there, before anything is
    trained.
    """
    for cell in cells(config):
        elsewhere(cell.record, ranks)
    run = population(config)
    status = learn(run)
    if status or not owner():
        return status
    (user,) = config.run.users
    measure: Measure = "nats_per_token" if user.task is None else "reward"
    rows = read_rows(Path(run.output) / METRICS)
    if not any(row["kind"] == "heldout" for row in rows):
        raise PefxError(f"{run.output}: nothing was held out, so that no cell is better than another")
    found = results(config, rows, measure)
    paths = write(found, measure, Path(run.output))
    print(table(found, measure), end="")
    print(f"best: {found[0].cell.name}; {', '.join(map(str, paths.values()))}")
    if ranks:
        print(elsewhere(found[0].cell.record, ranks), end="")
    return 0
