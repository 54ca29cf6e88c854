"""Draws the pictures of README and docs from the embedded organism, with a headless Chromium.

python docs/pictures.py                        # writes docs/images/*.png; needs chromium in PATH
python docs/pictures.py heatmap ground-truth   # only these

The ground-truth picture trains the organisms that build/ground-truth does not hold: some hours.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import safehead_tl as sh
from safehead_tl.ground_truth import ground_truth

IMAGES = Path(__file__).parent / "images"
TOLD = {"template": "chat", "max_new_tokens": 32, "run": sh.Run(progress=False)}


def figures():
    """Each figure by its name."""
    model = sh.load_model("demo")
    train = sh.load_prompts("demo/harmful")
    harmful = sh.load_prompts("demo/harmful", split="test")
    benign = sh.load_prompts("demo/benign", split="test")
    scores = {
        name: sh.ships(model, train, template="chat", ablation=name, run=sh.Run(progress=False))
        for name in ("undifferentiated", "scaling")
    }
    group = sh.sahara(model, train, 5, template="chat", run=sh.Run(progress=False))
    planted = ["L1H3", "L2H6"]
    known = {"marked": planted, "marked_as": "planted"}
    yield "heatmap", scores["undifferentiated"].heatmap(**known)
    both = {"UA": scores["undifferentiated"], "SC": scores["scaling"]}
    yield "heatmaps", sh.heatmaps(both, **known)
    yield "bars", scores["undifferentiated"].bars(10, **known)
    yield "strips", scores["undifferentiated"].strips(6, log=True, **known)
    yield "sahara", group.figure()
    few = scores["undifferentiated"].top(6)
    yield "knockout", sh.knockout(model, train[:16], few, template="chat").figure()
    states, others = (
        sh.last_states(model, some[:16], planted, template="chat") for some in (train, benign)
    )
    yield "plane", states.plane(others)
    yield "spectrum", states.spectrum()
    found = sh.evaluate(model, harmful, heads=planted, harmless=benign, **TOLD)
    yield "evaluation", found.figure()
    alone = sh.asr_map(model, harmful, **TOLD)
    yield "asr-map", alone.beside(**known)
    orders = {"Sahara": group.heads, "Ships": scores["undifferentiated"].top(5)}
    yield "concentration", sh.concentration(model, harmful, orders, **TOLD).figure()
    benign_scores = sh.ships(model, benign, template="chat", run=sh.Run(progress=False))
    named = {
        "harmful, UA": scores["undifferentiated"],
        "harmful, SC": scores["scaling"],
        "benign, UA": benign_scores,
    }
    yield "overlap", sh.overlap(named, top=5).figure()


def found_truth():
    """What the ground-truth benchmark finds."""
    yield "ground-truth", ground_truth(IMAGES.parent.parent / "build" / "ground-truth").figure()


def report(folder: Path) -> Path:
    """The report of the organism, with all that it can tell of."""
    model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful")
    group = sh.sahara(model, prompts, 2, template="chat", run=sh.Run(progress=False))
    harmful = sh.load_prompts("demo/harmful", split="test")
    found = sh.evaluate(model, harmful, heads=group.heads, **TOLD)
    return sh.report(
        model, prompts, folder / "report.html", group=group, evaluation=found,
        marked=["L1H3", "L2H6"], marked_as="planted", **TOLD,
    )  # fmt: skip


EXPLORE = """<!doctype html><meta charset="utf-8"><style>{style}</style><div id="here"></div>
<script type="module">{script}
const state = {state};
const nothing = () => {{}};
const model = {{ get: (name) => state[name], set: nothing, on: nothing, off: nothing }};
render({{ model, el: document.getElementById("here") }});
</script>"""


def explore(folder: Path) -> Path:
    """The live widget, as its own script draws it, with both planted heads ablated."""
    model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful")
    scores = sh.ships(model, prompts, template="chat", run=sh.Run(progress=False))
    with patch("safehead_tl.views.widget.explore._in_notebook", lambda: True):
        widget = sh.explore(
            model, prompts, scores=scores, template="chat", marked=["L1H3", "L2H6"],
            marked_as="planted",
        )  # fmt: skip
    first, second = widget.asked["columns"]
    both = ["L1H3", "L2H6"]
    columns = [first, {**second, "heads": both}]
    told = {**widget.asked, "number": 1, "columns": columns, "shown": both, "generate": True}
    widget.asked = told
    state = json.dumps({"page": widget.page, "asked": told, "shown": widget.shown})
    page = folder / "explore.html"
    script = widget._esm.replace("export default { render };", "")
    text = EXPLORE.format(style=widget._css, script=script, state=state.replace("<", "\\u003c"))
    page.write_text(text, encoding="utf-8")
    return page


def attention(folder: Path) -> Path:
    """A planted head's attention, with it ablated and without, and A."""
    model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful")
    page = folder / "attention.html"
    sh.attention(model, prompts[0], "L1H3", template="chat").save(page)
    return page


PAGES = {
    "report": (report, (1280, 1000)),
    "explore": (explore, (1200, 660)),
    "attention": (attention, (700, 480)),
}


def main() -> None:
    """Writes those that are named, or all."""
    wanted = set(sys.argv[1:])
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no chromium in PATH: install it (on Debian: apt install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        pages = [
            (name, draw(Path(folder)), size)
            for name, (draw, size) in PAGES.items()
            if name in wanted or not wanted
        ]
        drawn = [] if wanted == {"ground-truth"} else [figures()]
        drawn += [found_truth()] if "ground-truth" in wanted or not wanted else []
        for name, figure in itertools.chain(*drawn):
            if wanted and name not in wanted:
                continue
            page = Path(folder) / f"{name}.html"
            figure.write_html(page, config={"displayModeBar": False}, include_plotlyjs=True)
            size = (int(figure.layout.width) + 20, int(figure.layout.height) + 20)
            pages.append((name, page, size))
        for name, page, (width, height) in pages:
            options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                       "--virtual-time-budget=4000", f"--user-data-dir={folder}/profile",
                       f"--window-size={width},{height}",
                       f"--screenshot={IMAGES / name}.png"]  # fmt: skip
            subprocess.run([chromium, *options, str(page)], check=True, capture_output=True)
            print(f"{name}: {(IMAGES / f'{name}.png').stat().st_size} bytes")


if __name__ == "__main__":
    main()
