"""Execute the shell blocks of README and guides at toy size, page by page.

    python -m tests.guides                            # all pages, in this environment
    python -m tests.guides training.md serving.md     # some of them
    python -m tests.guides --install FOLDER           # the lines with pip, in a new environment; needs an index

Each page has a folder of its own, in which toys lie at the names that its commands use. A command is executed as
written, with the options appended that make it small (`rules`). What a page shows as output is compared.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.guides.blocks import PAGES, ROOT, Block, read_blocks
from tests.guides.rules import elsewhere


def install(folder: Path) -> int:
    """Execute the lines that install the package from a clone, each in the environment that the ones before it left.

    Returns:
        Number of lines.
    """
    lines = dict.fromkeys(
        command.partition("#")[0].strip()
        for page in PAGES
        for block in read_blocks(page)
        if block.is_shell and elsewhere(block) is None
        for command in block.commands
        if command.startswith("pip install -c")
    )
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    environment = os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}", "VIRTUAL_ENV": str(folder)}
    environment.pop("PYTHONPATH", None)
    for line in lines:
        print(f"$ {line}", flush=True)
        subprocess.run(["bash", "-ec", line], check=True, cwd=ROOT, env=environment)
        question = 'llava-uhd ask examples/receipt.png "What is the total?"'
        answer = subprocess.run(
            ["bash", "-ec", question], check=True, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE
        )
        if answer.stdout != "$42.69\n":
            raise ValueError(f"after {line!r}, the receipt's total is {answer.stdout!r}")
    return len(lines)


def main() -> None:
    """Execute pages; the first command that fails ends the script."""
    parser = argparse.ArgumentParser(prog="python -m tests.guides", description=(__doc__ or "").split("\n")[0])
    names = [page.name for page in PAGES]
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"names of pages; default: all of {', '.join(names)}")
    parser.add_argument("--install", type=Path, help="folder of a new environment: execute the lines with pip alone")
    options = parser.parse_args()
    if options.install:
        print(f"{install(options.install.absolute())} lines")
        return
    if unknown := set(options.pages) - set(names):
        parser.error(f"unknown pages {sorted(unknown)}; there are {', '.join(names)}")
    os.environ.update({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    from tests.guides.execution import Guide
    from tests.guides.toys import write_all

    count = 0
    with tempfile.TemporaryDirectory() as temporary:
        toys = Path(temporary) / "toys"
        write_all(toys)
        for page in PAGES:
            todo: list[Block] = [block for block in read_blocks(page) if elsewhere(block) is None]
            if not todo or (options.pages and page.name not in options.pages):
                continue
            started = time.monotonic()
            folder = Path(temporary) / page.stem
            shutil.copytree(toys, folder, symlinks=True)
            count += Guide(page.name, folder).execute(todo)
            print(f"{page.name}: {time.monotonic() - started:.0f} s", flush=True)
            shutil.rmtree(folder)
    print(f"{count} commands")


if __name__ == "__main__":
    main()
