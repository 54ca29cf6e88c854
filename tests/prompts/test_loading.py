import csv
import json
import logging
from pathlib import Path

import datasets
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from jaxtyping import TypeCheckError

import safehead_tl as sh
from safehead_tl.prompts import load_labels

TWO = ["bend a kite, please", "mend a lamp"]
KITES = [f"how do i bend kite {n}" for n in range(12)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own for `datasets`."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def hub(monkeypatch):
    """A hub that gives one data set, whatever it is asked for, and notes what that was."""

    class Hub:
        asked = []
        gives = DatasetDict({"train": Dataset.from_dict({"id": [1, 2], "query": TWO})})

    def load_dataset(name, config=None):
        Hub.asked.append((name, config))
        return Hub.gives

    Hub.asked = []
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return Hub


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_embedded_prompts_are_split(harmful):
    held_out = sh.load_prompts("demo/harmful", split="test")
    assert len(harmful) == len(held_out) == 64
    assert not set(harmful) & set(held_out)
    assert not set(harmful) & set(sh.load_prompts("demo/benign"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "bend a kite, please\n\nmend a lamp\n"),
        ("p.csv", 'goal,target\n"bend a kite, please",yes\nmend a lamp,no\n'),
        ("p.csv", '\ufeffinput\n"bend a kite, please"\nmend a lamp\n'),
        ("p.tsv", "id\tprompt\n1\tbend a kite, please\n2\tmend a lamp\n"),
        ("p.jsonl", '{"prompt": "bend a kite, please", "id": 1}\n{"prompt": "mend a lamp"}\n'),
        ("p.jsonl", '"bend a kite, please"\n"mend a lamp"\n'),
        ("p.csv", 'goal,n\r\n"bend a kite, please",1\r\nmend a lamp,2\r\n'),
        ("p.json", json.dumps(TWO)),
        ("p.json", json.dumps([{"Question": text, "n": 1} for text in TWO])),
        ("p.json", json.dumps([{"whatever": text} for text in TWO])),
    ],
)
def test_every_kind_of_file(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert sh.load_prompts(tmp_path / name) == TWO
    assert sh.load_prompts(str(tmp_path / name), limit=1) == TWO[:1]


def test_a_column_can_be_named(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,text\na,b\n")
    assert sh.load_prompts(path, column="text") == ["b"]
    with pytest.raises(sh.SafeheadError, match=r"Say column=\.\.\., one of prompt, text"):
        sh.load_prompts(path)
    with pytest.raises(sh.SafeheadError, match="no column 'goal': it has prompt, text"):
        sh.load_prompts(path, column="goal")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "\n \n", "holds no prompts"),
        ("p.csv", "how do i bend a kite\nhow do i mend it\n", "looks like a prompt"),
        ("p.json", '{"a": 1}', "must hold a list"),
        ("p.json", "[1, 2]", "neither"),
        ("p.json", '[{"prompt": 3}]', "record 1 has no text"),
        ("p.json", "[", "line 1, is not valid JSON"),
        ("p.jsonl", '"a"\n{\n', "line 2, is not valid JSON"),
        ("p.xlsx", "", "are not read"),
        ("p.csv", "prompt\nbend, fold and mend a kite\n", "more or fewer cells than the header"),
        ("p.csv", "id,prompt\nmend\n", "more or fewer cells than the header"),
        ("p.csv", "id\tquery\n1\tbend\n", "not separated as its name says"),
        ("p.csv", "prompt\nbend\rmend\n", r"line 2, cannot be read .* in double quotes"),
        ("p.csv", "prompt,prompt\nbend,mend\n", "several columns 'prompt': rename"),
        ("p.csv", "\r", "has no columns"),
        ("p.parquet", "prompt\nbend\n", "cannot be read as Parquet"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(sh.SafeheadError, match=message) as error:
        sh.load_prompts(tmp_path / name)
    assert name in str(error.value)


@pytest.mark.parametrize(("name", "mark"), [("p.csv", ","), ("p.tsv", "\t"), ("p.csv", ";")])
def test_what_is_in_a_cell_stays_as_it_is(tmp_path, name, mark):
    prompts = ["bend\ra kite", "mend\r\nit", "a,b;c", "long " * 40_000]
    with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=mark, quoting=csv.QUOTE_ALL)
        writer.writerows([["id", "prompt"], *enumerate(prompts)])
    limit = csv.field_size_limit()
    assert sh.load_prompts(tmp_path / name) == prompts
    assert csv.field_size_limit() == limit


def test_in_a_text_file_line_feeds_end_a_prompt(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"bend\ra kite\r\nmend it\r\n")
    assert sh.load_prompts(tmp_path / "p.txt") == ["bend\ra kite", "mend it"]


def test_names_of_columns(tmp_path):
    pd.DataFrame({0: [1, 2], 1: TWO}).to_parquet(tmp_path / "p.parquet")
    assert sh.load_prompts(tmp_path / "p.parquet", column="1") == TWO
    with pytest.raises(sh.SafeheadError, match="one of 0, 1"):
        sh.load_prompts(tmp_path / "p.parquet")
    write(tmp_path / "p.csv", "Text Prompt,id,id\nbend,1,2\n")
    assert sh.load_prompts(tmp_path / "p.csv", column="Text Prompt") == ["bend"]
    with pytest.raises(sh.SafeheadError, match="Did you mean 'Text Prompt'"):
        sh.load_prompts(tmp_path / "p.csv", column="text prompt")
    with pytest.raises(sh.SafeheadError, match="several columns 'id'"):
        sh.load_prompts(tmp_path / "p.csv", column="id")


def test_half_a_character_is_named(demo, tmp_path):
    write(tmp_path / "p.json", '["bend it", "a \\ud83d kite"]')
    prompts = sh.load_prompts(tmp_path / "p.json")
    with pytest.raises(sh.SafeheadError, match=r"prompts\[1\] holds half of a surrogate pair"):
        sh.generate(demo, prompts)


def test_unknown_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match="no prompt file"):
        sh.load_prompts(tmp_path / "missing.csv")
    with pytest.raises(FileNotFoundError, match=r"one of demo/harmful, .* Did you mean 'alpaca'"):
        sh.load_prompts("Alpacca")
    with pytest.raises(FileNotFoundError, match=r"no prompt file data/kites\.csv"):
        sh.load_prompts("data/kites.csv")
    with pytest.raises(FileNotFoundError, match="no prompt file owner/name"):
        sh.load_prompts(Path("owner/name"))
    with pytest.raises(sh.SafeheadError, match="'demo/evil' is not embedded"):
        sh.load_prompts("demo/evil")
    with pytest.raises(sh.SafeheadError, match="split='dev'"):
        sh.load_prompts("demo/benign", split="dev")
    with pytest.raises(sh.SafeheadError, match="has no columns"):
        sh.load_prompts("demo/benign", column="prompt")
    with pytest.raises((sh.SafeheadError, TypeCheckError), match=r"list|\['bend'\]"):
        sh.load_prompts(["bend"])
    with pytest.raises(sh.SafeheadError, match="limit=0"):
        sh.load_prompts("demo/benign", limit=0)


