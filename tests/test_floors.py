"""The plan of the house as a test: imports run down, host logic has no jax, budgets hold, each module is tested."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Bottom floor first. A module may import floors below its own, and its own package. A new module gets a line here.
FLOORS: list[tuple[str, ...]] = [
    ("kernels", "pefx.config", "pefx.errors", "pefx.printed", "pefx.progress"),
    ("pefx.complete_directory", "pefx.distributed", "pefx.program"),
    ("pefx.compiler", "pefx.families", "pefx.presets", "pefx.mesh", "pefx.safetensors_files"),
    ("pefx.collectives",),
    ("pefx.invariance", "pefx.stored_weights"),
    ("pefx.batch", "pefx.packing", "pefx.parcel"),
    ("pefx.layers",),
    ("pefx.model",),
    ("pefx.adapters",),
    ("pefx.losses", "pefx.optim", "pefx.sampling"),
    ("pefx.steps",),
    ("pefx.checkpoint", "pefx.huggingface", "pefx.store", "pefx.data"),
    ("pefx.converted", "pefx.web"),
    ("pefx.loading",),
    ("pefx.conversion",),
    ("pefx.training", "pefx.serving"),
    ("pefx.rl",),
    ("pefx.http", "pefx.sweeping"),
    ("pefx.checks",),
    ("pefx.rules",),
    ("pefx.settings", "pefx.sizing", "pefx.planning", "pefx.exchange"),
    ("pefx.commands",),
    ("pefx.cli",),
    ("pefx.demo",),
    ("train", "serve", "benchmarks"),
    ("studies",),
]
STANDARD_LIBRARY_ONLY = ("pefx.config", "pefx.errors", "pefx.losses.rows")
# Host logic: neither these nor anything of pefx that they import may import an array framework.
HOST = (
    "pefx.packing",
    "pefx.store",
    "pefx.rules",
    "pefx.settings",
    "pefx.cli",
    "pefx.training",
    "pefx.serving",
    "pefx.rl",
    "pefx.web",
    "pefx.http",
    "pefx.sweeping",
)
# ... except the few files of the two loops that hand plans to the device or save its state.
DEVICE_FACING = {
    "pefx.training.adapters",
    "pefx.training.first_gradient",
    "pefx.training.heldout",
    "pefx.training.loop",
    "pefx.training.model_card",
    "pefx.training.parking",  # asks which process it is
    "pefx.training.pretrain",
    "pefx.training.resident",
    "pefx.training.run",
    "pefx.training.schedule",  # optax's schedules, made into a numpy table
    "pefx.training.sessions",  # ... and its reader
    "pefx.http.run",
    "pefx.rl.curriculum",
    "pefx.rl.live_engine",
    "pefx.rl.resident_sampler",
    "pefx.rl.run",
    "pefx.sweeping.run",
    "pefx.serving.assembly",
    "pefx.serving.run",
    "pefx.serving.runner",
}
FRAMEWORKS = {"jax", "jaxlib", "flax", "optax", "orbax", "torch", "tensorflow"}
FOREIGN = {"torch", "tensorflow", "transformers", "peft"}
PEERS = ("benchmarks.peers",)  # programs of others, each in an environment of its own
# Packages whose `__init__.py` gathers names of its own modules, and nothing else: users know the package only.
GATHERED = ("pefx.config",)
FILE_LINES = {"kernels": 800, "tests": 600}
ENTRY_POINTS = {"train.py", "serve.py"}
FOLDERS = ("kernels", "pefx", "benchmarks", "studies", "configs", "tests")


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the root, its dotted module name, its text and syntax tree."""

    path: Path
    module: str
    text: str
    tree: ast.Module


def read_sources(root: Path) -> list[Source]:
    """Every Python file of the project, in path order."""
    found = [path for folder in FOLDERS for path in (root / folder).rglob("*.py")] + list(root.glob("*.py"))
    sources = []
    for path in sorted(found):
        relative, text = path.relative_to(root), path.read_text(encoding="utf-8")
        parts = relative.with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources.append(Source(relative, module, text, ast.parse(text)))
    return sources


def imported(source: Source, known: set[str], lazy: bool = True) -> Iterator[tuple[str, int]]:
    """(module, line) of each import; `from package import module` names the module. Not `lazy`: top level only."""
    for node in ast.walk(source.tree) if lazy else source.tree.body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else str(node.module), node.lineno


