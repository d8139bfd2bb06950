"""The laws hold of the code that ships: here programs are compiled as they are for users."""

from collections.abc import Iterator

import pytest

from pefx import compiler

SHIPPED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


@pytest.fixture(autouse=True, scope="package")
def _as_shipped() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SHIPPED.items():
            patch.setitem(compiler.CPU_OPTIONS, name, value)
        yield
