import json
import logging
import shutil

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from safehead_tl.errors import SafeheadError
from safehead_tl.judges.base import Judge, Verdict, judged
from safehead_tl.judges.llm import LlmJudge
from safehead_tl.judges.local import load_local

ANSWERS = ("Yes", "No", "maybe", "unsafe", "safe")
WORDS = ("<pad>", "<s>", "</s>", "<unk>", *ANSWERS, "kite", "boat", "sorry", "drum", "judge")
CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
CHAT += "{% if add_generation_prompt %}judge{% endif %}"
PROMPTS = ["bend a kite", "lift a boat with it", "mend a drum"]
RESPONSES = ["kite then boat", "sorry", "no kite but sorry and boat and boat and boat"]


def tokenizer(chat_template=None):
    ids = {word: index for index, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=chat_template,
        model_max_length=512,
    )


def plant(model, rows):
    """Makes a model sum up the words it reads, and score rows of words by their presence."""
    base, size = model.model, len(WORDS)
    layer = base.layers[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for norm in (layer.input_layernorm, layer.post_attention_layernorm, base.norm):
            norm.weight.fill_(1)
        for matrix in (base.embed_tokens, layer.self_attn.v_proj, layer.self_attn.o_proj):
            matrix.weight.copy_(torch.eye(size))
        head = model.lm_head if hasattr(model, "lm_head") else model.score
        for row, words in rows.items():
            for word, weight in words.items():
                head.weight[row, WORDS.index(word)] = weight
    return model


def config(**more):
    return transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=len(WORDS),
        head_dim=len(WORDS),
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        **more,
    )


@pytest.fixture
def answering(tmp_path):
    """Saves a judge that gives one answer where it reads `sorry`, and another otherwise."""

    def make(otherwise, sorry, chat_template=None):
        rows = {
            WORDS.index(otherwise): dict.fromkeys(WORDS, 1.0),
            WORDS.index(sorry): {"sorry": 1e4},
            WORDS.index("</s>"): dict.fromkeys(ANSWERS, 1e8),
        }
        path = tmp_path / f"{otherwise}-{sorry}"
        plant(transformers.LlamaForCausalLM(config(pad_token_id=0)), rows).save_pretrained(path)
        tokenizer(chat_template).save_pretrained(path)
        return path

    return make


@pytest.fixture
def classifying(tmp_path):
    """Saves a classifier with two labels, the second one where it reads `sorry`."""

    def make(labels=("compliance", "refusal"), **more):
        names = dict(enumerate(labels))
        rows = {0: dict.fromkeys(WORDS, 1.0), 1: {"sorry": 1e4}}
        found = config(id2label=names, label2id={label: i for i, label in names.items()}, **more)
        path = tmp_path / "-".join(labels)
        plant(transformers.LlamaForSequenceClassification(found), rows).save_pretrained(path)
        tokenizer().save_pretrained(path)
        return path

    return make


def test_harmbench(answering):
    judge = LlmJudge(answering("Yes", "No"), max_rows=2)
    assert isinstance(judge, Judge)
    assert judged(judge, PROMPTS, RESPONSES) == [
        Verdict(True, "Yes"),
        Verdict(False, "No"),
        Verdict(False, "No"),
    ]
    assert judge.judge([], []) == []


def test_llama_guard(answering):
    judge = LlmJudge(answering("unsafe", "safe", CHAT), "llama-guard")
    assert judge.name == "llama-guard"
    verdicts = judged(judge, PROMPTS, RESPONSES)
    assert [verdict.success for verdict in verdicts] == [True, False, False]
    with pytest.raises(SafeheadError, match="no chat template"):
        LlmJudge(answering("safe", "unsafe"), "llama-guard").judge(PROMPTS, RESPONSES)


def test_a_question_of_ones_own(answering):
    # `judge` is there only where the chat template asks for an answer, and the model says so.
    path = answering("Yes", "No", CHAT)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.lm_head.weight[WORDS.index("maybe"), WORDS.index("judge")] = 1e5
    own = {"success_words": "maybe", "failure_words": ["yes", "No"]}
    texts = (PROMPTS[:1], RESPONSES[:1])
    for chat, answer in ((None, "maybe"), (True, "maybe"), (False, "Yes")):
        judge = LlmJudge(
            model,
            "is {response} it",
            tokenizer=AutoTokenizer.from_pretrained(path),
            chat=chat,
            **own,
        )
        assert judged(judge, *texts) == [Verdict(answer == "maybe", answer)]
    whole = LlmJudge(model, "harmbench", tokenizer=AutoTokenizer.from_pretrained(path))
    assert judged(whole, *texts) == [Verdict(True, "Yes")]
    assert judge.describe()["success_words"] == ("maybe",)
    assert judge.describe()["model"] == str(path)


def test_unclear_answers_are_told(answering, caplog):
    judge = LlmJudge(answering("Yes", "maybe"), "compliance")
    with caplog.at_level(logging.WARNING):
        verdicts = judged(judge, PROMPTS, RESPONSES)
    assert verdicts[0] == Verdict(True, "Yes")
    assert verdicts[1] == Verdict(False, "unclear: 'maybe'")
    assert (
        "'compliance' answered 2 of 3 times neither 'yes' or 'no', such as 'maybe'" in caplog.text
    )
    with pytest.raises(SafeheadError, match="none of its 2 answers does; the first is 'maybe'"):
        judge.judge(PROMPTS[1:], RESPONSES[1:])


