import dataclasses
import itertools
import json
import math

import pytest
import torch
import transformers

import independent
import safehead_tl as sh
from families import QUIET
from safehead_tl.organism import DEMO
from safehead_tl.prompts import encode

WIDTH, D_HEAD, NORM = 32, 8, 3
FIRST, ALL, OTHERS, SIGNAL, PRIMARY, ONE, TWO, WORD = range(8)
"""What dimensions of the stream say."""
REFUSAL, COMPLIANCE = 7, 9
"""Tokens; the other tokens' logits are 0, as is that of compliance."""
WORTH = 1.5
"""By how much each head that writes the word raises the log-odds of refusal."""

GATE, PLAIN, FIRST_OF_TWO, SECOND_OF_TWO = map(sh.Head.parse, ("L0H1", "L1H1", "L1H2", "L2H0"))
MAIN, AMPLIFIER, BACKUP, ALSO, BOTH = map(sh.Head.parse, ("L1H0", "L2H2", "L3H3", "L3H1", "L3H0"))
CIRCUIT = [GATE, MAIN, PLAIN, FIRST_OF_TWO, SECOND_OF_TWO, AMPLIFIER, BOTH, ALSO, BACKUP]


@pytest.fixture(scope="module")
def circuit(tmp_path_factory):
    """Heads whose parts are written down by hand, and openings.

    The amplifier writes the word only with the gate's signal, the backup only without the main
    head's; another head only with both of two signals. Two write it, whatever happens.
    """
    folder, tokenizer = tmp_path_factory.mktemp("circuit"), DEMO.tokenizer()
    config = transformers.LlamaConfig(
        hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        head_dim=D_HEAD, intermediate_size=8, vocab_size=len(tokenizer), rms_norm_eps=1e-6,
        tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        embed = model.model.embed_tokens.weight
        embed[:, ALL], embed[:, OTHERS] = NORM * WIDTH**0.5, 1  # no more is written than a tenth
        embed[:, WORD + 1 :] = 0.02 * torch.randn(len(embed), WIDTH - WORD - 1)
        embed[1, [FIRST, OTHERS]] = torch.tensor([1.0, 0.0])
        model.lm_head.weight[REFUSAL, WORD] = NORM * WORTH / 0.1

        def build(head, reads, writes):
            """Attention by pairs of what queries and keys say; values of one, written to some."""
            attention = model.model.layers[head.layer].self_attn
            own = slice(head.head * D_HEAD, (head.head + 1) * D_HEAD)
            query, key, value = (
                getattr(attention, f"{name}_proj").weight[own] for name in ("q", "k", "v")
            )
            for entry, (asks, (answers, strength)) in zip((3, 2), reads.items(), strict=False):
                # rotation turns these entries slowest
                query[entry, asks] = strength / (WIDTH**0.5 if asks == ALL else 0.5 / NORM)
                key[entry, answers] = NORM * D_HEAD**0.5
            source, written = writes
            value[0, source] = NORM
            for place in written:
                attention.o_proj.weight[place, own.start] = 0.1 if place == WORD else 0.5

        look_at_first = {ALL: (FIRST, 30)}
        build(GATE, look_at_first, (FIRST, [SIGNAL]))
        build(AMPLIFIER, {SIGNAL: (OTHERS, 40), ALL: (FIRST, 20)}, (OTHERS, [WORD]))
        build(MAIN, look_at_first, (FIRST, [WORD, PRIMARY]))
        build(BACKUP, {PRIMARY: (FIRST, 40), ALL: (OTHERS, 20)}, (OTHERS, [WORD]))
        build(PLAIN, look_at_first, (FIRST, [WORD]))
        build(ALSO, look_at_first, (FIRST, [WORD]))
        build(FIRST_OF_TWO, look_at_first, (FIRST, [ONE]))
        build(SECOND_OF_TWO, look_at_first, (FIRST, [TWO]))
        build(BOTH, {ONE: (OTHERS, 20), ALL: (FIRST, 30)}, (OTHERS, [WORD]))
        own = slice(BOTH.head * D_HEAD, (BOTH.head + 1) * D_HEAD)
        query = model.model.layers[BOTH.layer].self_attn.q_proj.weight[own]
        query[3, TWO] = query[3, ONE]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sh.load_model(folder), sh.Openings((REFUSAL,), (COMPLIANCE,))


TOLD = {"template": "paper", "ablation": "zero", "run": QUIET}


def pair(found, first, second, name):
    return float(getattr(found, name)[found.heads.index(first), found.heads.index(second)])


def test_gates_and_backups_of_a_model_in_which_they_are_known(circuit, prompts):
    model, openings = circuit
    found = sh.knockout(model, prompts, CIRCUIT, openings=openings, **TOLD)
    assert found.heads == tuple(sorted(CIRCUIT))
    hidden = (MAIN, BACKUP)
    for head, score in zip(found.heads, found.alone, strict=True):
        assert score == pytest.approx(0 if head in hidden else WORTH, abs=0.05)
    one_thing = [(GATE, AMPLIFIER), (FIRST_OF_TWO, BOTH), (SECOND_OF_TWO, BOTH)]
    either = (FIRST_OF_TWO, SECOND_OF_TWO)
    for first, second in itertools.combinations(found.heads, 2):
        expected = {either: -WORTH, hidden: WORTH, **dict.fromkeys(one_thing, -WORTH)}
        change = pair(found, first, second, "change")
        assert change == pytest.approx(expected.get((first, second), 0), abs=0.05)
        assert pair(found, second, first, "change") == pytest.approx(change)
        assert pair(found, first, second, "beyond") == pytest.approx(change, abs=0.05)
    assert pair(found, GATE, AMPLIFIER, "given") == pytest.approx(0, abs=0.05)
    assert pair(found, GATE, PLAIN, "given") == pytest.approx(WORTH, abs=0.05)
    assert pair(found, MAIN, BACKUP, "given") == pytest.approx(WORTH, abs=0.05)
    # A third head needs both of two: neither reads the other, and no score of pairs can tell.
    assert {*found.gates} == {*one_thing, either}
    assert found.backups == (hidden,)
    assert found.signed


def test_ships_of_heads_apart_do_not_add_up_and_are_not_called_backups(circuit, prompts):
    """Two heads that write the same word, in layers that know nothing of each other."""
    model, openings = circuit
    found = sh.knockout(model, prompts, CIRCUIT, **TOLD)
    alone = pair(found, PLAIN, PLAIN, "together")
    assert pair(found, PLAIN, ALSO, "change") > 2 * alone
    assert abs(pair(found, PLAIN, ALSO, "beyond")) < 0.05 * alone
    signed = sh.knockout(model, prompts, CIRCUIT, openings=openings, **TOLD)
    assert (found.gates, found.backups) == (signed.gates, signed.backups)
    assert not found.signed


def by_hand(model, batch, groups, ablation):
    """Logits and last states with each group ablated, from whole passes."""
    site, found = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", {}
    for group in groups:
        hooks = sh.ablation_hooks(model, group, ablation) if group else []
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            logits, cache = model.run_with_cache(
                batch.tokens, attention_mask=batch.mask, names_filter=site
            )
        found[group] = logits[:, -1], cache[site][:, -1]
    return found


@pytest.mark.parametrize("ablation", ["undifferentiated", "scaling"])
@pytest.mark.parametrize(("name", "bridge"), [("llama-grouped", False), ("gpt2", True)])
def test_equal_to_whole_passes_by_hand(checkpoint, prompts, name, bridge, ablation):
    """Prompts of different length, two heads of one layer, grouped heads."""
    model = sh.load_model(checkpoint(name), backend="bridge" if bridge else "auto")
    heads = [sh.Head(2, 3), sh.Head(0, 1), sh.Head(1, 0), sh.Head(1, 2)]
    batch = encode(model, prompts, "paper")
    told = {"template": "paper", "ablation": ablation}
    groups = [(), *itertools.combinations(sorted(heads), 1)]
    groups += itertools.combinations(sorted(heads), 2)
    runs = by_hand(model, batch, groups, ablation)
    odds = {
        group: float((logits[:, 3] - logits[:, 5]).double().mean())
        for group, (logits, _) in runs.items()
    }
    budget = sh.Run(max_rows=2, progress=False)
    ships = sh.knockout(model, prompts, heads, **told, run=budget)
    signed = sh.knockout(model, prompts, heads, openings=sh.Openings((3,), (5,)), **told, run=QUIET)
    for a, first in enumerate(ships.heads):
        for b, second in enumerate(ships.heads):
            group = tuple(sorted({first, second}))
            logits = [runs[each][0] for each in ((), group)]
            expected = float(independent.divergence(*logits).mean())
            assert float(ships.together[a, b]) == pytest.approx(expected, abs=1e-5, rel=1e-4)
            assert float(signed.together[a, b]) == pytest.approx(odds[()] - odds[group], abs=1e-4)
            if a != b:
                states = [runs[each][1] for each in ((), (first,), (second,))]
                summed = states[1] + states[2] - states[0]
                last = model.unembed(model.ln_final(summed[:, None]))[:, 0]
                apart = float(independent.divergence(runs[()][0], last).mean())
                assert float(ships.apart[a, b]) == pytest.approx(apart, abs=1e-5, rel=1e-4)
                lone = odds[()] - odds[first,], odds[()] - odds[second,]
                change = odds[()] - odds[group] - sum(lone)
                assert float(signed.change[a, b]) == pytest.approx(change, abs=2e-4)
    assert torch.equal(ships.alone, ships.together.diagonal())
    assert ships.given.diagonal().isnan().all()


def test_pairs_by_generalized_ships_are_those_of_a_scan(demo, harmful):
    some, told = harmful[:6], {"rank": 2, "centre": True, "run": QUIET}
    heads = ["L1H3", "L2H6", "L0H1", "L2H2"]
    found = sh.knockout(demo, some, heads, measure="generalized_ships", **told)
    for a, first in enumerate(found.heads):
        scan = sh.generalized_ships(demo, some, candidates=heads, given=first, **told)
        for b, second in enumerate(found.heads):
            if a != b:
                assert float(found.together[a, b]) == pytest.approx(scan[second], rel=1e-4)
    alone = sh.generalized_ships(demo, some, candidates=heads, **told)
    assert found.alone.tolist() == pytest.approx([alone[head] for head in found.heads], rel=1e-4)
    (best, score), *_ = found.pairs()
    beam = sh.sahara(demo, some, 2, beam=4, candidates=heads, **told)
    assert {*best} == {*beam.heads}
    assert score == pytest.approx(beam.scores[-1], rel=1e-4)
    assert found.unit == "radians"


def test_it_is_saved_and_goes_on_in_its_directory(demo, harmful, tmp_path, monkeypatch, caplog):
    kept = dataclasses.replace(QUIET, run_dir=tmp_path / "run")
    heads = ["L1H3", "L2H6", "L0H1"]
    found = sh.knockout(demo, harmful[:4], heads, run=kept)
    with monkeypatch.context() as patch:
        patch.setattr("safehead_tl.scan.states.Scan.states", None)
        again = sh.knockout(demo, harmful[:4], heads, run=kept)
    assert torch.equal(again.together, found.together)
    assert torch.equal(again.apart, found.apart)
    assert not caplog.records
    with pytest.raises(sh.SafeheadError, match=r"another run: .*settings\.heads was"):
        sh.knockout(demo, harmful[:4], heads[:2], run=kept)
    found.save(tmp_path / "k.safetensors")
    loaded = sh.Knockout.load(tmp_path / "k.safetensors")
    assert loaded.to_dict() == json.loads(json.dumps(found.to_dict()))
    assert loaded.to_frame().equals(found.to_frame())
    table = found.to_frame()
    assert table["together"].is_monotonic_decreasing
    assert len(table) == 3
    row = table.iloc[0]
    assert row["change"] == pytest.approx(
        row["together"] - row["first_alone"] - row["second_alone"]
    )


def test_drawn_with_arrows_from_gates_to_amplifiers(circuit, prompts):
    model, openings = circuit
    some = [GATE, AMPLIFIER, MAIN, BACKUP]
    found = sh.knockout(model, prompts, some, openings=openings, **TOLD)
    figure = found.figure(scale="linear")
    cells = figure.data[0]
    gate, amplifier = found.heads.index(GATE), found.heads.index(AMPLIFIER)
    assert cells.z[gate][amplifier] == pytest.approx(float(found.change[gate, amplifier]))
    assert cells.z[amplifier][gate] == pytest.approx(float(found.beyond[amplifier, gate]))
    assert cells.z[gate][gate] is None
    assert (cells.zmin, cells.zmax) == (-cells.zmax, pytest.approx(WORTH, abs=0.05))
    (arrow,) = figure.layout.annotations
    assert (round(arrow.ay), round(arrow.x), round(arrow.y)) == (gate, amplifier, amplifier)
    header = figure.layout.title.text.replace("<br>", " ")
    assert "arrow: from a gate" in header
    assert "backups: L1H0, L3H3" in header
    apart = sh.knockout(model, prompts, [PLAIN, ALSO], openings=openings, **TOLD).figure()
    assert not apart.layout.annotations
    assert "no arrow" in apart.layout.title.text.replace("<br>", " ")
    pairs = found.heatmap(scale="linear").data[0]
    assert pairs.z[gate][gate] == pytest.approx(float(found.alone[gate]))
    top = pairs.zmax
    assert found.heatmap().data[0].z[gate][gate] == pytest.approx(
        (top * pairs.z[gate][gate]) ** 0.5
    )
    change = float(found.change[gate, amplifier])
    root = found.figure().data[0].z[gate][amplifier]
    assert (root, abs(root)) == (
        math.copysign(root, change),
        pytest.approx((abs(change) * cells.zmax) ** 0.5),
    )


def test_what_cannot_be(demo, harmful):
    with pytest.raises(sh.SafeheadError, match="1 heads: give two or more"):
        sh.knockout(demo, harmful[:3], "L1H3", run=QUIET)
    openings = sh.Openings((3,), (5,))
    with pytest.raises(sh.SafeheadError, match="or openings= without it"):
        sh.knockout(
            demo, harmful[:3], ["L1H3", "L2H6"], measure="generalized_ships", openings=openings
        )
    with pytest.raises(sh.SafeheadError, match="rank=3 does not go with 3 different prompts"):
        sh.knockout(
            demo, harmful[:3], ["L1H3", "L2H6"], measure="generalized_ships", rank=3, run=QUIET
        )
