"""The console script `pefx`; `train.py` and `serve.py` are the same commands under their own names."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg, subcommand

from pefx.commands import keys, rollouts
from pefx.commands.catalog import Action
from pefx.config import PlanConfig, Precision, ServeConfig, SweepConfig, TrainConfig
from pefx.errors import PefxError
from pefx.settings import load_config, parse, read_any

ConfigPath = Annotated[str, arg(metavar="CONFIG"), tyro.conf.Positional]
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@dataclass(frozen=True)
class Train:
    """Train many adapters over one base, or a base. Any field of the config may follow: --steps 20 --data.seed 1."""

    config: ConfigPath
    """A file in configs/ that makes a TrainConfig."""


@dataclass(frozen=True)
class Sweep:
    """Train a grid of adapters and learning rates as one population; write table, picture and best cell.

    Any field of the config can be overridden, as in --seeds 3 --run.steps 100. Started again, it goes on.
    """

    config: ConfigPath
    """A file in configs/ with a SweepConfig."""
    at: tuple[int, ...] = ()
    """Ranks at which to print what the best cell means, by the sweep's scaling: --at 1 4 64."""


@dataclass(frozen=True)
class Serve:
    """Answer requests over mixed adapters, of a file or by HTTP. Any field of the config may follow: --slots 8."""

    config: ConfigPath
    """A file in configs/ that makes a ServeConfig."""
    requests: str | None = None
    """JSONL, one request a line; or *.parquet, one a row."""
    out: str | None = None
    """JSONL, or *.parquet: one answer a request; started again on the same files, it goes on where it was cut."""
    http: str | None = None
    """Instead of a file: where to listen, HOST:PORT. Beyond this machine only with keys (--http.keys FILE)."""


@dataclass(frozen=True)
class CatalogCommand:
    """Look into a catalog of revisions, and look after it."""

    action: Annotated[Action, arg(name="")]


@dataclass(frozen=True)
class KeysCommand:
    """Make, list and revoke the keys of a server."""

    action: Annotated[keys.Action, arg(name="")]


@dataclass(frozen=True)
class RolloutsCommand:
    """Look at what policies drew while they were trained by their rewards."""

    action: Annotated[rollouts.Action, arg(name="")]


@dataclass(frozen=True)
class Plan:
    """Print what a config keeps in memory; on a slice of TPUs, compile its steps and print what they need and take.

    Nothing is allocated and no TPU is needed. Any field of the config can be overridden, as in --mesh.expert 16.
    Exit status 3 where it does not fit.
    """

    config: ConfigPath
    """A file in configs/."""
    topology: str | None = None
    """A slice, as in v5p:4x4x4; a plan config has one of its own."""
    compare: tuple[str, ...] = ()
    """Other slices beside it, each with its own mesh if wanted: v5p:4x4x8 or v5p:4x4x8/1x32x4."""
    picture: Path | None = None
    """Where to draw the memory of each device."""
    methods: bool = False
    """What an adapter of each method takes on this base, and a million of them, instead."""


@dataclass(frozen=True)
class Convert:
    """Make a Hugging Face directory into a base that is read by checked chunks; started again, it goes on."""

    source: Annotated[str, arg(metavar="SOURCE"), tyro.conf.Positional]
    """A directory with config.json and *.safetensors."""
    target: Annotated[str, arg(metavar="TARGET"), tyro.conf.Positional]
    """The directory to make; it appears when it is complete."""
    precision: Precision | None = None
    """What its numbers are held in; None: as they are stored."""


@dataclass(frozen=True)
class Bench:
    """Run one program of benchmarks/ by name, or `all` of them."""

    name: Annotated[str, arg(metavar="NAME"), tyro.conf.Positional]
    """A file of benchmarks/ without its `.py`, or `all`."""


