"""What is public, written down: a name that comes or goes is a decision, and in the reference."""

import re
import sys

import pytest

import safehead_tl as sh
import safehead_tl.ground_truth
import safehead_tl.organism
from families import ROOT

PUBLIC = [
    "Ablation",
    "AsrMap",
    "ChatTemplate",
    "CoherenceJudge",
    "Concentration",
    "DirectAttribution",
    "EndpointJudge",
    "Evaluation",
    "Head",
    "HeadGroup",
    "HeadScores",
    "Interchange",
    "Judge",
    "KeywordJudge",
    "Knockout",
    "LastStates",
    "LlmJudge",
    "MeanAblation",
    "MeanOverHeads",
    "Openings",
    "PRESETS",
    "Prefilled",
    "Provenance",
    "Ray",
    "ReferenceKeywordJudge",
    "RefusalDirection",
    "RefusalMap",
    "RefusalPrefixJudge",
    "Repetition",
    "ResampleAblation",
    "Run",
    "SafeheadError",
    "ScalingContribution",
    "Screening",
    "Server",
    "Slurm",
    "UndifferentiatedAttention",
    "Verdict",
    "ZeroAblation",
    "ablated",
    "ablation_hooks",
    "asr_map",
    "attention",
    "calibrate",
    "concentration",
    "direct_attribution",
    "evaluate",
    "explore",
    "export",
    "generalized_ships",
    "generate",
    "heatmaps",
    "helpfulness",
    "hunt",
    "integrated_gradients",
    "interchange",
    "knockout",
    "last_states",
    "load_model",
    "load_pairs",
    "load_prompts",
    "model_facts",
    "overlap",
    "pair_prompts",
    "plan",
    "refusal_direction",
    "refusal_log_odds",
    "refusal_map",
    "report",
    "sahara",
    "ships",
    "splice",
]
ORGANISM = [
    "Behaviour",
    "DEMO",
    "Language",
    "Recipe",
    "Request",
    "Rule",
    "measure_behaviour",
    "train_organism",
]

GROUND_TRUTH = [
    "Compiled",
    "Contestant",
    "GroundTruth",
    "Ranking",
    "ReversionTruth",
    "Shapley",
    "compiled",
    "contestants",
    "ground_truth",
    "natural_truth",
    "rank",
    "register",
    "reversion_truth",
    "shapley",
]


def test_the_names_are_these():
    assert sorted(sh.__all__) == sorted(PUBLIC)
    assert len(PUBLIC) <= 75
    packages = {path.stem for path in (ROOT / "safehead_tl").iterdir()}
    seen = {name for name in dir(sh) if not name.startswith("_")}
    seen -= {"jaxtyping"}  # which checks shapes, and leaves its name where it does
    assert seen - packages == set(PUBLIC) - packages


def test_a_misspelt_name_is_answered_with_the_nearest(capsys):
    with pytest.raises(AttributeError) as error:
        sh.shipz  # noqa: B018
    sys.__excepthook__(error.type, error.value, error.tb)
    assert "Did you mean: 'ships'" in capsys.readouterr().err


def test_every_public_name_is_in_the_reference():
    own = {"organism.md": ORGANISM, "ground_truth.md": GROUND_TRUTH}
    pages = [*(ROOT / "docs" / "api").iterdir()]
    for names, some in (
        (PUBLIC, [page for page in pages if page.name not in own]),
        *((names, [page for page in pages if page.name == name]) for name, names in own.items()),
    ):
        told = "".join(page.read_text("utf-8") for page in some)
        named = re.findall(r"^\.\. (?:auto\w+|data):: (\w+)$", told, re.MULTILINE)
        assert sorted(named) == sorted(names)
    assert sorted(safehead_tl.organism.__all__) == sorted(ORGANISM)
    assert sorted(safehead_tl.ground_truth.__all__) == sorted(GROUND_TRUTH)
