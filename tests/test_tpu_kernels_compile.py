"""Every kernel, forward and backward, compiles at real shapes for TPUs that are not there.

Here a handful of cases; `studies/compile_for_tpus.py` compiles all of them.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tpu.chips import CHIPS
from benchmarks.tpu.compiling import big_copies, kernel_names

NOW = ("v5e",)  # the others are left to the slow suite
ROOT = Path(__file__).resolve().parent.parent
HLO = """
  %copy.1 = bf16[3072,16,2048]{2,1,0:T(8,128)(2,1)} copy(%a), backend_config={}
  %copy.2 = f32[64,128]{1,0:T(8,128)} copy(%y)
  %lora_rows.1 = (f32[64,768]{1,0}, bf16[64,16]{1,0}) custom-call(%x), custom_call_target="tpu_custom_call"
  %lora_rows = f32[64,768]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"
  %other = s32[64]{0} custom-call(%i), custom_call_target="AssumeGatherIndicesInBound"
"""


@pytest.mark.parametrize(
    "chip", [chip if chip in NOW else pytest.param(chip, marks=pytest.mark.slow) for chip in CHIPS]
)
def test_a_handful_of_cases(chip, tmp_path):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, which compiles for TPUs, is not installed here")
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.tpu.compiling", "--chip", chip, "--handful", "--json", str(found)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    # The messages name chip, kernel and case; what libtpu itself logs is left out.
    wrong = [line for line in done.stderr.splitlines() if line.startswith(f"{chip}: ")]
    assert done.returncode == 0, "\n".join(wrong) or done.stderr[-4000:]
    results = json.loads(found.read_text())
    # Cases are built in that process only: shapes that stand for arrays would not pass the tests' checks of types.
    missing = {path.parent.name for path in (ROOT / "kernels").glob("*/pallas_tpu.py")} - {
        key.split("/")[0] for key in results
    }
    assert not missing, f"no case in benchmarks/tpu compiles {missing}"
    copied = {key: result["copied"] for key, result in results.items() if result["copied"]}
    assert not copied, f"{chip}: banks, matrices or pools are copied on their way to a kernel: {copied}"


def test_what_is_read_of_a_program():
    assert kernel_names(HLO) == ["lora_rows", "lora_rows"]
    assert kernel_names(HLO.replace("%lora_rows", "%transpose_jvp_lora_rows__")) == ["lora_rows", "lora_rows"]
    assert big_copies(HLO) == ["bf16[3072,16,2048]"]
