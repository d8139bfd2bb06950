"""The console script: what it runs, how it fails, and how little it imports to look into a catalog."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pefx.conversion
import pefx.http.run
import pefx.rl.run
import pefx.serving.run
from pefx import cli
from pefx.adapters.methods.table import init_adapter
from pefx.config import AdapterSpec, ModelConfig
from pefx.errors import PefxError
from pefx.store.catalog import Catalog

ROOT = Path(__file__).parent.parent
TRAIN = """from pefx.config import *
config = TrainConfig(name="n", output="o", base="b", users=(UserConfig("ann", "a.jsonl"),))
"""
SERVE = 'from pefx.config import *\nconfig = ServeConfig(name="n", base="b")\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current directory with a training and a serving config."""
    monkeypatch.chdir(tmp_path)
    Path("train_few.py").write_text(TRAIN)
    Path("serve_few.py").write_text(SERVE)
    return tmp_path


def start(*words: str, script: tuple[str, ...] = ("-m", "pefx.cli"), cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *script, *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_train_passes_the_overridden_config_and_returns_its_code(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(pefx.rl.run, "learn", lambda config: seen.append(config) or 143)
    assert cli.main(["train", "train_few.py", "--steps", "7"]) == 143
    assert [config.steps for config in seen] == [7]


def test_serve_passes_its_files_wherever_they_stand(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(pefx.serving.run, "serve_file", lambda *call: seen.append(call) or 0)
    assert cli.main(["serve", "serve_few.py", "--requests", "in", "--slots", "3", "--out", "out"]) == 0
    assert [(config.slots, *files) for config, *files in seen] == [(3, "in", "out")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["trian"],
            "error: pefx: Expected one of {train, sweep, serve, catalog, keys, rollouts, plan, convert, bench}.",
        ),
        (["train"], "error: pefx: Missing from pefx train: CONFIG"),
        (["train", "absent.py"], "error: absent.py: no such config file"),
        (["train", "train_few.py", "--stepz", "1"], "error: train_few.py: Unrecognized options: --stepz, 1"),
        (["train", "train_few.py", "--steps", "x"], "error: train_few.py: Error parsing --steps: "),
        (["train", "serve_few.py"], "error: serve_few.py: config is a ServeConfig; this command needs a TrainConfig"),
        (
            ["serve", "serve_few.py", "--requests", "in"],
            "error: pefx serve: give --requests IN and --out OUT, or --http ",
        ),
        (["serve", "serve_few.py", "--http", "host"], "error: pefx serve: --http 'host' is no HOST:PORT"),
        (["serve", "serve_few.py", "--http", "::1:8", "--out", "o"], "error: pefx serve: --http answers no file"),
        (
            ["serve", "serve_few.py", "--http", "[::1]:8", "--http.queue", "0"],
            "error: serve_few.py with --http.queue 0",
        ),
        (["plan", "train_few.py"], "error: b/config.json: "),
        (["plan", "train_few.py", "--steps", "x"], "error: train_few.py: Error parsing --steps: "),
        (["catalog"], "error: pefx: Expected one of {ls, show, log, diff, tag, "),
        (["catalog", "ls", "absent"], "error: catalog 'absent' does not exist"),
        (["catalog", "ls", "absent", "--jsonl"], "error: pefx: unrecognized options: --jsonl"),
        (["convert", "b"], "error: pefx: Missing from pefx convert: TARGET"),
        (["convert", "b", "c"], "error: b/config.json: no such file"),
        (["convert", "b", "c", "--precision", "int4"], "error: pefx: "),
        (["bench", "absent"], "error: pefx bench: no benchmark 'absent'; there are all, "),
    ],
)
def test_bad_input_is_one_line_and_code_2(folder, capsys, words, message):
    before = sorted(folder.iterdir())
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert sorted(folder.iterdir()) == before


def test_an_error_of_several_lines_is_told_in_one(folder, monkeypatch, capsys):
    def fail(config):
        raise PefxError("a line\n  and another")

    monkeypatch.setattr(pefx.rl.run, "learn", fail)
    assert cli.main(["train", "train_few.py"]) == 2
    assert capsys.readouterr().err == "error: a line and another\n"


def test_a_defect_is_not_taken_for_bad_input(folder, monkeypatch):
    def fail(config):
        raise ZeroDivisionError

    monkeypatch.setattr(pefx.rl.run, "learn", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "train_few.py"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "{train,sweep,serve,catalog,keys,rollouts,plan,convert,bench}"),
        (["train", "--help"], "A file in configs/ that makes a TrainConfig."),
        (["train", "train_few.py", "--help"], "--data.tokens-per-user"),
        (["serve", "serve_few.py", "--help"], "--step-tokens"),
        (["catalog", "show", "--help"], "POLICY[@REVISION]"),
    ],
)
def test_help(folder, capsys, words, expected):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 0
    assert expected in capsys.readouterr().out


