"""The campaigns: each yields, for each thing tried, how it ended and what it was.

It ends `right` (the same bits, or the old or the new whole, or an object), `refused` (in one
sentence), `raw` (another exception), `wrong` or `hung`.
"""

import csv
import io
import json
import shutil
import time

import pandas as pd
import torch
from transformers import AutoModelForCausalLM

import independent
import safehead_tl as sh
from damage import damaged, edited
from safehead_tl.models import all_logits
from safehead_tl.prompts import encode
from torture.children import Child, interrupted
from torture.work import (
    RUNS,
    SAVED,
    WRITERS,
    checkpoints,
    contents,
    fingerprint,
    model,
    prompts,
)

ALIKE = {"said": "refused", "raw": "raw", "hung": "hung", "killed": "raw"}
FORMATS = ("txt", "csv", "tsv", "jsonl", "json", "parquet")


def verdict(end, *right):
    """Of a process that was left to end."""
    if end.how == "done":
        return "right" if not right or end.told in right else "wrong"
    return ALIKE[end.how]


class References:
    """What undisturbed runs give, and how many steps in files and seconds they take."""

    def __init__(self, folder):
        self.folder = folder
        self.known = {}

    def __getitem__(self, name):
        if name not in self.known:
            directory = self.folder / "whole" / name
            child = Child(lambda: fingerprint(RUNS[name](directory)), directory)
            end = child.wait()
            assert end.how == "done", end
            alone = Child(lambda: fingerprint(RUNS[name]())).wait()
            assert alone.told == end.told, f"{name}: a run directory changes the result"
            again = Child(lambda: fingerprint(RUNS[name](directory)))
            assert again.wait().told == end.told
            self.known[name] = (end.told, end.steps, directory)
        return self.known[name]


def kills(draw, times, folder, whole):
    """`kill -9` in runs with a run directory, started again until one ends."""
    for number in range(times):
        name = draw.choice(list(RUNS))
        expected, steps, _ = whole[name]
        directory = folder / f"chain{number}"
        for left in range(draw.randrange(1, 5), -1, -1):
            how = {"die_at": draw.randrange(1, steps)} if left and draw.random() < 0.7 else {}
            child = Child(lambda d=directory, n=name: fingerprint(RUNS[n](d)), directory, **how)
            after = draw.uniform(0.0, 0.6) if left and not how else None
            end = child.wait(kill_after=after)
            if end.how != "killed":
                break
            yield "kill", ""
        yield verdict(end, expected), f"{name}: {end}"
        shutil.rmtree(directory)


def interrupts(draw, times, folder, whole):
    """Ctrl-C in a scan, then the same scan again in the same process, on the same model."""
    names = [name for name in RUNS if name.startswith(("ships", "generalized", "sahara"))]
    for _ in range(times):
        name, seconds = draw.choice(names), draw.uniform(0.0, 0.5)

        def work(name=name, seconds=seconds):
            with interrupted(seconds):
                RUNS[name]()
            return fingerprint(RUNS[name]())

        end = Child(work).wait()
        yield verdict(end, whole[name][0]), f"{name} after {seconds:.3f} s: {end}"


def companions(draw, times, folder, whole):
    """Two processes on one run directory at once."""
    for number in range(times):
        name, directory = draw.choice(list(RUNS)), folder / f"two{number}"
        both = [Child(lambda d=directory, n=name: fingerprint(RUNS[n](d))) for _ in range(2)]
        for child in both:
            end = child.wait()
            yield verdict(end, whole[name][0]), f"{name}: {end}"
        shutil.rmtree(directory)


def pieces(draw, times, folder, whole):
    """Pieces flipped, cut, edited, exchanged or another run's; then the run again."""
    for number in range(times):
        name, other = draw.choice(list(RUNS)), draw.choice(list(RUNS))
        expected, _, done = whole[name]
        directory = folder / f"pieces{number}"
        shutil.copytree(done, directory)
        files = sorted((directory / "pieces").iterdir())
        foreign = sorted((whole[other][2] / "pieces").iterdir())
        for file in draw.sample(files, draw.randrange(1, 4) if len(files) > 3 else 1):
            way = draw.random()
            if way < 0.6:
                file.write_bytes(damaged(file.read_bytes(), draw))
            elif way < 0.8:
                file.write_bytes(header_edited(file.read_bytes(), draw))
            else:
                file.write_bytes(draw.choice(files if way < 0.9 else foreign).read_bytes())
        end = Child(lambda d=directory, n=name: fingerprint(RUNS[n](d))).wait()
        yield verdict(end, expected), f"{name}: {end}"
        shutil.rmtree(directory)


