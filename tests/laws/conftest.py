"""The laws hold of the code that ships: here programs are compiled as they are for users.

A module of laws that are not about bits says `TO_THE_BIT = False`, and compiles as quickly as the other tests.
"""

from collections.abc import Iterator

import pytest

from pefx import compiler

SHIPPED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


@pytest.fixture(autouse=True, scope="module")
def _as_shipped(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if getattr(request.module, "TO_THE_BIT", True):
            for name, value in SHIPPED.items():
                patch.setitem(compiler.CPU_OPTIONS, name, value)
        yield
