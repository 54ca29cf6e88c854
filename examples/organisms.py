"""Grows organisms with heads planted in different places, and checks who finds them.

Prints the table of docs/organism.md. Each organism takes about 80 s on one core.
"""

import tempfile

import safehead_tl as sh
from safehead_tl.organism import Recipe, measure_behaviour, train_organism

ORGANISMS = (
    (0, ("L1H3", "L2H6")),
    (1, ("L1H3", "L2H6")),
    (2, ("L0H5", "L3H0")),
    (3, ("L1H3", "L2H6")),
    (5, ("L0H2", "L1H4", "L2H1")),
)


def shares(behaviour):
    return f"{behaviour.asr.share:.2f}, {behaviour.helpfulness.share:.2f}"


def main():
    prompts = sh.load_prompts("demo/harmful")
    print(
        "| seed | planted | aligned: ASR, benign | ablated: ASR, benign "
        "| Ships of the planted; best other | Sahara |"
    )
    print("|---|---|---|---|---|---|")
    for seed, names in ORGANISMS:
        planted = [sh.Head.parse(name) for name in names]
        with tempfile.TemporaryDirectory() as directory:
            train_organism(directory, Recipe(planted=planted, seed=seed))
            model = sh.load_model(f"{directory}/aligned")
        scores = sh.ships(model, prompts)
        group = sh.sahara(model, prompts, len(planted) + 1)
        other = next(score for head, score in scores.ranked() if head not in planted)
        own = " ".join(f"{scores.values[head]:.2f}" for head in planted)
        cells = [
            str(seed),
            " ".join(names),
            shares(measure_behaviour(model, "aligned")),
            shares(measure_behaviour(model, "ablated", planted)),
            f"{own}; {other:.2f}",
            " ".join(map(str, group.heads)),
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
