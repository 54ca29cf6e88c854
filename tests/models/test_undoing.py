import sys

import pytest
import torch

import safehead_tl as sh
from families import QUIET, hooked_only
from safehead_tl.models import hooked

PROMPTS = ["how do i bend a kite", "explain how to mend a boat"]


def interrupted_at(line, model, run):
    """Runs, with an interrupt at a line of what puts hooks on and takes them off; whether it came.

    Lines are counted in this toolkit's context managers and in TransformerLens's own.
    """
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        code = frame.f_code
        ours = code.co_filename.endswith(("models/undoing.py", "contextlib.py"))
        theirs = code.co_name in (
            "hooks", "_hooks_context", "add_hook", "_enable_hook", "_enable_hook_with_name",
            "add_hook_to_point", "apply_hooks", "reset_hooks", "remove_all_hook_fns",
            "remove_hooks", "_remove_hooks",
        )  # fmt: skip
        if not (ours or (theirs and "transformer_lens" in code.co_filename)):
            return None
        if event == "line":
            count += 1
            if count == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    except KeyboardInterrupt as error:
        return error  # its traceback keeps frames alive, as a notebook does
    finally:
        sys.settrace(before)
    return None


def forward_hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("backend", [pytest.param("hooked", marks=hooked_only), "bridge"])
def test_an_interrupt_at_any_line_leaves_no_hook_for_the_next_scan(backend):
    model = sh.load_model("demo", backend=backend)
    told = {"ablation": "scaling", "candidates": "L2H6", "run": QUIET}
    whole, clean = sh.ships(model, PROMPTS, **told), forward_hooks(model)
    name = "blocks.1.attn.hook_z"

    def run():
        with hooked(model, [(name, lambda z, hook: z * 0)]):
            pass

    line, came = 0, True
    while came:
        line += 1
        came = interrupted_at(line, model, run)
        if came and forward_hooks(model) > clean:
            again = sh.ships(model, PROMPTS, **told)
            torch.testing.assert_close(
                again.per_prompt, whole.per_prompt, rtol=0, atol=0, equal_nan=True
            )
        assert forward_hooks(model) == clean, line
    assert line > 20


@pytest.mark.parametrize(
    "run",
    [
        lambda model: sh.attention(model, PROMPTS[0], "L2H6", show=["original"]).patterns,
        lambda model: sh.load_model(model)(model.to_tokens(PROMPTS[0])),
    ],
    ids=["attention", "load_model"],
)
def test_what_an_interrupt_left_is_gone_whoever_runs_the_model_next(run):
    model = sh.load_model("demo")
    expected, clean = run(model), forward_hooks(model)
    left = hooked(model, [("blocks.1.attn.hook_z", lambda z, hook: z * 0)])
    left.__enter__()
    assert forward_hooks(model) > clean
    torch.testing.assert_close(run(model), expected, rtol=0, atol=0)
    assert forward_hooks(model) == clean