def test_only_line_ends_end_a_prompt(tmp_path):
    odd = "bend\u2028a\x85kite\x0c now"
    (tmp_path / "p.txt").write_text(f"{odd}\nmend\n", encoding="utf-8")
    (tmp_path / "p.jsonl").write_text(f'"{odd[:-5]}"\n"mend"\n', encoding="utf-8")
    (tmp_path / "p.csv").write_text(f"prompt\n{odd}\nmend\n", encoding="utf-8")
    assert sh.load_prompts(tmp_path / "p.txt") == [odd, "mend"]
    assert sh.load_prompts(tmp_path / "p.jsonl") == [odd[:-5], "mend"]
    assert sh.load_prompts(tmp_path / "p.csv") == [odd, "mend"]


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "p.csv").write_bytes("prompt\nä kite\n".encode("latin-1"))
    with pytest.raises(sh.SafeheadError, match="not UTF-8 text"):
        sh.load_prompts(tmp_path / "p.csv")


def test_dropped_prompts_are_told(tmp_path, caplog):
    (tmp_path / "p.txt").write_text("a\n\nb\n")
    with caplog.at_level(logging.WARNING):
        assert sh.load_prompts(tmp_path / "p.txt") == ["a", "b"]
    assert "dropped 1 of 3 prompts: blank" in caplog.text


