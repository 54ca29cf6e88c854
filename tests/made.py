"""Results that no model gave, for figures of all sizes."""

import torch

import safehead_tl as sh


def scan(layers=4, heads=8, kv=8, measure="ships", prompts=6, seed=0, template="chat", unit=None):
    """Skewed random scores, as of some model."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(prompts, layers, heads, generator=generator, dtype=torch.float64).exp()
    whole = measure == "generalized_ships"
    settings = (
        {"rank": 1, "centre": False, "site": "final_norm", "reading": "left"} if whole else {}
    )
    if unit == "rate":
        samples = (samples > 1).double()
        settings = {"judge": {"name": "keyword"}, "unablated": {measure: "0 of 6"}}
    provenance = sh.Provenance.now(
        {"name": "some-model", "n_heads": heads, "n_key_value_heads": kv},
        {"label": "undifferentiated attention", "epsilon": 1e-5},
        {"template": template, "system": None, "prefix": None, "prompt_count": prompts},
        settings,
        0.0,
        0.0,
    )
    per_prompt = None if whole else samples
    unit = unit or ("radians" if whole else "nats")
    return sh.HeadScores(measure, unit, samples.mean(0), per_prompt, (), provenance)
