import pytest
import torch
from transformers import AutoModelForCausalLM

import safehead_tl as sh
from families import BACKENDS, HookedTransformer
from safehead_tl.models import all_logits, head_slices
from safehead_tl.surgery import RevertedLayer, reverted
from spliced import second_splice

NAMES = ("llama-grouped", "qwen2-biases", "gpt2", "pythia-parallel", "phi3-joint-qkv",
         "bloom-alibi", "gpt-oss-sinks", "olmo2-norm-over-heads")  # fmt: skip
HEADS = [sh.Head(0, 1), sh.Head(0, 2), sh.Head(2, 0), sh.Head(2, 1)]
"""With two heads a KV group: parts of two groups in layer 0, and a whole one in layer 2."""


def state(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_a_checkpoint_edited_by_hand(checkpoint, donor, name, backend):
    if name.startswith("olmo2") and backend == "hooked":
        pytest.skip("TransformerLens has no HookedTransformer of it")
    plain, theirs = state(checkpoint(name)), state(donor(name))
    n_kv = getattr(plain.config, "num_key_value_heads", None) or 4
    edited = second_splice(plain.state_dict(), theirs.state_dict(),
                           ("q", "k", "v", "o", "sinks"), range(3), n_kv, HEADS)  # fmt: skip
    tokens = torch.randint(82, (2, 16), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    load = {"backend": backend, "verify": False, "device": "cpu"}
    model, base = (sh.load_model(path, **load) for path in (checkpoint(name), donor(name)))
    before = {key: some.clone() for key, some in model.state_dict().items()}
    with torch.no_grad():
        untouched = plain(tokens).logits
        plain.load_state_dict(edited)
        expected = plain(tokens).logits
        with reverted(model, base, HEADS):
            found = all_logits(model, tokens, mask)
        after = all_logits(model, tokens, mask)
    assert torch.allclose(found, expected, atol=2e-4)
    assert torch.allclose(after, untouched, atol=2e-4)
    assert (untouched - expected).abs().max() > 0.05
    exactly = {"rtol": 0, "atol": 0, "equal_nan": True}  # positions that BLOOM lacks hold anything
    torch.testing.assert_close(dict(model.state_dict()), before, **exactly)


def test_weights_are_back_after_an_error_and_nested_blocks_add_up(demo):
    base = sh.load_model("demo-base")
    before = {key: some.clone() for key, some in demo.state_dict().items()}

    def same_as(other):
        return all(torch.equal(some, other[key]) for key, some in demo.state_dict().items())

    def nested():
        with reverted(demo, base, "L1H3"):
            with reverted(demo, base, "L2H6"):
                assert same_as(base.state_dict())  # all that was learned is in these two
            assert not same_as(base.state_dict())
            assert torch.equal(head_slices(demo, 1)["W_Q"], head_slices(base, 1)["W_Q"])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        nested()
    assert same_as(before)


def test_scans_and_answers_inside_are_those_of_the_base(demo, harmful):
    base = sh.load_model("demo-base")
    told = {"template": "chat", "run": sh.Run(progress=False)}
    with reverted(demo, base, "L1H3 L2H6"):
        scores = sh.ships(demo, harmful[:3], **told)
    expected = sh.ships(base, harmful[:3], **told)
    assert torch.equal(scores.values, expected.values)
    key = "weights_hash"
    assert scores.provenance.model[key] != sh.ships(demo, harmful[:3], **told).provenance.model[key]


def test_heads_that_learned_nothing_are_equal(demo):
    base = sh.load_model("demo-base")
    equal = torch.stack([RevertedLayer(demo, base, layer).equal for layer in range(4)])
    assert (~equal).nonzero().tolist() == [[1, 3], [2, 6]]


def test_what_does_not_fit(demo, checkpoint, loaded):
    base = sh.load_model("demo-base")
    llama, grouped = loaded("llama"), loaded("llama-grouped")
    for heads, match in (([], "no heads were given"), ("L9H0", "L9H0 does not exist")):
        with pytest.raises(sh.SafeheadError, match=match), reverted(demo, base, heads):
            pass
    pairs = [
        (demo, llama, "its number of layers is 3, and the model's 4"),
        (llama, grouped, r"W_K of layer 0 is \(2, .* in it, and \(4, .* in the model"),
        (llama, loaded("gpt2"), r"its architecture is|b_K of layer 0 is .* missing in the model"),
        (demo, torch.nn.Linear(2, 2), "neither a HookedTransformer"),
    ]
    if HookedTransformer is not None:
        bridge = sh.load_model(checkpoint("llama"), backend="bridge")
        pairs.append((llama, bridge, "its kind is TransformerBridge"))
        folded = sh.load_model("demo-base")
        folded.process_weights_()
        pairs.append((demo, folded, "norms are folded"))
    for model, other, match in pairs:
        with pytest.raises(sh.SafeheadError, match=match), reverted(model, other, "L0H0"):
            pass