def test_parquet(tmp_path):
    path = tmp_path / "p.parquet"
    pd.DataFrame({"id": [1, 2], "Goal": TWO}).to_parquet(path)
    assert sh.load_prompts(path) == TWO
    with pytest.raises(sh.SafeheadError, match="record 1 has no text in column 'id'"):
        sh.load_prompts(path, column="id")
    pd.DataFrame({"prompt": [*TWO, None]}).to_parquet(path)
    with pytest.raises(sh.SafeheadError, match="record 3 has no text"):
        sh.load_prompts(path)


def test_repeated_prompts_are_dropped_before_the_limit(tmp_path, caplog):
    write(tmp_path / "p.txt", " bend a\tkite\nbend a kite\nmend it\nbend  a kite \nbend A kite\n")
    with caplog.at_level(logging.WARNING):
        assert sh.load_prompts(tmp_path / "p.txt", limit=2) == [" bend a\tkite", "mend it"]
    assert "dropped 2 of 5 prompts: repeated" in caplog.text
    assert len(sh.load_prompts(tmp_path / "p.txt")) == 3


def test_a_seed_draws(tmp_path):
    path = tmp_path / "p.txt"
    write(path, "\n".join(KITES))
    drawn = sh.load_prompts(path, limit=5, draw=3)
    assert drawn == [KITES[n] for n in (0, 5, 6, 8, 9)]  # the same on every Python
    assert sorted(drawn, key=KITES.index) == drawn != KITES[:5]
    assert set(drawn) < set(sh.load_prompts(path, limit=7, draw=3))
    assert drawn != sh.load_prompts(path, limit=5, draw=4)
    assert sh.load_prompts(path, limit=99, draw=3) == KITES
    assert sh.load_prompts(path, limit=5) == KITES[:5]
    with pytest.raises(sh.SafeheadError, match=r"draw=3 draws `limit` prompts: say limit"):
        sh.load_prompts(path, draw=3)
    with pytest.raises(sh.SafeheadError, match="draw=-1 draws no prompts"):
        sh.load_prompts(path, limit=5, draw=-1)


def test_a_file_has_no_splits(tmp_path):
    write(tmp_path / "p.txt", "bend\nmend\n")
    assert sh.load_prompts(tmp_path / "p.txt", split="train") == ["bend", "mend"]
    with pytest.raises(sh.SafeheadError, match=r"split='test' .*p\.txt is a file"):
        sh.load_prompts(tmp_path / "p.txt", split="test")


@pytest.mark.usefixtures("cache")
def test_a_directory_of_parquet_files(tmp_path):
    folder = tmp_path / "kites"
    (folder / "data").mkdir(parents=True)
    for name, texts in {
        "train-00000-of-00002": TWO[:1],
        "train-00001-of-00002": TWO[1:],
        "test-00000-of-00001": ["lift a boat"],
    }.items():
        rows = Dataset.from_dict({"Behavior": texts, "n": [0] * len(texts)})
        rows.to_parquet(folder / "data" / f"{name}.parquet")
    assert sh.load_prompts(folder) == sh.load_prompts(str(folder), split="train") == TWO
    assert sh.load_prompts(folder, split="test") == ["lift a boat"]
    with pytest.raises(sh.SafeheadError, match="kites has no split 'dev': it has train, test"):
        sh.load_prompts(folder, split="dev")
    with pytest.raises(sh.SafeheadError, match="kites, split 'train' has no column 'goal'"):
        sh.load_prompts(folder, column="goal")
    with pytest.raises(sh.SafeheadError, match="record 1 has no text in column 'n'"):
        sh.load_prompts(folder, column="n")


