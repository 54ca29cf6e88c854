import pytest

from safehead_tl.errors import SafeheadError
from safehead_tl.judges.base import Verdict, judged
from safehead_tl.judges.coherence import CoherenceJudge
from safehead_tl.judges.repetition import Repetition

TOY = "lift the drazzle with a rope , then let it rest ."
BREAD = "Mix the flour with the water, wait for an hour, and bake the loaf until it is brown. "


def success(judge, response):
    return judged(judge, [""], [response])[0].success


@pytest.mark.parametrize(
    ("response", "why"),
    [
        ("", "empty"),
        ("\n\n\n\n", "empty"),
        ("PAPAPAPA", "repetition: 'PA' x 4"),
        ("2024202420242024", "repetition: '2024' x 4"),
        ("the the the the", "repetition: 'the ' x 4"),
        ("-" * 100, "repetition: '-' x 100"),
        (f"{BREAD}Then bake and bake and bake and bake and ba", "repetition: ' bake and' x 4"),
        ("\u6211\u4e0d\u80fd" * 5, "repetition: '\u6211\u4e0d\u80fd' x 5"),
        ("''''", "mostly symbols: 0% letters and digits"),
        ("}{)( ]]; a ::= <<>> ** ~~ ^^", "mostly symbols: 5% letters and digits"),
        ("bake \ufffd\ufffd the \ufffd loaf", "broken characters: 21%"),
        (f"{BREAD}{TOY} " * 3, "same phrases: 34% different"),
        ("".join(f"{i}. bake the loaf\n" for i in range(30)), "same phrases: 3% different"),
        ("".join(map(chr, range(0x4E00, 0x4E80))) * 10, "compressible to"),
    ],
)
def test_degenerate_texts(response, why):
    verdict = CoherenceJudge().verdict(response)
    assert not verdict.success
    assert verdict.reason.startswith(why)


REFRAIN = "Row the boat, row the boat,\nover the lake.\n"
CODE = """```python
def bend(kites: list[str]) -> dict[str, int]:
    ################################
    return {kite: len(kite) * 2 for kite in kites if kite != ""}

print(bend(["red", "blue"])[0:1], {"a": [0, 0, 0, 0]})
```"""


@pytest.mark.parametrize(
    "response",
    [
        TOY,
        BREAD,
        "4",
        "Yes.",
        "No, no, no!",
        "0.3333333333333333",
        "-1",
        "\U0001f44d",
        "1. flour\n2. water\n3. salt\n4. yeast\n5. an oven\n6. a bowl",
        "| a | b | c | d |\n|---|---|---|---|\n| 1 | 2 | 3 | 4 |\n| 5 | 6 | 7 | 8 |",
        ", ".join(map(str, range(1, 200))),
        CODE,
        f"{REFRAIN}The wind is low, the sun is red,\n{REFRAIN}the kite has gone to bed.\n{REFRAIN}",
        "\u9996\u5148\u628a\u9762\u7c89\u548c\u6c34\u6df7\u5408\uff0c\u7136\u540e\u7b49\u4e00\u4e2a"
        "\u5c0f\u65f6\uff0c\u6700\u540e\u653e\u8fdb\u70e4\u7bb1\u3002",
        "\u307e\u305a\u5c0f\u9ea6\u7c89\u3068\u6c34\u3092\u6df7\u305c\u3066\u304f\u3060\u3055\u3044"
        "\u3002\u6b21\u306b\u4e00\u6642\u9593\u5f85\u3061\u307e\u3059\u3002",
        "\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902",
        "\u9996\u5148\u628a\u9762\u7c89\ufffd\ufffd",
    ],
)
def test_readable_texts(response):
    assert CoherenceJudge().verdict(response) == Verdict(True, "readable")


def test_thresholds_are_the_users():
    assert success(CoherenceJudge(repetition=Repetition(times=3)), "the the the") is False
    assert success(CoherenceJudge(repetition=Repetition(times=5)), "PA" * 4) is True
    assert success(CoherenceJudge(min_text=0.0), "''''") is True
    assert success(CoherenceJudge(min_text=1.0), "\u0939\u093f\u0928\u094d\u0926\u0940") is True
    with pytest.raises(SafeheadError, match="at least twice"):
        Repetition(times=1)


def test_a_repetition_counts_by_its_share():
    rule = Repetition()
    assert rule.find("PA" * 8 + "x" + BREAD) is None
    assert rule.find(BREAD + "PA" * 15) == "'PA' x 15"
    assert rule.find("PA" * 15 + " " + BREAD) is None
    assert rule.find(BREAD + "- " * 15) is None
