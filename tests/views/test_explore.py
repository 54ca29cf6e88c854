import base64
import json
import re
import sys
import types
import zlib

import pytest
import torch

import safehead_tl as sh
from families import GOLDEN, QUIET
from safehead_tl.prompts.tokens import encode
from safehead_tl.views.choices import CHOICES, choices_with
from safehead_tl.views.inspection import Views, shrunk
from safehead_tl.views.widget import explore, state

HEADS = ["L1H3", "L2H6"]
HOSTILE = '</script><img src=x onerror="window.hacked=1">'
EPSILON = 0.3


@pytest.fixture(scope="module")
def scored():
    model = sh.load_model("demo")
    prompts = sh.load_prompts("demo/harmful")[:5]
    return model, prompts, sh.ships(model, prompts, template="chat", run=QUIET)


@pytest.fixture
def notebook(monkeypatch):
    monkeypatch.setattr(explore, "_in_notebook", lambda: True)


@pytest.fixture
def view(scored, notebook):
    model, prompts, scores = scored
    return sh.explore(model, prompts, scores=scores, template="chat", max_new_tokens=16,
                      marked=["L1H3"], marked_as="planted")  # fmt: skip


def arrive(view, asked):
    """What a browser's message does in the kernel."""
    data = {"method": "update", "state": {"asked": asked}, "buffer_paths": []}
    view._handle_msg({"content": {"data": data}, "buffers": []})


def ask(view, column=1, **changes):
    """Sends the browser's next request, changed in a column or as a whole; returns the answer."""
    whole = {
        key: changes.pop(key)
        for key in ("shown", "generate", "number", "columns")
        if key in changes
    }
    asked = {**view.asked, "number": view.asked["number"] + 1, "generate": False, **whole}
    if changes:
        columns = [*asked["columns"]]
        columns[column] = {**columns[column], **changes}
        asked["columns"] = columns
    if "heads" in changes and "shown" not in whole and isinstance(changes["heads"], list):
        asked["shown"] = changes["heads"][:4]
    arrive(view, json.loads(json.dumps(asked)))
    json.dumps(view.shown, allow_nan=False)
    return view.shown


def unpacked(text):
    raw = bytearray(zlib.decompress(base64.b64decode(text)))
    return torch.frombuffer(raw, dtype=torch.uint8) / 255


def by_hand(model, prompt, heads, ablation):
    """The next token's probabilities and all patterns, in a whole pass."""
    seen = {}

    def looker(layer):
        def look(pattern, hook):
            seen[layer] = pattern[0].clone()

        return f"blocks.{layer}.attn.hook_pattern", look

    hooks = sh.ablation_hooks(model, heads, ablation) if heads else []
    hooks = [*hooks, *map(looker, range(model.cfg.n_layers))]
    tokens = encode(model, [prompt], "chat").tokens
    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    return logits[0, -1].softmax(-1), torch.stack([seen[layer] for layer in sorted(seen)])