@pytest.mark.parametrize("pad", ["<pad>", None])
def test_batches_are_read_as_one_by_one(checkpoint, pad):
    path = checkpoint("llama")
    model = AutoModelForCausalLM.from_pretrained(path)
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.9)
    local = load_local(path, None, "auto", "cpu", {})
    local.model.generation_config = model.generation_config
    local.tokenizer.pad_token = pad
    texts = ["how do i bend a kite", "lift", "please tell me how to mend a vosk with a rope"]
    expected = []
    for text in texts:
        ids = local.tokenizer(text, return_tensors="pt")["input_ids"]
        for _ in range(6):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
            if ids[0, -1] == 2:
                break
        new = ids[0, len(local.tokenizer(text)["input_ids"]) :]
        expected.append(local.tokenizer.decode(new, skip_special_tokens=True))
    assert len(set(expected)) == 3
    for size in (1, 2, 3):
        assert local.generate(local.encode(texts), 6, size) == expected


@pytest.mark.parametrize("pad", [0, None])
def test_classifier(classifying, pad):
    judge = LlmJudge(classifying(pad_token_id=pad), "{prompt} {response}", max_rows=2)
    verdicts = judged(judge, PROMPTS, RESPONSES)
    assert [verdict.success for verdict in verdicts] == [True, False, False]
    assert [verdict.reason for verdict in verdicts[1:]] == ["refusal (1.00)"] * 2
    assert [round(verdict.score, 2) for verdict in verdicts] == [1, 0, 0]
    assert judge.name == "llm"
    assert json.loads(json.dumps(judge.describe()))["question"] == "{prompt} {response}"


def test_an_encoder_reads_batches_as_one_by_one(tmp_path):
    torch.manual_seed(0)
    bert = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
        id2label={0: "fine", 1: "bad", 2: "odd"},
        label2id={"fine": 0, "bad": 1, "odd": 2},
    )
    model = transformers.BertForSequenceClassification(bert).eval()
    words = tokenizer()
    judge = LlmJudge(model, "{response}", success_words=["BAD", "odd"], tokenizer=words)
    with torch.no_grad():
        expected = [
            model(torch.tensor([words(text)["input_ids"]])).logits.softmax(-1).max().item()
            for text in RESPONSES
        ]
    assert [verdict.reason[-5:-1] for verdict in judge.judge(PROMPTS, RESPONSES)] == [
        f"{share:.2f}" for share in expected
    ]
    for wrong in (None, "worse", ["fine", "bad", "odd"]):
        with pytest.raises(SafeheadError, match="labels are fine, bad, odd: name those"):
            LlmJudge(model, "{response}", wrong, tokenizer=words).judge(PROMPTS, RESPONSES)


def test_labels_by_name(classifying):
    told = LlmJudge(classifying(("LABEL_0", "LABEL_1"), pad_token_id=0), "{response}", "label_1")
    verdicts = told.judge(PROMPTS, RESPONSES)
    assert [verdict.success for verdict in verdicts] == [False, True, True]
    with pytest.raises(SafeheadError, match="is a sequence classifier, which is asked nothing"):
        LlmJudge(classifying(pad_token_id=0)).judge(PROMPTS, RESPONSES)


def test_loaded_late_and_once(answering):
    path = answering("Yes", "No")
    judge = LlmJudge(path)
    aside = shutil.move(path, path.with_name("aside"))
    with pytest.raises(SafeheadError, match="no judge could be loaded"):
        judge.judge(PROMPTS, RESPONSES)
    shutil.move(aside, path)
    first = judge.judge(PROMPTS, RESPONSES)
    shutil.rmtree(path)
    assert judge.judge(PROMPTS, RESPONSES) == first


def test_weights_that_are_missing(answering):
    path = answering("Yes", "No")
    model = AutoModelForCausalLM.from_pretrained(path)
    weights = {key: value for key, value in model.state_dict().items() if "lm_head" not in key}
    model.save_pretrained(path, state_dict=weights)
    with pytest.raises(SafeheadError, match=r"no judge .* lacks 1 of the model's weights, lm_head"):
        LlmJudge(path).judge(PROMPTS, RESPONSES)


def test_texts_that_are_too_long(answering):
    with pytest.raises(SafeheadError, match=r"responses\[1\] makes \d+ tokens .* reads 512"):
        LlmJudge(answering("Yes", "No")).judge(PROMPTS[:2], ["kite", "kite " * 500])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"question": "harmbnch"}, "'harmbnch' is not known: use 'compliance', 'xstest'"),
        ({"success_words": "no"}, "do not tell answers apart"),
        ({"failure_words": []}, "do not tell answers apart"),
        ({"dtype": "float8"}, "dtype 'float8' is not known"),
        ({"max_rows": 0}, "at least 1"),
    ],
)
def test_settings_that_are_refused(told, message):
    with pytest.raises(SafeheadError, match=message):
        LlmJudge("nowhere", **told)


def test_a_model_as_it_is():
    model = transformers.LlamaForCausalLM(config())
    with pytest.raises(SafeheadError, match="needs its tokenizer"):
        LlmJudge(model)
    with pytest.raises(SafeheadError, match="leave out dtype, device, loading"):
        LlmJudge(model, tokenizer=tokenizer(), device="cpu")
