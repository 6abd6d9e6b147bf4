"""Run the first commands of the README with an installed wheel, outside of the repository.

`make test-wheel` calls it: python tests/wheel.py PATH_OF_LLAVA_UHD.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_WHEEL_MIB = 26


def main(program: str) -> None:
    (wheel,) = (ROOT / "dist").glob("*.whl")
    size = wheel.stat().st_size / 2**20
    print(f"{wheel.name}: {size:.1f} MiB")
    assert size < MAX_WHEEL_MIB, f"the wheel has {size:.1f} MiB, at most {MAX_WHEEL_MIB} are allowed"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "examples" / "receipt.png", folder)

        def run(*arguments: str) -> str:
            command = [str(Path(program).absolute()), *arguments]
            done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
            return done.stdout.strip()

        print(run("--version"))
        answer = run("ask", "receipt.png", "What is the total?")
        print(answer)
        assert answer.splitlines()[-1] == "$42.69", answer
        assert json.loads(run("ask", "receipt.png", "What is the total?", "--json"))["answer"] == "$42.69"
        print(run("explain", "receipt.png"))


if __name__ == "__main__":
    main(sys.argv[1])
