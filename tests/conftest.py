"""One environment for all tests and the programs they start: eight CPU devices, strict numerics, checked shapes."""

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Before jax is imported. Programs started by a test inherit it, and share the compiled programs.
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of what tests do: they take the quickest code there is, but for those about bits (below).
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / "build" / "jax_cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
# What is kept of bases, for programs started by a test too: of this run of the tests only.
KEPT = tempfile.TemporaryDirectory(prefix="pefx-tests-")
os.environ["PEFX_CACHE"] = KEPT.name
# libtpu, installed to compile kernels ahead of time, looks for a TPU and complains unless it is told of one.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-4"
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"

import functools  # noqa: E402
import gc  # noqa: E402
import inspect  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from typing import Any  # noqa: E402

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

check_calls = jaxtyping.jaxtyped


def check(*, typechecker: Any) -> Any:
    """`jaxtyping.jaxtyped`, but a dataclass that jax itself rebuilds may hold whatever jax puts into it."""

    def decorate(item: Any) -> Any:
        plain = vars(item).get("__init__") if inspect.isclass(item) else None
        checked = check_calls(item, typechecker=typechecker)
        if plain is None:
            return checked
        strict = checked.__init__

        @functools.wraps(plain)
        def build(self: Any, *args: Any, **kwargs: Any) -> None:
            by_jax = sys._getframe(1).f_globals.get("__name__", "").startswith("jax.")
            (plain if by_jax else strict)(self, *args, **kwargs)

        checked.__init__ = build
        return checked

    return decorate


# Shapes and types of every annotated function and dataclass are checked at each call (or trace). Not those of
# pefx.config: `pefx.settings` checks them for a person, and tests hand it wrong ones.
jaxtyping.jaxtyped = check
parts = [path.stem for path in sorted((ROOT / "pefx").iterdir()) if not path.name.startswith("__")]
jaxtyping.install_import_hook(["kernels", *(f"pefx.{part}" for part in parts if part != "config")], "beartype.beartype")

# The same examples on every machine and run; no deadline, since the first example compiles.
hypothesis.settings.register_profile("pefx", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("pefx")

from pefx import compiler  # noqa: E402 (under the hook)

SHIPPED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


@pytest.fixture(autouse=True, scope="module")
def _bits_are_of_what_ships(request: pytest.FixtureRequest) -> Iterator[None]:
    """Laws, and other modules that say `TO_THE_BIT = True`, compile what users get; a law may say it is not of bits."""
    with pytest.MonkeyPatch.context() as patch:
        if getattr(request.module, "TO_THE_BIT", request.path.parent.name == "laws"):
            for name, value in SHIPPED.items():
                patch.setitem(compiler.CPU_OPTIONS, name, value)
        yield


# Every compiled program holds mappings of memory, of which Linux gives a process 65,530: a worker that has met most of
# the suite would die of one more.
MAPPINGS = 30_000


@pytest.fixture(autouse=True, scope="module")
def _programs_do_not_pile_up() -> Iterator[None]:
    """Between two modules a process with too many compiled programs forgets them."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MAPPINGS:
        jax.clear_caches()
        gc.collect()
