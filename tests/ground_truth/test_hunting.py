"""The hunt: what is hidden, what a look costs, and what an answer is worth."""

import base64
import json
import re
import shutil

import pandas as pd
import pytest
import torch
from jaxtyping import TypeCheckError

import safehead_tl as sh
from families import BACKENDS, QUIET, ROOT
from safehead_tl.ground_truth import cache, hunting, puzzles
from safehead_tl.ground_truth.puzzles import PUZZLES, Truth, fewest, grow, kind_of, kinds_named
from safehead_tl.ground_truth.submission import COLUMNS, Submission
from safehead_tl.models import EMBEDDED, load_model
from safehead_tl.organism import DEMO

H = sh.Head
HEAD = re.compile(rb"L\d+H\d+")


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Begins a hunt in the embedded organism, with whatever truth."""

    def begun(kind="shared", heads=("L1H3", "L2H6"), decoys=(), seed=5, **told):
        folder = tmp_path / "hunted"
        source = ROOT / "safehead_tl" / "data" / EMBEDDED["demo"]
        shutil.copytree(source, folder / "model", dirs_exist_ok=True)
        truth = {"kind": kind, "heads": heads, "decoys": decoys}
        (folder / "sealed").write_bytes(base64.b64encode(json.dumps(truth).encode()))
        monkeypatch.setattr(hunting, "grow", lambda *_: folder)
        return sh.hunt(seed, **told)

    return begun


@pytest.fixture
def tiny(monkeypatch):
    """Puzzles that take no time to grow, and pass."""
    small = {"layers": 3, "heads": 2, "width": 16, "steps": (2, 2), "batch_size": 4}
    for name, puzzle in PUZZLES.items():
        kind = puzzles.replace(puzzle.kind, **small)
        monkeypatch.setattr(
            puzzles, "PUZZLES", {**puzzles.PUZZLES, name: puzzles.replace(puzzle, kind=kind)}
        )
    monkeypatch.setattr(cache, "flaws", lambda *_: iter(()))
    monkeypatch.setattr(puzzles, "ORDERS", 2)
    monkeypatch.setattr(puzzles, "HELD_OUT", 2)


def test_seven_seeds_in_a_row_hold_each_kind_and_all_are_different():
    kinds = [kind_of(seed) for seed in range(1, 36)]
    for start in range(0, 35, 7):
        assert sorted(kinds[start : start + 7]) == sorted(PUZZLES)
    assert len({tuple(kinds[start : start + 7]) for start in range(0, 35, 7)}) > 1
    recipes = [PUZZLES[kind].kind.recipe(seed) for seed, kind in enumerate(kinds, 1)]
    assert len({json.dumps(recipe.to_dict()) for recipe in recipes}) == 35
    shapes = {(each.n_layers, each.n_heads, each.base_steps, each.align_steps) for each in recipes}
    assert len(shapes) == 1, "sizes and bars of progress do not tell kinds apart"


@pytest.mark.parametrize("kind", ["decoy", "natural", "none"])
def test_what_is_grown_does_not_tell(kind, tiny, tmp_path, monkeypatch):
    seed = next(seed for seed in range(1, 8) if kind_of(seed) == kind)
    folder = grow(seed, tmp_path, False)
    truth = Truth.read(folder)
    assert truth.kind == kind
    recipe = puzzles.PUZZLES[kind].kind.recipe(seed)
    assert truth.decoys == recipe.decoy_heads
    if kind != "natural":
        assert truth.heads == recipe.heads
    names = {path.name for path in folder.iterdir()}
    assert names == {"model", "sealed", "safehead_tl.json"}
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    for path in folder.rglob("*"):
        told = path.read_bytes() if path.is_file() and path.suffix != ".safetensors" else b""
        assert not HEAD.search(told), path
        assert not re.search(rf"\b{kind}\b".encode(), told), path
    monkeypatch.delattr(cache, "train_organism")
    assert grow(seed, tmp_path, False) == folder, "the second time it is there"
    assert kind not in folder.name


def test_two_organisms_side_by_side_do_not_show_what_was_learned(tiny, tmp_path):
    """A base model of its own: nothing but what no training touches is the same."""
    first, second = (load_model(grow(seed, tmp_path, False) / "model") for seed in (1, 6))
    same = [
        name
        for (name, one), (_, other) in zip(
            first.named_parameters(), second.named_parameters(), strict=True
        )
        if one.numel() and torch.equal(one, other) and one.unique().numel() > 1
    ]
    assert same == []


def test_an_organism_that_did_not_learn_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "flaws", lambda *_: iter(["it does nothing"]))
    with pytest.raises(sh.SafeheadError, match="seed=4 did not learn to refuse: take another"):
        grow(4, tmp_path, False)
    assert [*tmp_path.iterdir()] == []


def test_of_a_natural_organism_the_fewest_heads_that_hold_half_are_right():
    values = torch.tensor([[0.05, 0.20], [0.30, -0.01], [0.10, 0.26]])
    assert fewest(values, 0.45) == (H(1, 0), H(2, 1)), "0.30 + 0.26 is the first sum above"
    assert fewest(values, 0.29) == (H(1, 0),)


def test_a_hunt_does_not_tell(begin):
    hunt = begin("chain", ["L1H3", "L2H6"], ["L0H0"])
    told = repr(hunt) + repr({name: each for name, each in vars(hunt).items() if name != "model"})
    assert not HEAD.search(told.encode())
    assert not re.search("chain|planted|decoy", told)
    assert "100.0 of 100 passes left" in repr(hunt)
    asked = {str(each) for each in DEMO.requests("harmful", "train")}
    assert set(hunt.harmful) < asked


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_look_costs_what_it_runs(begin, backend, monkeypatch):
    monkeypatch.setattr(hunting, "load_model", lambda path: load_model(path, backend=backend))
    hunt = begin()
    tokens = [hunt.model.to_tokens(f"## query : {text} ## answer :") for text in hunt.harmful]
    longest = max(each.shape[1] for each in tokens)
    whole = len(tokens) * longest

    def cost(look):
        before = hunt.left
        look()
        return before - hunt.left

    row = max(tokens, key=lambda each: each.shape[1])
    assert cost(lambda: hunt.model(row)) == pytest.approx(longest / whole)
    assert cost(lambda: hunt.model(row[:, :5].expand(4, -1))) == pytest.approx(20 / whole)
    with torch.enable_grad():
        hunt.model.requires_grad_(True)
        assert cost(lambda: hunt.model(row)) == pytest.approx(3 * longest / whole)
        hunt.model.requires_grad_(False)
    found = []
    spent = cost(lambda: found.append(sh.ships(hunt.model, hunt.harmful, run=QUIET)))
    # one pass, and each of 8 heads from its layer on; a bridge embeds with a token of its own
    assert spent == pytest.approx(1 + 8 * (1 + 3 / 4 + 2 / 4 + 1 / 4), abs=0.01)
    assert found[0].top(2)[1][0] in (H(1, 3), H(2, 6))
    other = sh.load_model("demo")
    assert cost(lambda: other(row)) == 0, "other models are free"


def test_when_the_budget_is_spent_nothing_runs_and_an_answer_still_counts(begin):
    hunt = begin(budget=1.5)
    with pytest.raises(sh.SafeheadError, match=r"0\.\d of 1\.5 passes are left, and"):
        sh.ships(hunt.model, hunt.harmful, run=QUIET)
    left = hunt.left
    assert 0 <= left <= 0.5
    with pytest.raises(sh.SafeheadError, match="submit"):
        sh.generate(hunt.model, hunt.harmful, max_new_tokens=99, run=QUIET)
    assert 0 <= hunt.left <= left
    assert not any(point.fwd_hooks for point in hunt.model.hook_dict.values())
    assert hunt.submit("L1H3 L2H6", "they share it").score >= 80


@pytest.mark.parametrize(
    ("kind", "heads", "named", "story", "left", "points"),
    [
        ("shared", ["L1H3", "L2H6"], "L2H6 L1H3", "shared", 60, (60, 20, 10)),
        ("chain", ["L1H3", "L2H6"], "L1H3", "a chain", 60, (40, 20, 20 / 3)),
        ("gate", ["L0H0", "L1H1", "L2H2"], "L0H0 L3H0", "chain", 120, (24, 0, 8)),
        ("decoy", ["L1H3"], "L0H0", "a decoy", 120, (0, 20, 0)),
        ("none", [], [], "no head does", 30, (60, 20, 5)),
        ("none", [], "L0H0", "none", 120, (0, 20, 0)),
        ("natural", ["L1H3"], [], "spread", 120, (0, 20, 0)),
    ],
)
def test_scores_by_hand(kind, heads, named, story, left, points):
    truth = Truth(kind, tuple(map(H.parse, heads)), ())
    named = tuple(map(H.parse, named.split() if isinstance(named, str) else named))
    done = Submission(1, 1, named, story, truth, left, 120)
    assert done.points == pytest.approx(points)
    assert done.score == round(sum(points))


def test_an_answer_says_what_was_right_in_words(begin):
    hunt = begin("decoy", ["L1H3"], ["L0H0"])
    said = str(hunt.submit(["L0H0", "L2H1"], "either is a backup"))
    assert "missed L1H3; wrong L0H0 L2H1; L0H0 is a decoy" in said
    assert "kind: decoy" in said
    assert "Your story names redundant: 0 of 20" in said
    assert "100.0 of 100 left" in said
    assert "only the first" not in said
    again = hunt.submit("L1H3")
    assert again.submission == 2
    assert "submission 2: only the first counts" in str(again)
    assert "names no kind" in str(again)
    assert "none named, and there are none" in str(begin("none", []).submit([], "none"))
    with pytest.raises(sh.SafeheadError, match="L7H0 does not exist"):
        hunt.submit("L7H0")


@pytest.mark.parametrize(
    ("story", "kinds"),
    [
        ("", ()),
        ("L1H3 and L2H6 share the refusal.", ("shared",)),
        ("Not a chain, but shared", ("shared", "chain")),
        ("two backups of each other", ("redundant",)),
        ("L0H1 opens the gate for two amplifiers", ("gate",)),
        ("the other is a DECOY", ("decoy",)),
        ("it is spread over many", ("natural",)),
        ("no safety head: the MLPs do it", ("none",)),
        ("None of the heads carries it", ("none",)),
        ("there is none", ("none",)),
        ("a chain: both are needed, and none of the others matters", ("chain",)),
        ("a chain: no head alone is enough", ("chain",)),
        ("the head does nonexistent work", ()),
    ],
)
def test_words_name_kinds(story, kinds):
    assert kinds_named(story) == kinds


def test_a_leaderboard_keeps_what_was_submitted(begin, tmp_path):
    file = tmp_path / "class.csv"
    story = 'a "shared" burden,\nsaid =SUM(1)'
    begin().submit("L1H3 L2H6", story, player="Ada, A.", leaderboard=file)
    begin(seed=6).submit("L1H3", "chain", player="Bo", leaderboard=file)
    again = begin().submit("L1H3", "", player="Ada, A.", leaderboard=file)
    assert again.submission == 2, "in a new hunt too: the leaderboard knows"
    table = pd.read_csv(file)
    assert tuple(table.columns) == COLUMNS
    assert table["player"].tolist() == ["Ada, A.", "Bo", "Ada, A."]
    assert table["seed"].tolist() == [5, 6, 5]
    assert table["submission"].tolist() == [1, 1, 2]
    assert table["score"].tolist()[0] == 100
    assert table["story"].tolist()[0] == story
    both = pd.concat(map(pd.read_csv, [file, file]))
    assert len(both) == 6
    begin().submit("L1H3", leaderboard=file, overwrite=True)
    assert len(pd.read_csv(file)) == 1


def test_a_file_of_others_is_no_leaderboard_and_then_nothing_is_told(begin, tmp_path):
    file, hunt = tmp_path / "marks.csv", begin()
    file.write_text("name,mark\nAda,1\n")
    with pytest.raises(sh.SafeheadError, match=r"marks\.csv holds something that safehead_tl did"):
        hunt.submit("L1H3", leaderboard=file)
    with pytest.raises(sh.SafeheadError, match=r"name it \.csv"):
        hunt.submit("L1H3", leaderboard=tmp_path / "marks.xlsx")
    assert hunt.submit("L1H3").submission == 1
    assert file.read_text() == "name,mark\nAda,1\n"
    hunt.submit("L1H3", leaderboard=file, overwrite=True)
    assert pd.read_csv(file)["submission"].tolist() == [2]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"seed": 0}, "seed=0: give a whole number from 1 on"),
        ({"seed": True}, "seed=True"),
        ({"seed": "3"}, "seed='3'"),
        ({"seed": 3, "budget": 0}, "budget=0: give more than 0 passes"),
        ({"seed": 3, "budget": float("nan")}, "budget=nan"),
    ],
)
def test_seeds_and_budgets_that_are_none(told, message):
    with pytest.raises((sh.SafeheadError, TypeCheckError)) as error:
        sh.hunt(**told)
    assert isinstance(error.value, TypeCheckError) or message in str(error.value)