def header_edited(content, draw):
    """A safetensors file with its own header, or ours in it, edited."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if draw.random() < 0.5:
        header = edited(header, draw)
    else:
        ours = edited(json.loads(header["__metadata__"]["safehead_tl"]), draw)
        header["__metadata__"]["safehead_tl"] = json.dumps(ours)
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + content[8 + length :]


def records(draw, times, folder, whole):
    """`run.json` damaged or edited and some pieces lost; then the run again."""
    for number in range(times):
        name = draw.choice(list(RUNS))
        expected, _, done = whole[name]
        directory = folder / f"record{number}"
        shutil.copytree(done, directory)
        record, there = directory / "run.json", (done / "run.json").read_bytes()
        if draw.random() < 0.4:
            record.write_bytes(damaged(there, draw))
        else:
            document = json.loads(there)
            part = draw.choice(["plan", "plan", "environment", "identity", None])
            if part is None:
                document = edited(document, draw)
            else:
                document[part] = edited(document[part], draw)
            record.write_text(json.dumps(document, indent=1))
        for piece in (directory / "pieces").iterdir():
            if draw.random() < 0.5:
                piece.unlink()
        end = Child(lambda d=directory, n=name: fingerprint(RUNS[n](d))).wait()
        yield verdict(end, expected), f"{name}: {end}"
        shutil.rmtree(directory)


def results(draw, times, folder, whole):
    """Saved results of every kind with flipped bits, cuts, strange bytes or edits; then loaded."""
    made, file = folder / "results", folder / "result.safetensors"
    made.mkdir()

    def write():
        for kind, make in SAVED.items():
            make().save(made / f"{kind}.safetensors")

    assert Child(write).wait().how == "done"
    for _ in range(times):
        kind = draw.choice(list(SAVED))
        load, whole_file = getattr(sh, kind).load, made / f"{kind}.safetensors"
        change = draw.choice([damaged, damaged, header_edited])
        file.write_bytes(change(whole_file.read_bytes(), draw))
        end = Child(lambda load=load: fingerprint(load(file))).wait()
        expected = fingerprint(load(whole_file))
        yield verdict(end, expected), f"{kind}: {end}"


def texts(draw, times, folder, whole):
    """Prompt files of six kinds, damaged; then loaded."""
    for _ in range(times):
        kind = draw.choice(FORMATS)
        file = folder / f"prompts.{kind}"
        file.write_bytes(damaged(_table(kind, prompts(8)), draw))
        end = Child(lambda file=file: json.dumps(sh.load_prompts(file))).wait()
        yield verdict(end), f"{kind}: {end}"


def _table(kind, rows):
    table = pd.DataFrame({"id": range(len(rows)), "prompt": [f'{row}, "😀"' for row in rows]})
    match kind:
        case "txt":
            return "\n".join(rows).encode()
        case "csv" | "tsv":
            file = io.StringIO()
            table.to_csv(file, sep="," if kind == "csv" else "\t", index=False,
                         quoting=csv.QUOTE_NONNUMERIC)  # fmt: skip
            return file.getvalue().encode()
        case "json" | "jsonl":
            return table.to_json(orient="records", lines=kind == "jsonl").encode()
        case _:
            return table.to_parquet()


def models(draw, times, folder, whole):
    """Checkpoints with a file damaged, edited or gone; then loaded and scanned."""
    made = Child(lambda: " ".join(map(str, checkpoints(folder)))).wait().told.split()
    for number in range(times):
        directory = folder / f"checkpoint{number}"
        shutil.copytree(draw.choice(made), directory)
        files = sorted(directory.iterdir())
        file = draw.choice([directory / "config.json", draw.choice(files)])
        way = draw.random()
        if file.suffix == ".json" and way < 0.6:
            file.write_text(json.dumps(edited(json.loads(file.read_text()), draw)))
        elif way < 0.95:
            file.write_bytes(damaged(file.read_bytes(), draw))
        else:
            file.unlink()
        backend = draw.choice(["auto", "bridge"])

        def work(directory=directory, backend=backend):
            loaded = sh.load_model(directory, backend=backend)
            told = {"template": "paper", "run": sh.Run(progress=False)}
            sh.ships(loaded, prompts(2), candidates=["L0H0"], **told)
            batch = encode(loaded, prompts(1), "paper")
            plain = AutoModelForCausalLM.from_pretrained(
                directory, attn_implementation="eager", dtype=torch.float32
            )
            theirs = independent.logits(plain.eval(), batch.tokens, batch.mask)
            ours = all_logits(loaded, batch.tokens, batch.mask)
            return str(torch.allclose(ours, theirs, atol=1e-2, rtol=1e-2))

        end = Child(work).wait(within=60)
        yield verdict(end, "True"), f"{file.name} ({backend}): {end}"
        shutil.rmtree(directory)


class Writing:
    """Something old in its place, and something new to be written over it."""

    def __init__(self, name, folder):
        self.write, old, self.new = WRITERS[name]
        self.kept, self.target = folder / name, folder / "place" / name
        end = Child(lambda: self.write(self.kept, **old)).wait()
        assert end.how == "done", end
        self.old = contents(self.kept)
        self.restore()
        started = time.perf_counter()
        self.whole = Child(self.again, self.target.parent).wait()
        self.seconds = time.perf_counter() - started
        assert self.whole.how == "done", self.whole
        self.renewed = contents(self.target)
        assert self.renewed != self.old
        self.restore()

    def restore(self):
        shutil.rmtree(self.target.parent, ignore_errors=True)
        self.target.parent.mkdir()
        copy = shutil.copytree if self.kept.is_dir() else shutil.copyfile
        copy(self.kept, self.target)

    def again(self):
        self.write(self.target, overwrite=True, **self.new)

    def leftovers(self):
        return [file.name for file in self.target.parent.iterdir() if file != self.target]


def overwrites(name):
    """A campaign of kills while something new is written over something old."""

    def campaign(draw, times, folder, whole):
        writing = Writing(name, folder)
        for _ in range(times):
            die_at = draw.randrange(1, writing.whole.steps + 1) if draw.random() < 0.7 else None
            after = None if die_at else draw.uniform(0, writing.seconds)
            end = Child(writing.again, writing.target.parent, die_at).wait(kill_after=after)
            yield "kill", ""
            now = contents(writing.target)
            state = {writing.old: "old", writing.renewed: "new"}.get(now, f"neither ({now[:7]})")
            again = Child(writing.again, writing.target.parent).wait()
            left = writing.leftovers()
            fine = end.how in ("killed", "done") and state in ("old", "new") and again.how == "done"
            fine = fine and contents(writing.target) == writing.renewed and not left
            told = (
                f"killed at step {die_at} of {writing.whole.steps}, or after {after}: {state}, "
                f"then {again}, {left}"
            )
            yield "right" if fine else "wrong", told
            writing.restore()

    return campaign


def full(draw, times, folder, whole):
    """A disk that is full in the middle of writing something new over something old."""
    writings = []
    for number, kind in enumerate(WRITERS):
        (folder / str(number)).mkdir()
        writings.append((kind, Writing(kind, folder / str(number))))
    for _ in range(times):
        kind, writing = draw.choice(writings)
        largest = 2 ** draw.randrange(10, 18)
        end = Child(writing.again, writing.target.parent, largest=largest).wait()
        expected = writing.renewed if end.how == "done" else writing.old
        fine = contents(writing.target) == expected and not writing.leftovers()
        said = f"{kind}, files of at most {largest} bytes: {end}, {writing.leftovers()}"
        yield verdict(end) if fine else "wrong", said
        writing.restore()


def warm():
    """Loads the models that all children have, before the first of them."""
    for backend in ("auto", "bridge"):
        model(backend)


CAMPAIGNS = {
    "`kill -9` in runs with a run directory, started again until whole": (kills, 60),
    "Ctrl-C in scans, then the same scan on the same model": (interrupts, 120),
    "two processes on one run directory": (companions, 15),
    "pieces of a run damaged, edited or exchanged": (pieces, 150),
    "`run.json` damaged or edited, half of the pieces lost": (records, 200),
    "saved results damaged or edited": (results, 600),
    "prompt files damaged": (texts, 600),
    "checkpoints damaged or edited": (models, 250),
    "`kill -9` while a result is saved over another": (overwrites("result.safetensors"), 12),
    "`kill -9` in `export --overwrite`": (overwrites("exported"), 50),
    "`kill -9` in `train-organism --overwrite`": (overwrites("organism"), 50),
    "a full disk while something is overwritten": (full, 40),
}