def within(module: str, names: tuple[str, ...]) -> str | None:
    """The one of `names` that is `module` or a package around it."""
    return next((name for name in names if module == name or module.startswith(name + ".")), None)


def floor_of(module: str) -> tuple[int, str] | None:
    for height, names in enumerate(FLOORS):
        name = within(module, names)
        if name is not None:
            return height, name
    return None


def broken_floors(sources: list[Source]) -> Iterator[str]:
    """Imports that run up or sideways, and modules without a floor."""
    known = {source.module for source in sources}
    for source in sources:
        top = source.module.split(".")[0]
        if top == "tests" or source.module == "pefx":
            continue
        if top == "configs":
            yield from (
                f"{source.path}:{line}: a config imports pefx.config only, not {name}"
                for name, line in imported(source, known)
                if name != "pefx.config"
            )
            continue
        own = floor_of(source.module)
        if own is None:
            yield f"{source.path}: {source.module} has no floor; give it a line in FLOORS"
            continue
        for name, line in imported(source, known):
            other = floor_of(name)
            if name.split(".")[0] in FOREIGN and not within(source.module, PEERS):
                yield f"{source.path}:{line}: {name} is another framework"
            elif other is None and name.split(".")[0] in ("pefx", "tests"):
                yield f"{source.path}:{line}: {name} has no floor below {source.module}"
            elif other is not None and other != own and other[0] >= own[0]:
                yield f"{source.path}:{line}: {source.module} imports {name}, which is not below it"


def broken_host(sources: list[Source]) -> Iterator[str]:
    """Host modules that reach an array framework at import, with the way; stdlib modules that reach anything."""
    modules = {source.module: source for source in sources}
    direct = {name: [found for found, _ in imported(s, set(modules), lazy=False)] for name, s in modules.items()}

    def way(name: str, seen: set[str]) -> list[str]:
        for found in direct.get(name, []):
            if found.split(".")[0] in FRAMEWORKS:
                return [name, found]
            if found in modules and found not in seen:
                seen.add(found)
                rest = way(found, seen)
                if rest:
                    return [name, *rest]
        return []

    for name in modules:
        if within(name, HOST) and name not in DEVICE_FACING:
            path = way(name, {name})
            if path:
                yield f"{name} is host logic and reaches {' -> '.join(path[1:])}"
        if within(name, STANDARD_LIBRARY_ONLY):
            allowed = (*STANDARD_LIBRARY_ONLY, "dataclasses", "typing")
            yield from (f"{name} imports {other}" for other in direct[name] if not within(other, allowed))
    yield from (f"DEVICE_FACING names {name}, which does not exist" for name in DEVICE_FACING - set(modules))


def broken_budgets(sources: list[Source]) -> Iterator[str]:
    """Files, functions and parameter lists that are too long; `__init__.py` with content; names that say nothing."""
    for source in sources:
        lines = source.text.count("\n")
        budget = 80 if str(source.path) in ENTRY_POINTS else FILE_LINES.get(source.path.parts[0], 400)
        if lines > budget:
            yield f"{source.path}: {lines} lines (budget {budget})"
        if source.path.name == "__init__.py" and source.text.strip() and not gathers(source):
            yield f"{source.path}: __init__.py is empty by rule; import from the defining module"
        if source.path.stem in ("utils", "util", "helpers", "misc", "common"):
            yield f"{source.path}: a file is named after what it holds"
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                yield f"{source.path}:{node.lineno}: imports are absolute"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from broken_function(source, node)


def gathers(source: Source) -> bool:
    """Whether an `__init__.py` only names what is in its package, as it may."""
    kinds = {type(node) for node in source.tree.body[1:]}
    own = all(within(name, (source.module,)) for name, _ in imported(source, set()))
    return source.module in GATHERED and own and kinds <= {ast.ImportFrom, ast.Assign}