@pytest.fixture
def catalog(folder):
    """The path of a catalog with one revision of policy `ann`."""
    model = ModelConfig(hidden=16, layers=2, heads=2, kv_heads=1, head_size=8, dense_hidden=16, expert_hidden=8)
    spec = AdapterSpec(rank=2, targets=("q_proj", "experts.up_proj"))
    Catalog.open("c", create=True).commit(
        "ann",
        adapter=init_adapter(model, spec, 0),
        spec=spec,
        base="sha256:" + "0" * 64,
        step=3,
        seeds={"run": 0},
        config={},
        data_fingerprint="sha256:" + "1" * 64,
        metrics={},
    )
    return "c"


def test_looking_into_a_catalog_loads_no_jax(catalog, folder):
    code = (
        "import sys; from pefx.cli import main; "
        "assert main(['catalog', 'ls', 'c']) == 0; assert 'jax' not in sys.modules"
    )
    done = start(script=("-c", code), cwd=folder)
    assert done.returncode == 0, done.stderr


def test_plan_prints_what_a_base_needs(capsys):
    assert cli.main(["plan", str(ROOT / "configs" / "base_stdlib.py")]) == 0
    assert "moments of the base" in capsys.readouterr().out


def test_convert_passes_what_it_was_told(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(pefx.conversion, "convert", lambda *call: seen.append(call))
    assert cli.main(["convert", "b", "c"]) == 0
    assert cli.main(["convert", "b", "c", "--precision", "bfloat16"]) == 0
    assert seen == [("b", "c", None), ("b", "c", "bfloat16")]


def test_bench_runs_the_named_program_or_all_of_them_until_one_fails(monkeypatch, tmp_path, capfd):
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setattr(cli, "BENCHMARKS", programs)
    (programs / "one.py").write_text("import sys; print(sys.argv[1:])")
    (programs / "two.py").write_text("print('second'); raise SystemExit(3)")
    (programs / "three.py").write_text("print('third')")
    assert cli.main(["bench", "one"]) == 0
    assert capfd.readouterr().out == "[]\n"
    assert cli.main(["bench", "all"]) == 3
    assert capfd.readouterr().out == "[]\nthird\nsecond\n"


@pytest.mark.parametrize("script", ["train.py", "serve.py"])
def test_the_root_scripts_are_the_same_commands(folder, script):
    done = start("absent.py", "--requests=a", "--out=b", script=(str(ROOT / script),), cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: absent.py: no such config file\n"


def test_where_to_listen_is_taken_from_the_command_line(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(pefx.http.run, "serve_config", lambda config: seen.append(config.http) or 0)
    assert cli.main(["serve", "serve_few.py", "--http", "[::1]:8001", "--http.queue", "7"]) == 0
    assert cli.main(["serve", "serve_few.py", "--http", "localhost:0"]) == 0
    assert [(http.host, http.port) for http in seen] == [("::1", 8001), ("localhost", 0)]
    assert seen[0].queue == 7
