"""What is tortured: scans and evaluations that keep their pieces, and what is written whole."""

import functools
import hashlib
import json
from pathlib import Path

import safehead_tl as sh
from families import make_checkpoint
from safehead_tl.organism import Recipe, train_organism

ROWS = 24
PLANTED = ["L1H3", "L2H6"]
VOLATILE = ("seconds", "created", "forward_passes")
"""What a provenance says of the sittings. It differs, and is left out of comparisons."""


@functools.cache
def model(backend):
    return sh.load_model("demo", backend=backend)


@functools.cache
def prompts(count, start=0):
    return sh.load_prompts("demo/harmful")[start : start + count]


def scan(measure, count, backend="auto", **told):
    def run(run_dir=None):
        how = sh.Run(max_rows=ROWS, run_dir=run_dir, progress=False)
        return measure(model(backend), prompts(count), run=how, **told)

    return run


SOME = [f"L{layer}H{head}" for layer in range(1, 4) for head in range(8)]
EVALUATED = {"heads": PLANTED, "judge": "keyword", "controls": 2, "max_new_tokens": 12}
RUNS = {
    "ships": scan(sh.ships, 8),
    "ships screened": scan(sh.ships, 8, screen=8),
    "ships bridge": scan(sh.ships, 4, backend="bridge", candidates=SOME),
    "ships mean": scan(sh.ships, 6, ablation="mean", candidates=SOME),
    "generalized": scan(sh.generalized_ships, 8, rank=2, centre=True, template="paper"),
    "generalized screened": scan(sh.generalized_ships, 8, screen=8, given=["L1H3"]),
    "sahara": scan(sh.sahara, 6, size=2, candidates=SOME),
    "sahara screened": scan(sh.sahara, 6, size=2, screen="auto"),
    "evaluate": scan(sh.evaluate, 5, **EVALUATED),
}
SAVED = {
    "HeadScores": scan(sh.ships, 4, screen=4),
    "HeadGroup": scan(sh.sahara, 4, size=2, candidates=PLANTED),
    "LastStates": lambda: sh.last_states(model("auto"), prompts(4), PLANTED),
    "Evaluation": scan(sh.evaluate, 3, **EVALUATED),
    "Concentration": lambda: sh.concentration(
        model("auto"), prompts(3), {"planted": PLANTED}, random_orders=1, judge="keyword",
        max_new_tokens=8, run=sh.Run(progress=False),
    ),
}  # fmt: skip


def fingerprint(result):
    """Of all bits of a result but those of its sittings."""
    tensors, header = result._to_file()
    digest = hashlib.sha256(json.dumps(_settled(header), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _settled(value):
    if isinstance(value, dict):
        return {key: _settled(inner) for key, inner in value.items() if key not in VOLATILE}
    return list(map(_settled, value)) if isinstance(value, list | tuple) else value


def contents(path):
    """Of a saved result, or of all that a directory holds."""
    if path.is_file():
        return fingerprint(sh.HeadScores.load(path))
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path)}\0".encode() + file.read_bytes())
    return digest.hexdigest() if path.exists() else "nothing"


def export(out, heads=PLANTED, overwrite=False):
    sh.export("demo", heads, out, ablation="zero", overwrite=overwrite)


def organism(out, seed=0, overwrite=False):
    sizes = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_mlp": 16, "planted": ["L1H0"]}
    recipe = Recipe(**sizes, base_steps=1, align_steps=1, batch_size=4, seed=seed)
    train_organism(out, recipe, overwrite=overwrite, progress=False)


def save(out, count=2, overwrite=False):
    scan(sh.ships, count, candidates=PLANTED)().save(out)


WRITERS = {
    "result.safetensors": (save, {"count": 2}, {"count": 3}),
    "exported": (export, {"heads": ["L0H1"]}, {"heads": PLANTED}),
    "organism": (organism, {"seed": 1}, {"seed": 0}),
}
"""What writes something under a name, told to write something old, and something new."""


def checkpoints(folder):
    return [make_checkpoint(name, Path(folder)) for name in ("llama-grouped", "gpt2", "gemma")]
