"""Draws and explores the demo with the packages that Google Colab has: `make colab-check`."""

import sys
import tempfile
from pathlib import Path

from jupyter_client.manager import start_new_kernel

import safehead_tl as sh

TOLD = {"run": sh.Run(progress=False)}


def figures(model, prompts):
    scores = sh.ships(model, prompts, **TOLD)
    zeroed = sh.ships(model, prompts, ablation="zero", **TOLD)
    group = sh.sahara(model, prompts, 2, **TOLD)
    answers = {**TOLD, "max_new_tokens": 16}
    evaluation = sh.evaluate(model, prompts, heads=group.heads, controls=2, **answers)
    own = sh.evaluate(model, prompts, heads=scores.per_query(1), controls=2, **answers)
    orders = {"Ships": scores.top(2)}
    concentration = sh.concentration(model, prompts, orders, random_orders=2, **answers)
    states = sh.last_states(model, prompts, group.heads)
    screened = sh.ships(model, prompts, screen=8, **TOLD)
    return {
        "plane": states.plane(),
        "spectrum": states.spectrum(),
        "heatmaps": sh.heatmaps({"exact": scores, "screened": screened}),
        "heatmap": scores.heatmap(group.heads),
        "bars": scores.bars(5),
        "strips": scores.strips(5),
        "sahara": group.figure(),
        "knockout": sh.knockout(model, prompts, scores.top(3), **TOLD).figure(),
        "evaluation": evaluation.figure(),
        "own heads": own.figure(),
        "chosen": own.chosen().heatmap(),
        "asr map": sh.asr_map(model, prompts, candidates=scores.top(3), **answers).beside(),
        "concentration": concentration.figure(),
        "overlap": sh.overlap({"undifferentiated": scores, "zero": zeroed}).figure(),
    }


CELL = """
import safehead_tl as sh
model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful")[:16]
widget = sh.explore(model, prompts, run=sh.Run(progress=False))
first, second = widget.asked["columns"]
both = [first, {**second, "heads": ["L1H3", "L2H6"]}]
widget.asked = {**widget.asked, "number": 1, "columns": both}
print(type(widget).__name__, "says:", widget.shown["status"])
"""


def live_widget():
    """Makes the widget in a kernel, asks it for two heads, and returns what it says."""
    manager, client = start_new_kernel()
    said = []
    try:
        client.execute_interactive(
            CELL,
            timeout=120,
            output_hook=lambda message: said.append(message["content"].get("text", "")),
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return "".join(said)


def main():
    model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful")[:16]
    drawn, said = figures(model, prompts), live_widget()
    if "B: 2 heads ablated" not in said:
        sys.exit(f"colab-check: the live widget says {said!r}")
    with tempfile.TemporaryDirectory() as directory:
        for name, figure in drawn.items():
            figure.write_html(Path(directory) / f"{name}.html")
        sh.report(model, prompts, Path(directory) / "report.html", **TOLD)
    print(f"colab-check: report, widget and {len(drawn)} figures ({', '.join(drawn)})")


if __name__ == "__main__":
    main()