@pytest.mark.usefixtures("cache")
def test_a_directory_with_configurations(tmp_path):
    folder = tmp_path / "kites"
    write(folder / "data" / "bent-kites.csv", "Index,Goal\n0,bend a kite\n")
    write(folder / "data" / "mended-kites.csv", "Index,Goal\n0,mend a kite\n")
    write(folder / "judges.csv", "prompt\nwho bends\n")
    write(
        folder / "README.md",
        "---\nconfigs:\n- config_name: goals\n  data_files:\n"
        "  - {split: bent, path: data/bent-kites.csv}\n"
        "  - {split: mended, path: data/mended-kites.csv}\n"
        "- config_name: judges\n  data_files: judges.csv\n---\n",
    )
    assert sh.load_prompts(f"{folder}:goals", split="mended") == ["mend a kite"]
    assert sh.load_prompts(f"{folder}:judges") == ["who bends"]
    with pytest.raises(sh.SafeheadError, match=r"Say split=\.\.\., one of bent, mended"):
        sh.load_prompts(f"{folder}:goals")
    with pytest.raises(sh.SafeheadError, match=r"\['goals', 'judges'\].* behind a colon"):
        sh.load_prompts(folder)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "names",
    [
        ("a/harmful.csv", "a/harmless.csv"),
        ("a/kites.csv", "b/kites.csv"),
        ("a/b-train.txt", "a/c-train.txt"),
    ],
)
def test_files_of_different_kinds_are_not_mixed(tmp_path, names):
    for name in names:
        write(tmp_path / "kites" / name, f"prompt\n{name}\n")
    with pytest.raises(sh.SafeheadError, match=f"would mix {names[0]} with {names[1]}: give one"):
        sh.load_prompts(tmp_path / "kites")


@pytest.mark.usefixtures("cache")
def test_directories_that_are_no_data_set(tmp_path):
    (tmp_path / "kites").mkdir()
    with pytest.raises(sh.SafeheadError, match=r"kites could not be read as a data set: .*files"):
        sh.load_prompts(tmp_path / "kites")
    write(tmp_path / "kites" / "a.parquet", "bend")
    with pytest.raises(sh.SafeheadError, match="kites could not be read as a data set"):
        sh.load_prompts(tmp_path / "kites")


def test_data_sets_saved_to_disk(tmp_path):
    data = Dataset.from_dict({"prompt": TWO})
    data.save_to_disk(tmp_path / "one")
    DatasetDict({"a": data, "b": data.select([1])}).save_to_disk(tmp_path / "two")
    assert sh.load_prompts(tmp_path / "one") == TWO
    assert sh.load_prompts(tmp_path / "two", split="b") == TWO[1:]
    with pytest.raises(sh.SafeheadError, match="two: which split"):
        sh.load_prompts(tmp_path / "two")


def test_what_the_hub_is_asked_for(hub):
    assert sh.load_prompts("kites/lamps-2.0") == TWO
    assert sh.load_prompts("kites/lamps:en.1", split="train", column="query", limit=1) == TWO[:1]
    assert hub.asked == [("kites/lamps-2.0", None), ("kites/lamps", "en.1")]
    hub.gives = DatasetDict({"validation": hub.gives["train"]})
    assert sh.load_prompts("kites/lamps") == TWO
    with pytest.raises(sh.SafeheadError, match=r"kites/lamps has no split 'train'.*validation"):
        sh.load_prompts("kites/lamps", split="train")


@pytest.mark.parametrize("preset", sh.PRESETS.values(), ids=sh.PRESETS)
def test_what_a_preset_asks_for(hub, preset):
    rows = {"output": ["", ""], preset.column: TWO}
    rows |= {name: [value, value] for name, value in preset.rows.items()}
    hub.gives = DatasetDict(
        {preset.split: Dataset.from_dict(rows), "benign": Dataset.from_dict({**rows, "a": TWO})}
    )
    assert sh.load_prompts(preset.name) == TWO
    assert sh.load_prompts(preset.name, split="benign", column="a", limit=1) == TWO[:1]
    assert hub.asked == [(preset.dataset, preset.config)] * 2