Command = (
    Annotated[Train, subcommand("train")]
    | Annotated[Sweep, subcommand("sweep")]
    | Annotated[Serve, subcommand("serve")]
    | Annotated[CatalogCommand, subcommand("catalog")]
    | Annotated[KeysCommand, subcommand("keys")]
    | Annotated[RolloutsCommand, subcommand("rollouts")]
    | Annotated[Plan, subcommand("plan")]
    | Annotated[Convert, subcommand("convert")]
    | Annotated[Bench, subcommand("bench")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 2 for bad input (one line on stderr), or what the command says."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if wants_fields(words):
            load_config(words[1], {"train": TrainConfig, "serve": ServeConfig}[words[0]], ["--help"])
        command, overrides = parse(Command, words or ["--help"], prog="pefx", return_unknown_args=True)
        return run(command, overrides)
    except PefxError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `pefx catalog ls ... | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def wants_fields(words: Sequence[str]) -> bool:
    """`pefx train CONFIG --help` lists the fields of that config; without CONFIG, help is about the command."""
    named = len(words) > 2 and words[0] in ("train", "serve") and not words[1].startswith("-")
    return named and not {"-h", "--help"}.isdisjoint(words)


def run(
    command: Train | Sweep | Serve | CatalogCommand | KeysCommand | RolloutsCommand | Plan | Convert | Bench,
    overrides: Sequence[str],
) -> int:
    """Each command imports what it runs, so that looking into a catalog does not wait for jax."""
    if isinstance(command, Train):
        training = load_config(command.config, TrainConfig, overrides)
        from pefx.distributed import job
        from pefx.mesh import use_cores
        from pefx.rl.run import learn

        with job():
            use_cores()
            return learn(training)
    if isinstance(command, Sweep):
        grid = load_config(command.config, SweepConfig, overrides)
        from pefx.distributed import job
        from pefx.mesh import use_cores
        from pefx.sweeping.run import sweep

        with job():
            use_cores()
            return sweep(grid, command.at)
    if isinstance(command, Serve):
        return serve(command, load_config(command.config, ServeConfig, overrides))
    if isinstance(command, Plan):
        return show_plan(command, read_any(command.config, overrides))
    if overrides:
        raise PefxError(f"pefx: unrecognized options: {' '.join(overrides)}; see pefx --help")
    if isinstance(command, CatalogCommand | KeysCommand | RolloutsCommand):
        return command.action.run()
    if isinstance(command, Convert):
        from pefx.conversion import convert

        convert(command.source, command.target, command.precision)
        return 0
    return bench(command.name)


def serve(command: Serve, config: ServeConfig) -> int:
    requests, out, http = command.requests, command.out, command.http
    if http is None and (requests is None or out is None):
        raise PefxError("pefx serve: give --requests IN and --out OUT, or --http HOST:PORT")
    if http is not None and (requests is not None or out is not None):
        raise PefxError("pefx serve: --http answers no file; leave --requests and --out away, or --http")
    from pefx.distributed import job
    from pefx.mesh import use_cores

    with job():
        use_cores()
        if http is not None:
            from pefx.http.run import serve_config

            return serve_config(listening(config, http))
        from pefx.serving.run import serve_file

        assert requests is not None
        assert out is not None
        return serve_file(config, requests, out)


def listening(config: ServeConfig, where: str) -> ServeConfig:
    """`config` with the HOST:PORT that the command line names; an IPv6 address stands in brackets."""
    host, _, port = where.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) >= 1 << 16:
        raise PefxError(f"pefx serve: --http {where!r} is no HOST:PORT, as in 127.0.0.1:8000")
    return replace(config, http=replace(config.http, host=host, port=int(port)))


def show_plan(command: Plan, config: TrainConfig | ServeConfig | PlanConfig) -> int:
    if command.methods:
        from pefx.planning.abstract import model_of, plan_of
        from pefx.planning.populations import render_population

        planned = config if isinstance(config, PlanConfig) else plan_of(config, "")
        print(render_population(model_of(planned), planned.adapter))
        return 0
    if not isinstance(config, PlanConfig) and command.topology is None:
        from pefx.sizing import render_sizes

        print(render_sizes(config))
        return 0
    from pefx.planning.run import plan_and_print

    return plan_and_print(config, command.topology, command.compare, command.picture)


def bench(name: str) -> int:
    """Runs `benchmarks/<name>.py` as a process, or each in turn for `all`. Returns the first exit code but 0.

    Raises PefxError for an unknown name.
    """
    programs = {path.stem: path for path in sorted(BENCHMARKS.glob("*.py"))}
    if name != "all" and name not in programs:
        raise PefxError(f"pefx bench: no benchmark {name!r}; there are all, {', '.join(programs) or 'none installed'}")
    for program in programs if name == "all" else [name]:
        command = [sys.executable, "-m", f"{BENCHMARKS.name}.{program}"]
        if code := subprocess.run(command, cwd=BENCHMARKS.parent, check=False).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
