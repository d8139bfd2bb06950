"""Compiles every kernel at every shape it has a case for, for five kinds of TPU that are not there.

    python studies/compile_for_tpus.py

Prints what each takes of the chip's memory. Exit status 1 where one does not compile.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHIPS = ("v4", "v5e", "v5p", "v6e", "tpu7x")


def main() -> int:
    """One process per kind of chip, one after the other."""
    status = 0
    for chip in CHIPS:
        with tempfile.TemporaryDirectory() as folder:
            found = Path(folder) / "found.json"
            command = [sys.executable, "-m", "benchmarks.tpu.compiling", "--chip", chip, "--json", str(found)]
            status |= subprocess.run(command, cwd=ROOT).returncode
            for key, result in json.loads(found.read_text()).items():
                if "error" in result:
                    print(f"{chip:6} {key:60} does not compile")
                    continue
                temporary, code = result["temporary_bytes"] / 2**20, result["code_bytes"] / 2**20
                copies = f"  copies {', '.join(result['big_copies'])}" if result["big_copies"] else ""
                seconds = result["seconds"]
                print(
                    f"{chip:6} {key:60} {seconds:5.1f} s  temporary {temporary:8.2f} MiB  code {code:.2f} MiB{copies}"
                )
    return status


if __name__ == "__main__":
    sys.exit(main())
