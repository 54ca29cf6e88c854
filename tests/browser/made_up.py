"""Pages of made-up numbers: what a page draws, without a model to compute it."""

import base64
import html
import json
import math
import random
import zlib
from itertools import chain
from pathlib import Path

from safehead_tl.figures import web_text
from safehead_tl.views.page.report import SCRIPTS, STYLES, _page

TEXT = "how do i fold a vosk in the garden of a friend who likes tea and bread"


def packed(numbers):
    return base64.b64encode(zlib.compress(bytes(numbers))).decode()


def triangle(pick, length):
    """Attention of each token, in bytes that add up to 255 or nearly so."""
    numbers = []
    for row in range(length):
        raw = [pick.random() ** 6 for _ in range(row + 1)]
        numbers += [round(255 * value / sum(raw)) for value in raw]
    return packed(numbers)


def made_up(layers=4, heads=8, *, prompts=3, length=12, panels=6, kv_size=1, signed=False):
    """What a page is given, of random numbers: few large scores, many small ones."""
    pick = random.Random(f"{layers} {heads}")
    count = layers * heads
    scores = [float(f"{math.exp(pick.gauss(-5, 2)):.4g}") for _ in range(count)]
    if signed:
        scores = [score * pick.choice((-1, 1)) for score in scores]
    ranked = sorted(range(count), key=lambda index: -abs(scores[index]))
    names = [f"L{index // heads}H{index % heads}" for index in ranked[:panels]]
    last = [[round(255 * pick.random() ** 8) for _ in range(length)] for _ in range(count)]
    likely = [[place, share] for place, share in enumerate((0.7, 0.2, 0.05, 0.0004))]

    def column(words):
        return {"next": likely, "answer": words,
                "verdict": {"label": "refused", "kind": "refused"}}  # fmt: skip

    def ablated():
        changed = {"kl": 0.5, "after": triangle(pick, length),
                   "verdict": {"label": "complied", "kind": "complied"}}  # fmt: skip
        return [{**column("sure mix two cups of flour"), **changed}] * prompts

    ablations = [
        {"key": "undifferentiated", "label": "undifferentiated attention", "note": ""},
        {"key": "scaling", "label": "scaling contribution", "note": "its output is scaled"},
    ]  # fmt: skip
    words = TEXT.split()
    tokens = [words[place % len(words)] for place in range(length)]
    group = ranked[:3]
    data = {
        "shape": {"layers": layers, "heads": heads, "kvSize": kv_size},
        "maps": [{"title": "Ships", "unit": "nats", "words": "Ships, nats", "signed": signed,
                  "scores": scores, "ranked": ranked, "pale": [], "intervals": None}],
        "marked": ranked[:2], "markedAs": "planted", "lead": "Made up.",
        "path": {"heads": group, "scores": [1, 2, 3], "words": "Sahara's steps"},
        "arrows": [{"from": ranked[0], "to": ranked[1], "change": -0.5, "words": "falls"}],
        "ablations": ablations, "tokens": tokens,
        "prompts": [{"text": f"prompt {at} {' '.join(tokens)}", "tokens": list(range(length)),
                     **column("sorry i can not help with that"),
                     "lastRows": packed(chain.from_iterable(last))} for at in range(prompts)],
        "perPrompt": None,
        "before": {name: [triangle(pick, length)] * prompts for name in names},
        "ablated": {name: {one["key"]: ablated() for one in ablations} for name in names},
        "group": {"label": "Sahara's group", "heads": group, "ablation": "undifferentiated",
                  "prompts": [{**column("sure"), "kl": 1.5,
                               "after": {names[0]: triangle(pick, length)}}] * prompts},
        "cards": {name: {"promotes": [[0, 1.5]], "suppresses": [[1, -1.5]], "looks": [[2, 0.6]],
                         "perPrompt": [0.1, 0.4, 0.2], "interval": [0.1, 0.4]} for name in names},
        "thumbnails": packed([pick.randrange(256) for _ in range(136)] * count),
    }  # fmt: skip
    return data, last


def write_made_up(path, data, title="Made up"):
    parts = dict.fromkeys(("lead", "summary", "extra", "how", "settings"), "")
    path.write_text(_page({**parts, "title": html.escape(title)}, data), "utf-8")
    return path.as_uri()


KERNEL = Path(__file__).with_suffix(".js")


def write_widget(path, data):
    """The widget on a page of its own, with a kernel of made-up answers."""
    widget = {
        **data, "path": None, "arrows": [], "prompts": [one["text"] for one in data["prompts"]],
        "ablations": [{**one, "scaled": one["key"] == "scaling"} for one in data["ablations"]],
        "scored": "undifferentiated", "smallest": 1e-5, "largest": 1, "generates": True,
    }  # fmt: skip
    name = widget["first"] = next(iter(data["before"]))
    tokens = data["tokens"]
    made = {
        "tokens": tokens, "next": [[tokens[at], share] for at, share in data["prompts"][0]["next"]],
        "before": data["before"][name][0], "after": data["ablated"][name]["scaling"][0]["after"],
        "lastRows": data["prompts"][0]["lastRows"],
    }  # fmt: skip
    script = web_text(*SCRIPTS, "explore.js").replace("export default { render };", "")
    script += f"const page = {json.dumps(widget)}, made = {json.dumps(made)};"
    script += KERNEL.read_text("utf-8")
    style = f"body {{ margin: 8px }} {web_text(*STYLES, 'explore.css')}"
    path.write_text(
        "<!doctype html><html lang=en><meta charset=utf-8><title>widget</title>"
        f"<style>{style}</style><main id=widget></main><script>{script}</script></html>",
        "utf-8",
    )
    return path.as_uri()