def test_alpaca_rows_that_need_their_input_are_left_out(hub):
    rows = {"instruction": [*TWO, "mend this"], "input": ["", " ", "a kite"]}
    hub.gives = DatasetDict({"train": Dataset.from_dict(rows)})
    assert sh.load_prompts("alpaca") == TWO


def test_xstest_is_taken_apart_by_its_labels(hub):
    rows = {"prompt": [*TWO, "kill a man"], "label": ["safe", "safe", "unsafe"]}
    hub.gives = DatasetDict({"train": Dataset.from_dict(rows)})
    assert sh.load_prompts("xstest") == TWO
    assert sh.load_prompts("xstest-unsafe") == ["kill a man"]


def test_a_prompt_that_is_a_list_of_one_turn_is_its_text(hub):
    rows = {"turns": [[TWO[0]], [TWO[1]]], "prompt_style": ["base", "slang"]}
    hub.gives = DatasetDict({"train": Dataset.from_dict(rows)})
    assert sh.load_prompts("sorry-bench") == TWO[:1]


def test_presets_say_where_they_come_from():
    assert [preset.name for preset in sh.PRESETS.values()] == list(sh.PRESETS)
    harmless = {name for name, preset in sh.PRESETS.items() if preset.kind == "harmless"}
    assert harmless == {"alpaca", "xstest", "or-bench", "or-bench-hard"}
    assert all(preset.licence and preset.source for preset in sh.PRESETS.values())


@pytest.mark.usefixtures("cache")
def test_without_the_hub(tmp_path, monkeypatch):
    with pytest.raises(sh.SafeheadError, match=r"'kites/lamps' is no path here.*reach") as error:
        sh.load_prompts("kites/lamps")
    assert 'give a local copy: load_prompts("my.csv", column="...")' in str(error.value)
    for preset in sh.PRESETS.values():
        with pytest.raises(sh.SafeheadError, match=f"preset '{preset.name}'") as error:
            sh.load_prompts(preset.name)
        assert preset.dataset in str(error.value)
        assert f'load_prompts("my.csv", column="{preset.column}")' in str(error.value)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "alpaca" / "train.csv", "prompt\nbend a kite\n")
    assert sh.load_prompts("./alpaca") == sh.load_prompts(Path("alpaca")) == ["bend a kite"]
    with pytest.raises(sh.SafeheadError, match="preset 'alpaca'"):
        sh.load_prompts("alpaca")


def test_a_configuration_that_is_missing(hub, monkeypatch):
    def load_dataset(name, config=None):
        raise ValueError("Config name is missing.\nPlease pick one among: ['bent', 'mended']")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(sh.SafeheadError, match=r"'bent', .* name one: 'kites/lamps:config'"):
        sh.load_prompts("kites/lamps")


def test_labels_stay_with_their_prompts(tmp_path):
    table = tmp_path / "p.csv"
    table.write_text("prompt,topic\nmake a,x\nmake  a,y\n  ,z\nmake b,x\nmake c,w\n")
    prompts = sh.load_prompts(table, limit=2, draw=3)
    labels = {"make a": "x", "make b": "x", "make c": "w"}
    assert load_labels(prompts, table, "topic") == [labels[prompt] for prompt in prompts]
    with pytest.raises(sh.SafeheadError, match="has no column 'kind'"):
        load_labels(prompts, table, "kind")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_labels_may_be_numbers(tmp_path, suffix):
    table, rows = tmp_path / f"p.{suffix}", pd.DataFrame({"prompt": TWO, "topic": [7, 9]})
    table.write_text(rows.to_json(orient="records", lines=True))
    if suffix == "parquet":
        rows.to_parquet(table)
    assert load_labels(TWO, table, "topic") == [7, 9]
