import json
import logging

import pytest
from jaxtyping import TypeCheckError

import safehead_tl as sh

TWO = ["bend a kite, please", "mend a lamp"]


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
        ("p.csv", "id;query\n1;bend\n", "not separated as its name says"),
        ("p.csv", "prompt\n" + "a" * 200_000, "cannot be read: field larger"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(sh.SafeheadError, match=message) as error:
        sh.load_prompts(tmp_path / name)
    assert name in str(error.value)


def test_unknown_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match="no prompt file"):
        sh.load_prompts(tmp_path / "missing.csv")
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
    assert "dropped 1 blank" in caplog.text