def check_column(shown, model, prompt, ablation, heads, patterns):
    """One column against passes by hand."""
    plain, _ = by_hand(model, prompt, [], ablation)
    moved, ablated = by_hand(model, prompt, heads, ablation)
    best, size = moved.topk(10), ablated.shape[-1]
    assert [share for _, share in shown["next"]] == pytest.approx(best.values.tolist(), abs=2e-5)
    assert shown["next"][0][0] == model.tokenizer.decode(best.indices[0])
    assert len(shown["tokens"]) == size
    kl = (plain * (plain.log() - moved.log())).sum().item()
    assert shown["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-5)
    assert shown["heads"] == heads
    assert list(shown["patterns"]) == patterns
    for name, packed in shown["patterns"].items():
        rows = torch.zeros(size, size)
        rows[tuple(torch.tril_indices(size, size))] = unpacked(packed)
        assert torch.allclose(rows, ablated[sh.Head.parse(name)], atol=3e-3)
    rows = unpacked(shown["lastRows"]).reshape(*ablated.shape[:2], size)
    assert torch.allclose(rows, ablated[:, :, -1], atol=3e-3)


def check(shown, model, prompt, ablation, heads=HEADS):
    """Column A has no head ablated, B those."""
    first, second = shown["columns"]
    check_column(first, model, first["text"], ablation, [], heads)
    check_column(second, model, prompt, ablation, heads, heads)
    assert shown["shown"] == heads


MADE = {
    "undifferentiated": "undifferentiated",
    "undifferentiated-scores": sh.UndifferentiatedAttention(EPSILON),
    "undifferentiated-q": sh.UndifferentiatedAttention(EPSILON, "q"),
    "undifferentiated-k": sh.UndifferentiatedAttention(EPSILON, "k"),
    "scaling": sh.ScalingContribution(EPSILON),
    "scaling-v": sh.ScalingContribution(EPSILON, "v"),
    "zero": "zero",
    "mean": None,
    "mean-over-heads-q": sh.MeanOverHeads("q"),
    "mean-over-heads-k": sh.MeanOverHeads("k"),
    "mean-over-heads-v": sh.MeanOverHeads("v"),
}


@pytest.mark.parametrize("backend", ["auto", "bridge"])
@pytest.mark.parametrize("name", MADE)
def test_each_ablation_is_that_of_hooks(scored, notebook, name, backend):
    _, prompts, scores = scored
    model = sh.load_model("demo", backend=backend)
    view = sh.explore(model, prompts, scores=scores, template="chat")
    shown = ask(view, heads=HEADS, ablation=name, epsilon=EPSILON, prompt=3)
    check(shown, model, prompts[3], MADE[name] or sh.MeanAblation(prompts, "chat"))
    (choice,) = (choice for choice in view.page["ablations"] if choice["key"] == name)
    words = choice["label"].replace("ε", "0.3")
    told = f"A: No head is ablated. B: 2 heads ablated: {words}, L1H3 L2H6. KL "
    assert shown["status"].startswith(told)
    assert shown["columns"][1]["words"] == words
    assert choice["scaled"] == ("0.3" in words)
    assert view.heads == (sh.Head(1, 3), sh.Head(2, 6))


def test_the_list_has_every_ablation():
    assert {choice.key for choice in CHOICES} == set(MADE)
    for choice in CHOICES:
        made = MADE[choice.key]
        if isinstance(made, sh.Ablation):
            assert choice.make(EPSILON) == made


@pytest.mark.parametrize("epsilon", [1e-5, 0.02, 1.0])
def test_epsilon_is_heeded(view, scored, epsilon):
    model, prompts, _ = scored
    shown = ask(view, heads=HEADS, ablation="scaling", epsilon=epsilon)
    check(shown, model, prompts[0], sh.ScalingContribution(epsilon))
    kept = ask(view, ablation="zero")
    assert (
        kept["columns"][1]["epsilon"] == epsilon
    )  # for when an ablation that has one is chosen again


def test_what_is_shown_first(view, scored):
    model, prompts, scores = scored
    first = str(scores.top(1)[0][0])
    check(view.shown, model, prompts[0], "undifferentiated", [first])
    assert view.shown["number"] == view.asked["number"] == 0
    assert view.page["marked"] == [1 * 8 + 3]
    (each,) = view.page["maps"]
    assert each["scores"] == pytest.approx(scores.values.flatten().tolist(), rel=1e-3)
    assert view.page["prompts"] == prompts
    small = torch.zeros(4, 8, 136)
    for prompt in prompts:
        _, patterns = by_hand(model, prompt, [], None)
        small += torch.stack([shrunk(layer) for layer in patterns])
    found = unpacked(view.page["thumbnails"]).reshape(4, 8, 136)
    assert torch.allclose(found, small / small.amax(-1, keepdim=True), atol=3e-3)
    assert f"1 head ablated: undifferentiated attention, {first}" in repr(view)


def test_no_head_is_ablated(view, scored):
    model, prompts, _ = scored
    shown = ask(view, heads=[], prompt=2)
    check(shown, model, prompts[2], "undifferentiated", [])
    assert shown["status"] == "A: No head is ablated. B: No head is ablated."
    alone = ask(view, columns=view.asked["columns"][:1], shown=["L0H0"])
    check_column(alone["columns"][0], model, prompts[0], "undifferentiated", [], ["L0H0"])
    assert alone["status"] == "No head is ablated."


def test_ones_own_prompt(view, scored):
    model, _, _ = scored
    text = "how do i lift a boat"
    shown = ask(view, heads=HEADS, prompt=None, text=text)
    check(shown, model, text, "undifferentiated")
    assert shown["columns"][1]["notes"] == []
    assert ask(view, prompt=None, text="how do i xyzzy")["columns"][1]["notes"] == [
        f"The tokenizer reads words that it does not know as {model.tokenizer.unk_token}."
    ]


def test_mean_ablation_of_ones_own_prompt_is_over_the_given_ones(view, scored):
    model, prompts, _ = scored
    shown = ask(view, heads=HEADS, ablation="mean", prompt=None, text="how do i lift a boat")
    check(shown, model, "how do i lift a boat", sh.MeanAblation(prompts, "chat"))


def test_answers(view, scored):
    model, prompts, _ = scored
    shown = ask(view, heads=HEADS, prompt=1, generate=True)
    tokens = encode(model, [prompts[1]], "chat").tokens

    def greedy():
        found = tokens
        for _ in range(16):
            new = model(found)[0, -1].argmax()[None, None]
            if new == model.tokenizer.eos_token_id:
                break
            found = torch.cat([found, new], 1)
        return model.tokenizer.decode(found[0, tokens.shape[1] :])

    with torch.no_grad(), sh.ablated(model, HEADS):
        moved = greedy()
    first, second = shown["columns"]
    assert second["answer"] == moved
    assert second["verdict"]["kind"] == "complied"
    tokens = encode(model, [prompts[0]], "chat").tokens
    with torch.no_grad():
        assert first["answer"] == greedy()
    assert first["verdict"] == {"kind": "refused", "label": "refused: keyword 'sorry'"}
    assert "answer" not in ask(view, heads=["L0H0"])["columns"][1]


def test_many_heads_and_long_prompts(notebook, monkeypatch):
    model = sh.load_model(GOLDEN / "mha")
    scores = sh.ships(model, ["bake bread"], template="direct", run=QUIET)
    view = sh.explore(model, ["bake bread"], scores=scores, template="direct", max_new_tokens=0)
    every = [f"L{layer}H{head}" for layer in range(2) for head in range(4)]
    monkeypatch.setattr(state, "MOST_TOKENS", 20)
    shown = ask(view, heads=every, prompt=None, text="bread " * 12)
    assert shown["shown"] == every[:4]
    column = shown["columns"][1]
    assert column["heads"] == every
    whole = encode(model, ["bread " * 12], "direct").tokens
    with torch.no_grad(), sh.ablated(model, every):
        _, cache = model.run_with_cache(whole)
    size = whole.shape[1]
    assert column["notes"][-1] == f"Attention is shown among the last 20 of {size} tokens."
    assert len(column["tokens"]) == 20
    assert [*column["patterns"]] == every[:4]
    rows = torch.zeros(20, 20)
    rows[tuple(torch.tril_indices(20, 20))] = unpacked(column["patterns"]["L0H2"])
    pattern = cache["blocks.0.attn.hook_pattern"][0, 2]
    assert torch.allclose(rows, pattern[-20:, -20:], atol=3e-3)
    last = unpacked(column["lastRows"]).reshape(-1, 20)
    assert torch.allclose(last[2], pattern[-1, -20:], atol=3e-3)
    assert view.page["generates"] is False


def test_columns_are_independent(view, scored):
    model, prompts, _ = scored
    column = {"epsilon": EPSILON, "prompt": 1, "text": ""}
    columns = [
        {**column, "heads": ["L0H0"], "ablation": "zero"},
        {**column, "heads": ["L1H3", "L2H6"], "ablation": "scaling", "prompt": 2},
        {**column, "heads": ["L1H3"], "ablation": "undifferentiated-q"},
    ]
    shown = ask(view, columns=columns, shown=["L3H1", "L1H3"])
    made = "zero", sh.ScalingContribution(EPSILON), sh.UndifferentiatedAttention(EPSILON, "q")
    for found, asked, ablation in zip(shown["columns"], columns, made, strict=True):
        prompt = prompts[asked["prompt"]]
        check_column(found, model, prompt, ablation, asked["heads"], ["L3H1", "L1H3"])
    assert [*map(str, view.heads)] == ["L0H0", "L1H3", "L2H6"]
    assert re.match("A: 1 head .* B: 2 heads .* C: 1 head ", shown["status"])


def test_equal_work_is_done_once(view, monkeypatch):
    looks, answers = [], []
    look, answer = Views.look, Views.answers
    monkeypatch.setattr(Views, "look", lambda *told: looks.append(told) or look(*told))
    monkeypatch.setattr(Views, "answers", lambda *told: answers.append(told) or answer(*told))

    def counted(**changes):
        before = len(looks), len(answers)
        ask(view, **changes)
        return len(looks) - before[0], len(answers) - before[1]

    assert counted(heads=["L1H3"], shown=["L0H0"]) == (2, 0)
    assert counted(heads=["L2H6"]) == (2, 0)  # its attention is shown now
    assert counted(heads=["L1H3"], shown=["L2H6"]) == (1, 0)  # A and the unablated pass are kept
    assert counted(epsilon=0.5) == (0, 0)  # which this ablation does not have
    assert counted(ablation="scaling") == (1, 0)
    assert counted(epsilon=0.25) == (1, 0)
    assert counted(generate=True) == (0, 2)
    assert counted(generate=True, heads=["L0H0"], shown=["L2H6"]) == (1, 1)


def test_a_given_ablation_of_given_prompts(scored, notebook):
    """Each prompt is given its own counterpart, and another text has none."""
    model, prompts, _ = scored
    ablation = sh.ResampleAblation([*prompts[1:], prompts[0]], "paired")
    told = {"template": "chat", "ablation": ablation, "run": QUIET}
    scores = sh.ships(model, prompts, **told)
    view = sh.explore(model, prompts, scores=scores, template="chat", ablation=ablation)
    head = scores.top(1)[0][0]
    shown = ask(view, prompt=2)
    expected = scores.per_prompt[2][head].item()
    assert shown["columns"][1]["kl"] == pytest.approx(expected, rel=1e-3)
    error = ask(view, prompt=None, text="how do i lift a boat")["error"]
    assert "is of the given prompts: choose one of them" in error


WRONG = [
    ({"heads": ["L9H9"]}, "L9H9 does not exist: the model has layers 0 to 3"),
    ({"heads": ["L0"]}, "'L0' is not a head"),
    ({"heads": [[1, -3]]}, "is not a head"),
    ({"heads": "L1H3"}, "send a list"),
    ({"shown": "L1H3"}, "shown='L1H3': send a list"),
    ({"shown": ["L9H9"]}, "L9H9 does not exist"),
    ({"shown": [f"L0H{head}" for head in range(5)]}, "shown has 5 heads: send up to 4"),
    ({"columns": []}, "send a list of 1 to 3"),
    ({"columns": None}, "send a list of 1 to 3"),
    ({"columns": [{}] * 4}, "send a list of 1 to 3"),
    ({"columns": [7]}, "7 is no column"),
    ({"columns": [{}]}, "heads=None: send a list"),
    ({"heads": None}, "send a list"),
    ({"ablation": "remove"}, "ablation='remove' is not in the list"),
    ({"ablation": None}, "is not in the list"),
    ({"ablation": "scaling", "epsilon": 0}, "epsilon=0: send a number above 0"),
    ({"epsilon": "1"}, "send a number above 0"),
    ({"epsilon": True}, "send a number above 0"),
    ({"prompt": 5}, "prompt=5 does not exist: send 0 to 4"),
    ({"prompt": -1}, "does not exist"),
    ({"prompt": True}, "does not exist"),
    ({"prompt": None, "text": "  "}, "there is no prompt"),
    ({"prompt": None, "text": 7}, "there is no prompt"),
    ({"prompt": None, "text": "how " * 900}, "the model takes 1 to"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_mistakes_are_sentences(view, scored, wrong, message):
    shown = ask(view, **wrong)
    assert set(shown) == {"number", "error"}
    assert message in shown["error"]
    assert shown["error"].endswith(".")
    assert view.heads == ()
    assert "error" not in ask(view, **{**view._explorer.first, "number": shown["number"] + 1})


@pytest.mark.parametrize("asked", ["no", None, 3, [], {}, {"number": "x"}])
def test_what_is_no_request(view, asked):
    arrive(view, asked)
    assert view.shown["error"].startswith("This cannot be shown: ")


def test_a_failing_model_is_told_of(view, scored, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("safehead_tl.views.widget.state.Views.look", fail)
    assert ask(view, heads=["L0H1"])["error"] == "RuntimeError while computing: out of memory."


def test_older_requests_are_left_alone(view, monkeypatch):
    latest = ask(view, heads=["L2H6"], number=7)
    computed = []
    monkeypatch.setattr(type(view._explorer), "answer", lambda *asked: computed.append(asked) or {})
    for number in (3, 7):
        arrive(view, {**view.asked, "heads": ["L0H0"], "number": number})
    assert view.shown == latest
    assert computed == []
    arrive(view, {**view.asked, "number": 8})
    assert view.shown == {"number": 8}


def test_the_answer_is_sent_to_the_browser(view, monkeypatch):
    sent = []
    monkeypatch.setattr(type(view), "send_state", lambda view, key=None: sent.append(key))
    ask(view, heads=["L2H6"])
    assert "shown" in sent or ["shown"] in sent or {"shown"} in sent


def test_the_script_is_whole(view):
    assert "export default { render }" in view._esm
    assert "function headMap(" in view._esm
    assert "innerHTML" not in view._esm
    addresses = re.findall(r"https?://[^\"]*", f"{view._esm}{view._css}")
    assert addresses == ["http://www.w3.org/2000/svg"]  # a name, which nobody asks for
    assert ".safehead-explore" in view._css


@pytest.mark.parametrize(
    ("given", "key", "epsilon"),
    [
        ("ua", "undifferentiated", 1e-5),
        (sh.UndifferentiatedAttention(0.01, "k"), "undifferentiated-k", 0.01),
        (sh.ScalingContribution(), "scaling", 1e-5),
        (sh.ScalingContribution(3.0), "given", 1e-5),
        (sh.MeanAblation(["bake bread"]), "given", 1e-5),
        (sh.MeanOverHeads("v"), "mean-over-heads-v", 1e-5),
    ],
)
def test_the_ablation_to_begin_with(given, key, epsilon):
    from safehead_tl.ablations.names import resolve_ablation

    choices, chosen, start = choices_with(resolve_ablation(given))
    assert (chosen.key, start) == (key, epsilon)
    assert chosen in choices
    assert chosen.make(start) == resolve_ablation(given)
    assert len(choices) == len(CHOICES) + (key == "given")


def test_hostile_text_stays_text(monkeypatch):
    model = sh.load_model(GOLDEN / "mha")
    prompts = [HOSTILE, "bake bread"]
    told = {
        "template": "direct",
        "marked": ["L0H0"],
        "marked_as": HOSTILE,
        "run": QUIET,
    }
    still = sh.explore(model, prompts, **told)._repr_html_()
    assert "onerror" in still  # the legend has it, as text
    assert HOSTILE not in still
    monkeypatch.setattr(explore, "_in_notebook", lambda: True)
    view = sh.explore(model, prompts, max_new_tokens=4, **told)
    assert view.shown["columns"][0]["text"] == HOSTILE
    assert (
        ask(view, generate=True)["columns"][1]["text"] == HOSTILE
    )  # which the browser shows as text, too


def test_outside_a_notebook(scored):
    model, prompts, scores = scored
    view = sh.explore(model, prompts, scores=scores, template="chat")
    assert "needs a notebook" in repr(view)
    assert "needs a notebook" in view._repr_html_()
    assert "<svg" in view._repr_html_()
    assert view.heads == (scores.top(1)[0][0],)
    assert isinstance(view, explore.Exploration)


@pytest.mark.parametrize(("shell", "live"), [
    (None, False), (types.SimpleNamespace(), False), (types.SimpleNamespace(kernel=None), False),
    (types.SimpleNamespace(kernel=1), True),
])  # fmt: skip
def test_a_kernel_makes_a_notebook(monkeypatch, shell, live):
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert explore._in_notebook() is live


def test_colab_is_asked_to_show_it(scored, notebook, monkeypatch):
    model, prompts, scores = scored
    asked = []
    output = types.SimpleNamespace(enable_custom_widget_manager=lambda: asked.append(1))
    for name, module in {
        "google": types.ModuleType("google"),
        "google.colab": types.SimpleNamespace(output=output),
        "google.colab.output": output,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    explore._let_colab_show_widgets()
    assert asked == [1]
    called = []
    with monkeypatch.context() as patch:
        patch.setattr(explore, "_let_colab_show_widgets", lambda: called.append(1))
        sh.explore(model, prompts, scores=scores, template="chat")
    assert called == [1]
    monkeypatch.setitem(sys.modules, "google.colab", None)
    explore._let_colab_show_widgets()  # which leaves other notebooks alone


def test_scores_are_computed_or_checked(scored, notebook):
    model, prompts, scores = scored
    told = {"template": "chat", "run": QUIET}
    view = sh.explore(model, prompts, **told)
    expected = scores.values.flatten().tolist()
    assert view.page["maps"][0]["scores"] == pytest.approx(expected, rel=1e-3, abs=1e-9)
    for wrong, message in (
        ({"template": "direct"}, "other prompts or another template"),
        ({"ablation": "zero"}, "scores are of undifferentiated ablation"),
        ({"marked": "L9H9"}, "does not exist"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
    ):
        with pytest.raises(sh.SafeheadError, match=message):
            sh.explore(model, prompts, scores=scores, **{**told, **wrong})
    with pytest.raises(sh.SafeheadError, match="other prompts"):
        sh.explore(model, prompts[:2], scores=scores, **told)