def broken_function(source: Source, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    if length > 60:
        yield f"{source.path}:{node.lineno}: {node.name} has {length} lines (budget 60)"
    names = [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
    count = len([name for name in names if name not in ("self", "cls")])
    if count > 8:
        yield f"{source.path}:{node.lineno}: {node.name} has {count} parameters (budget 8)"


def broken_coverage(sources: list[Source]) -> Iterator[str]:
    """Modules of pefx without a test file of their name: test_<module>.py, or test_<package>_<module>.py."""
    tests = {source.path.stem for source in sources if source.path.parts[0] == "tests"}
    stems = [s.module.split(".")[-1] for s in sources if s.module.startswith("pefx.") and s.text.strip()]
    for source in sources:
        if source.path.parts[0] != "pefx" or not source.text.strip():
            continue
        parts = (within(source.module, GATHERED) or source.module).split(".")[1:]
        names = {"test_" + "_".join(parts)} | ({"test_" + parts[-1]} if stems.count(parts[-1]) == 1 else set())
        if not names & tests:
            yield f"{source.path}: no {' or '.join(sorted(f'tests/{name}.py' for name in names))}"


CHECKS = [broken_floors, broken_host, broken_budgets, broken_coverage]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_stands(check):
    sources = read_sources(ROOT)
    assert {"pefx.cli", "train", "serve", "kernels"} <= {source.module for source in sources}
    problems = list(check(sources))
    assert not problems, "\n" + "\n".join(problems)


PLANTED = {
    "an import that runs up": ("pefx/layers/norm.py", "from pefx.steps import score\n", broken_floors),
    "an import inside a function": ("pefx/batch.py", "def f():\n    import pefx.model\n", broken_floors),
    "an import sideways": ("pefx/training/run.py", "import pefx.serving.run\n", broken_floors),
    "a module from its package": ("pefx/packing.py", "from pefx import steps\n", broken_floors),
    "a kernel that knows pefx": ("kernels/a/api.py", "from pefx.batch import TokenBatch\n", broken_floors),
    "a module without a floor": ("pefx/misfit.py", "X = 1\n", broken_floors),
    "another framework": ("pefx/model.py", "import torch\n", broken_floors),
    "a config with a pipeline": ("configs/a.py", "from pefx.steps import score\n", broken_floors),
    "jax in a scheduler": ("pefx/serving/scheduler.py", "import jax.numpy as jnp\n", broken_host),
    "jax behind an import": ("pefx/serving/pages.py", "from pefx.batch import KVPool\n", broken_host),
    "numpy in the config": ("pefx/config/training.py", "import numpy\n", broken_host),
    "a pipeline in the config": ("pefx/config/training.py", "import pefx.batch\n", broken_host),
    "more than names gathered": ("pefx/config/__init__.py", '"""."""\nprint(1)\n', broken_budgets),
    "foreign names gathered": ("pefx/config/__init__.py", '"""."""\nfrom pefx.batch import A\n', broken_budgets),
    "a long file": ("pefx/model.py", "X = 1\n" * 401, broken_budgets),
    "a long kernel": ("kernels/a/xla.py", "X = 1\n" * 801, broken_budgets),
    "a long entry point": ("train.py", "X = 1\n" * 81, broken_budgets),
    "a long function": ("pefx/model.py", "def f():\n" + "    x = 1\n" * 60, broken_budgets),
    "nine parameters": ("pefx/model.py", "def f(a, b, c, d, e, f, *, g, h, i): ...\n", broken_budgets),
    "a full __init__": ("pefx/layers/__init__.py", "X = 1\n", broken_budgets),
    "a drawer": ("pefx/utils.py", "X = 1\n", broken_budgets),
    "a relative import": ("pefx/model.py", "from .batch import KVPool\n", broken_budgets),
    "a module without a test": ("pefx/model.py", "X = 1\n", broken_coverage),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_caught(name, tmp_path):
    path, text, check = PLANTED[name]
    (tmp_path / "pefx").mkdir()
    (tmp_path / "pefx" / "batch.py").write_text("import jax\n")
    (tmp_path / "pefx" / "steps.py").write_text("")
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    before = set(check(read_sources(tmp_path)))
    (tmp_path / path).write_text(text)
    caught = set(check(read_sources(tmp_path))) - before
    assert [message for message in caught if path in message or Path(path).stem in message], caught


def test_a_clean_module_is_not_accused(tmp_path):
    (tmp_path / "pefx").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "pefx" / "batch.py").write_text("import jax\nfrom pefx.config import ModelConfig\n")
    (tmp_path / "tests" / "test_batch.py").write_text("def test_nothing(): ...\n")
    sources = read_sources(tmp_path)
    accused = [message for check in CHECKS for message in check(sources) if "batch" in message]
    assert accused == []
