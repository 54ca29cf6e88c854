"""Whatever a file holds, a reader gives its object or one sentence that names the file."""

import csv
import io
import json
import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import safehead_tl as sh
from damage import damaged, edited
from families import QUIET
from safehead_tl.organism import DEMO, Language
from safehead_tl.results import save_result
from strategies import texts, tried

MANY = settings(max_examples=8 * settings.default.max_examples)
"""For what takes a millisecond."""

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet")
ROWS = st.lists(texts(max_size=20), min_size=1, max_size=6)
CHANCES = st.randoms(use_true_random=False)


def written(suffix, rows):
    """Prompts as the usual writers write them into a file of a kind."""
    table = [{"id": str(number), "prompt": row} for number, row in enumerate(rows)]
    match suffix:
        case ".txt":
            return "\n".join(rows).encode()
        case ".csv" | ".tsv":
            file = io.StringIO(newline="")
            dialect = "excel" if suffix == ".csv" else "excel-tab"
            writer = csv.DictWriter(file, ["id", "prompt"], dialect=dialect)
            writer.writeheader()
            writer.writerows(table)
            return file.getvalue().encode()
        case ".jsonl":
            return "\n".join(map(json.dumps, table)).encode()
        case ".json":
            return json.dumps(table).encode()
        case _:
            return pd.DataFrame(table).to_parquet()


def answered(read, name, content):
    """What a reader makes of a file: its object, or nothing if it says in a sentence why not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        found, refused = tried(lambda: read(path))
        assert not refused or (name in refused and "\n" not in refused)
        return found


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(rows=ROWS)
@MANY
def test_prompts_come_out_as_they_went_in(suffix, rows):
    assume(any(map(str.strip, rows)))
    if suffix == ".txt":
        assume(not any("\n" in row or row.endswith("\r") for row in rows))  # ends of lines
    expected = {" ".join(row.split()): row for row in reversed(rows) if row.strip()}
    found = answered(sh.load_prompts, f"p{suffix}", written(suffix, rows))
    assert found == [row for row in dict.fromkeys(rows) if row in expected.values()]


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(content=st.binary(max_size=200) | st.tuples(ROWS, CHANCES))
@MANY
def test_any_bytes_are_prompts_or_a_sentence(suffix, content):
    if isinstance(content, tuple):
        content = damaged(written(suffix, content[0]), content[1])
    found = answered(sh.load_prompts, f"p{suffix}", content)
    assert found is None or (found and all(map(str.strip, found)))


@given(content=st.binary(max_size=200) | CHANCES)
@MANY
def test_any_bytes_are_words_or_a_sentence(content):
    if not isinstance(content, bytes):
        whole = {"tools": DEMO.tools, "harmful": DEMO.harmful, "benign": DEMO.benign}
        changed = content.random() < 0.5
        document = json.dumps(edited(whole, content) if changed else whole).encode()
        content = document if changed else damaged(document, content)
    found = answered(Language.from_json, "words.json", content)
    assert found is None or isinstance(found, Language)


@pytest.fixture(scope="module")
def results(demo, harmful, tmp_path_factory):
    """A result of each kind that is saved."""
    some, told = harmful[:3], {"run": QUIET}
    texts = {"judge": "keyword", "max_new_tokens": 4, **told}
    made = [
        sh.ships(demo, some, screen=3, **told),
        sh.sahara(demo, some, size=2, candidates=["L1H3", "L2H6", "L0H0"], **told),
        sh.last_states(demo, some, ["L1H3"], **told),
        sh.evaluate(demo, some, heads=["L1H3"], controls=2, **texts),
        sh.concentration(demo, some, {"found": ["L1H3", "L2H6"]}, random_orders=2, **texts),
    ]
    return made.__getitem__  # not the list: Hypothesis would print it beside a case that fails


def told(result):
    """All that a result holds, as it would be in a file."""
    tensors, header = result._to_file()
    return json.dumps(header, sort_keys=True), {
        name: (tensor.dtype, tensor.shape, tensor.contiguous().numpy().tobytes())
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("place", range(5))
@given(content=st.binary(max_size=200) | CHANCES)
@MANY
def test_any_bytes_are_the_result_or_a_sentence(results, place, content):
    result = results(place)
    if not isinstance(content, bytes):
        with tempfile.TemporaryDirectory() as folder:
            result.save(f"{folder}/whole.safetensors")
            content = damaged(Path(folder, "whole.safetensors").read_bytes(), content)
    found = answered(type(result).load, "result.safetensors", content)
    assert found is None or told(found) == told(result)


@pytest.mark.parametrize("place", range(5))
@given(chances=CHANCES)
@MANY
def test_an_edited_result_is_a_result_or_a_sentence(results, place, chances):
    """Edited by someone who knows how to write such files: the digest is right."""
    result = results(place)
    tensors, header = result._to_file()
    if chances.random() < 0.2:
        name = chances.choice(sorted(tensors))
        changed = [
            tensors[name][:1],
            tensors[name].half(),
            tensors[name].transpose(0, -1),
            torch.zeros(0),
        ]
        tensors = {**tensors, name: chances.choice(changed)}
    else:
        header = edited(json.loads(json.dumps(header)), chances)

    def read(path):
        save_result(path, type(result).__name__, tensors, header)
        return type(result).load(path)

    found = answered(read, "result.safetensors", b"")
    if found is not None:
        assert repr(found)
        assert told(found)


@given(text=texts(max_size=30) | st.from_regex(r"[L(]?\d+ ?[H.,-] ?\d+\)?", fullmatch=True))
@MANY
def test_any_text_is_a_head_or_a_sentence(text):
    head, refused = tried(lambda: sh.Head.parse(text))
    assert refused or sh.Head.parse(str(head)) == head


@given(text=texts(max_size=30) | st.from_regex(r"\d+(\.\d+)? ?([kmgt]i?)?b?", fullmatch=True))
@MANY
def test_any_text_is_an_amount_of_memory_or_a_sentence(text):
    run, refused = tried(lambda: sh.Run(max_bytes=text))
    assert refused or run.max_bytes == text
