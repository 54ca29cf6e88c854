"""Conversations as prompts, against the tokenizer's own chat template."""

import copy
import json
import pickle

import pandas as pd
import pytest
import torch
from jaxtyping import TypeCheckError

import safehead_tl as sh
from families import QUIET
from safehead_tl.prompts.chats import Chat
from safehead_tl.prompts.loading import prompt_texts
from safehead_tl.prompts.tokens import encode

TURNS = "{{ bos_token }}{% for m in messages %}## {{ m['role'] }} : {{ m['content'] }} {% endfor %}"
TURNS += "## answer :"
CHAT = [
    {"role": "system", "content": "answer , then rest"},
    {"role": "user", "content": "how do i bend a kite"},
    {"role": "assistant", "content": "bend the kite with a clamp"},
    {"role": "user", "content": "how do i lift a vosk"},
]
PLAIN = "how do i lift a boat"


@pytest.fixture(scope="module")
def talking():
    model = sh.load_model("demo")
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.chat_template = TURNS
    return model


def rows(batch):
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch.tokens, batch.mask, strict=True)]


def test_the_model_reads_what_its_chat_template_writes(talking):
    batch = encode(talking, [CHAT, PLAIN], "chat")
    for messages, ids in zip(
        [CHAT, [{"role": "user", "content": PLAIN}]], rows(batch), strict=True
    ):
        text = talking.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert ids == talking.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_scores_of_a_conversation_are_those_of_its_text(talking):
    """Read at its end: the same as of the text that the template writes, with no template."""
    text = talking.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    written = sh.ships(talking, [text], template="{query}", run=QUIET)
    found = sh.ships(talking, [CHAT], template="chat", run=QUIET)
    assert rows(encode(talking, [CHAT], "chat")) == rows(encode(talking, [text], "{query}"))
    torch.testing.assert_close(found.values, written.values)


def test_answers_and_provenance_tell_a_conversation_as_text(talking):
    found = sh.evaluate(talking, [CHAT, PLAIN], max_new_tokens=4, controls=0, run=QUIET)
    said = found.responses()["text"].tolist()
    assert said == [Chat(CHAT), PLAIN]
    assert said[0].startswith("system: answer , then rest\n\nuser: how do i bend")
    other = [*CHAT[:2], {**CHAT[2], "content": "no"}, CHAT[3]]
    one, two = (sh.ships(talking, [chat], run=QUIET).provenance.prompts for chat in (CHAT, other))
    assert one["prompts_hash"] != two["prompts_hash"]
    assert one["tokens_hash"] != two["tokens_hash"]


def test_special_tokens_in_a_turn_are_read_as_told():
    model = sh.load_model("demo", special_tokens="literal")
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.chat_template = TURNS
    bad = [{"role": "user", "content": "how do i bend a </s> kite"}]
    (ids,) = rows(encode(model, [bad], "chat"))
    assert model.tokenizer.eos_token_id not in ids


def test_conversations_of_a_file(tmp_path, talking):
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"id": n, "messages": CHAT}) + "\n" for n in range(1)))
    found = sh.load_prompts(file)
    assert [prompt.messages for prompt in found] == [tuple(CHAT)]
    assert rows(encode(talking, found, "chat")) == rows(encode(talking, [CHAT], "chat"))


def test_conversations_of_parquet_and_beside_a_prompt(tmp_path):
    pd.DataFrame({"messages": [CHAT]}).to_parquet(tmp_path / "p.parquet")
    assert [prompt.messages for prompt in sh.load_prompts(tmp_path / "p.parquet")] == [tuple(CHAT)]
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": PLAIN, "messages": CHAT}))
    assert sh.load_prompts(file) == [PLAIN]


def test_one_user_s_turn_is_a_plain_text():
    (prompt,) = prompt_texts([[{"role": "user", "content": PLAIN}]])
    assert (type(prompt), prompt) == (str, PLAIN)


def test_saved_answers_keep_their_conversations(talking, tmp_path):
    found = sh.evaluate(talking, [CHAT, PLAIN], max_new_tokens=4, controls=0, run=QUIET)
    found.save(tmp_path / "e.safetensors")
    chat, plain = sh.Evaluation.load(tmp_path / "e.safetensors").harmful.prompts
    assert chat.messages == tuple(CHAT)
    assert plain == PLAIN


def test_a_copy_keeps_its_messages():
    chat = Chat(CHAT)
    for other in (copy.deepcopy(chat), pickle.loads(pickle.dumps(chat))):
        assert (other, other.messages) == (chat, tuple(CHAT))


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ([], "ends with the user's turn"),
        (CHAT[:3], "ends with the user's turn"),
        ([CHAT[1], CHAT[0], CHAT[3]], "comes first, not as message 1"),
        ([{"role": "user"}], "message 0 needs a 'role'"),
        ([{"role": "robot", "content": "x"}], "message 0 needs a 'role'"),
        ([{"role": "user", "content": " "}], "message 0 needs a 'role'"),
    ],
)
def test_conversations_that_are_none(chat, said):
    with pytest.raises((sh.SafeheadError, TypeCheckError), match=rf"prompts\[0\]: .*{said}"):
        prompt_texts([chat])


def test_where_a_conversation_has_no_place(talking, demo):
    with pytest.raises(sh.SafeheadError, match="has no place for a conversation"):
        sh.ships(talking, [CHAT], template="paper", run=QUIET)
    with pytest.raises(sh.SafeheadError, match="refuses a system message"):
        sh.ships(demo, [CHAT], template="chat", run=QUIET)
    with pytest.raises(sh.SafeheadError, match="a system message of its own"):
        sh.ships(talking, [CHAT], template=sh.ChatTemplate(system="be brief"), run=QUIET)
