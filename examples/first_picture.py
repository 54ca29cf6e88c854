"""Times what a student waits for: notebook 1 to its first picture, with Colab's packages.

`make first-picture` makes an environment that has no safehead_tl, and runs this in it.
"""

import contextlib
import io
import json
import os
import time
from importlib.metadata import distributions
from pathlib import Path

os.environ["PLOTLY_RENDERER"] = "colab"

from IPython.core.interactiveshell import InteractiveShell

IMPORTS = "import safehead_tl.public, transformer_lens, plotly.express"


def steps():
    """Notebook 1's code up to the heatmap; between its first cell and the others all imports."""
    cells = json.loads(Path("01_quickstart.ipynb").read_text("utf-8"))["cells"]
    first, *others = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (last,) = (place for place, source in enumerate(others) if ".heatmap(" in source)
    yield "first cell: pip install", first
    yield "importing PyTorch and all else", IMPORTS
    yield "demo model, two answers, scan, heatmap", "\n".join(others[: last + 1])


def spent():
    """Seconds by the clock, and of processors: this process's and pip's."""
    used = os.times()
    return time.perf_counter(), used.user + used.system + used.children_user + used.children_system


def here():
    return {f"{each.name} {each.version}" for each in distributions()}


def main():
    os.chdir(Path(__file__).parent)  # the first cell installs the clone that it is in
    shell = InteractiveShell.instance()
    print(f"{'':40}{'seconds':>8}{'of CPU':>8}")
    had, start = here(), spent()
    before = start
    for name, source in steps():
        with contextlib.redirect_stdout(io.StringIO()):
            shell.run_cell(source).raise_error()
        now = spent()
        print(f"{name:40}{now[0] - before[0]:8.1f}{now[1] - before[1]:8.1f}")
        before = now
    print(f"{'to the first picture':40}{before[0] - start[0]:8.1f}{before[1] - start[1]:8.1f}")
    print("replaced by pip:", ", ".join(had - here()) or "nothing")


if __name__ == "__main__":
    main()
