"""Writes the repository's address, and the notebooks' first cell, wherever they stand.

python docs/address.py [URL]   # also `make address URL=...`; a test compares the files with this

The address stands in pyproject.toml, under `[project.urls]`; without URL it is taken from there.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from textwrap import fill

ROOT = Path(__file__).parent.parent
UNKNOWN = "<this repository>"
CELL = '''\
try:
    import safehead_tl as sh
except ImportError:
    # Only where the package is missing, as on a fresh Colab: installs it, from the clone that this
    # notebook lies in, or from SOURCE. What Colab's kernel is built on stays as it is, or pip stops
    # and says why. transformer-lens 3.9 is what this was tested with.
    from importlib.metadata import distributions
    from pathlib import Path

    SOURCE = "{source}"
    for folder in (Path.cwd().parent, Path.cwd()):
        if (folder / "safehead_tl" / "public.py").is_file():
            SOURCE = str(folder)
{ask}    held = """
{held}
    """
    here = " ".join(f"{{d.name}}=={{d.version}}" for d in distributions() if d.name in held.split())
    %pip install -q {{here}} "{{SOURCE}}" "transformer-lens==3.9.*"
    import safehead_tl as sh
'''
ASK = """\
    told = Path.home() / ".safehead-source"  # where other notebooks find what was pasted here
    if not SOURCE and told.exists():
        SOURCE = told.read_text()
    if not SOURCE:
        print("Paste the https:// address of safehead_tl's repository, and press Enter.")
        SOURCE = "safehead-tl @ git+" + input().strip()
"""
REMEMBER = """
    if SOURCE.startswith("safehead-tl @"):
        told.write_text(SOURCE)
"""


def cell(root: Path, source: str) -> str:
    """The notebooks' first cell. What it holds is what constraints-colab.txt names."""
    lines = (root / "constraints-colab.txt").read_text(encoding="utf-8").splitlines()
    names = [line.partition("==")[0] for line in lines if not line.startswith("#")]
    indent = " " * 8
    held = fill(" ".join(names), 100, initial_indent=indent, subsequent_indent=indent)
    text = CELL.format(source=source, ask="" if source else ASK, held=held)
    return (text + ("" if source else REMEMBER)).rstrip()


def written(root: Path, url: str | None = None) -> dict[Path, str]:
    """All files with the address in them, as they should be; `url` is a new one."""
    project = root / "pyproject.toml"
    made = {project: project.read_text(encoding="utf-8")}
    if url is not None:
        line = f'Repository = "{url}"\n' if url else ""
        made[project] = re.sub(
            r'(?<=\[project\.urls\]\n)(Repository = ".*"\n)?', line, made[project]
        )
    said = tomllib.loads(made[project])
    url, version = said["project"]["urls"].get("Repository", ""), said["project"]["version"]
    place, tag = url or UNKNOWN, f"v{version}"
    source = f"safehead-tl @ git+{url}@{tag}" if url else ""
    if said["tool"]["safehead_tl"]["published"]:
        source = f"safehead-tl=={version}"
    first = cell(root, source)

    folder = url.rpartition("/")[2] or "safehead_tl"
    blob = rf"({UNKNOWN}|https://\S+?)/blob/\S+?/docs/"
    pages = [*root.glob("*.md"), *(root / "docs").rglob("*.md"), *(root / ".github").rglob("*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        text = re.sub(
            rf"git clone ({UNKNOWN}|\S+) && cd [\w.-]+", f"git clone {place} && cd {folder}", text
        )
        text = re.sub(blob, f"{place}/blob/{tag}/docs/", text)
        before, begin, rest = text.partition("<!-- first cell -->\n")
        if begin:
            _, end, after = rest.partition("<!-- end -->")
            text = f"{before}{begin}```ipython3\n{first}\n```\n{end}{after}"
        made[page] = text

    citation = root / "CITATION.cff"
    line = f"repository-code: {url}\n" if url else ""
    made[citation] = re.sub(
        r"(?<=^license: MIT\n)(repository-code: .*\n)?",
        line,
        citation.read_text(encoding="utf-8"),
        flags=re.M,
    )

    opened = "File > Open notebook > GitHub"
    for path in sorted((root / "examples").glob("0*.ipynb")):
        if url.startswith("https://github.com/"):
            target = url.replace("https://github.com/", "https://colab.research.google.com/github/")
            opened = f"[open it there]({target}/blob/{tag}/examples/{path.name})"
        notebook = json.loads(path.read_text(encoding="utf-8"))
        top, *others = notebook["cells"]
        says = re.sub(r"(?<=In Colab: ).+?(?=, or upload)", opened, "".join(top["source"]))
        top["source"] = says.splitlines(keepends=True)
        if others[0]["metadata"].get("tags") != ["install"]:
            kind = {"cell_type": "code", "execution_count": None, "id": f"{path.stem[:2]}-install"}
            others.insert(0, {**kind, "metadata": {"tags": ["install"]}, "outputs": []})
        others[0]["source"] = first.splitlines(keepends=True)
        notebook["cells"] = [top, *others]
        made[path] = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    return made


def main() -> None:
    """Writes what differs, and says what."""
    url = sys.argv[1].removesuffix("/").removesuffix(".git") if sys.argv[1:] else None
    if url is not None and not re.fullmatch(r"https://[\w./~-]+", url):
        sys.exit(f"{url!r} is no address of a repository: give one that begins with https://")
    for path, text in written(ROOT, url).items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
