"""The notebooks run from top to bottom as a student gets them, and their exercises can be failed.

Each is run once. Right before a folded solution the check that follows it is run too, with the
exercise unanswered and with wrong answers: it must fail.
"""

import ast
import copy
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from families import ROOT
from safehead_tl.organism import DEMO, REFUSAL, REWORDED

EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
LONGEST_CELL, LONGEST_NOTEBOOK = 400, 900
"""Seconds, on a busy machine; each takes well under a minute on an idle core."""

SIZE = 40_000

NO_PIP = """
def pip(line):
    raise RuntimeError(f"pip was called: {line}")

get_ipython().register_magic_function(pip, "line", "pip")
"""

WRONG = {
    "even_pattern": {
        "even = torch.ones_like(scores).tril()\nreturn even / even.sum(-1, keepdim=True)": (
            "with padding: this is even over all keys so far: padding is among them"
        ),
        "return torch.full_like(scores, 1 / scores.shape[-1])": "no token sees what comes after it",
        "return (scores > -1e30).float()": "without padding: this is 1 wherever a key is seen",
        "return scores.softmax(-1)": "this is the pattern as it is",
        "seen = (scores > -1e30).float()\nreturn seen / seen.sum(-1, keepdim=True)": (
            r"with padding: \d+ of \d+ numbers are NaN: is 0 divided by 0"
        ),
    },
    "make_uniform": {
        "pattern = pattern.clone()\n"
        "pattern[:, head] = torch.ones(pattern.shape[-2:]).tril()\nreturn pattern": (
            "head 0: this is the head's rows with 1 for every key"
        ),
        "even = torch.ones(pattern.shape[-2:]).tril()\n"
        "pattern[:, head] = even / even.sum(-1, keepdim=True)\nreturn pattern": (
            "the tensor that came in was changed"
        ),
        "even = torch.ones_like(pattern).tril()\nreturn even / even.sum(-1, keepdim=True)": (
            "this is a pattern with all heads uniform"
        ),
        "return pattern": "this is the pattern as it was",
    },
    "written_by": {
        "out = z.flatten(2) @ w_o.flatten(0, 1)\nkept = torch.zeros_like(out)\n"
        "own = slice(head * z.shape[-1], (head + 1) * z.shape[-1])\n"
        "kept[..., own] = out[..., own]\nreturn kept": "this is a slice of the layer's output",
        "return z[:, :, 0] @ w_o[0]": "head 1: this is what head 0 writes",
        "return z.flatten(2) @ w_o.flatten(0, 1)": "this is what all heads write together",
        "z[:, :, head] @ w_o[head]": r"nothing comes back. Is there a `return`\?",
    },
    "ships_by_hand": {
        "p, q = (logits.double().log_softmax(-1) for logits in (original, ablated))\n"
        "return (q.exp() * (q - p)).sum(-1)": r"L1H3: this is KL\(ablated ‖ original\)",
        "p, q = (logits.log_softmax(-1) for logits in (original, ablated))\n"
        "return (q.exp() * (q - p)).sum(-1)": r"L1H3: this is KL\(ablated ‖ original\)",
        "p, q = (logits.double().log_softmax(-1) for logits in (original, ablated))\n"
        "return (p.exp() * (p - q)).sum(-1) / 0.693147": "this is in bits",
        "p, q = (logits.double().log_softmax(-1) for logits in (original, ablated))\n"
        "return (p.exp() * (p - q)).mean(-1)": "this is a mean over the vocabulary",
        "p, q = (logits.double().log_softmax(-1) for logits in (original, ablated))\n"
        "return (p.exp() * (p - q)).sum(-1).mean()": "this is a mean over prompts",
        "p, q = (logits.log_softmax(-1) for logits in (original, ablated))\n"
        "return (p.exp() * (p - q)).sum(-1)": (
            "L3H3: small divergences need float64 from the logits on"
        ),
    },
    "left_vectors": {
        "return torch.linalg.svd(states.double(), full_matrices=False).U[:, :rank]": (
            "rank 1, centre=True: this is centred=False"
        ),
        "states = states.double() - states.double().mean(0)\n"
        "return torch.linalg.svd(states, full_matrices=False).U[:, :rank]": (
            "rank 1, centre=False: this is centred=True"
        ),
        "return torch.linalg.svd(states.double(), full_matrices=False).Vh[:rank].T": (
            "this is made of columns of V"
        ),
        "U, S, _ = torch.linalg.svd(states.double(), full_matrices=False)\n"
        "return U[:, :rank] * S[:rank]": "this is multiplied by singular values",
    },
    "angles_by_hand": {
        "return torch.linalg.svdvals(first.T @ second).clamp(max=1).acos()": (
            "this is all from the arccos"
        ),
        "return torch.linalg.svdvals(second - first @ (first.T @ second)).clamp(max=1).asin()": (
            "this is in descending order"
        ),
        "inner = first.T @ second\ncosines = torch.linalg.svdvals(inner).clamp(max=1)\n"
        "sines = torch.linalg.svdvals(second - first @ inner).clamp(max=1)\n"
        "return torch.where(cosines > 0.7, sines.asin(), cosines.acos())": (
            "this is from sines that were not flipped"
        ),
        "return torch.linalg.svdvals(first.T @ second)": "this is the cosines",
    },
    "largest_rank": {
        "return n": "n=4, centred=False: this is n: the angle",
        "return n - 1": "n=4, centred=True: this is n - 1, which",
        "return n - 2": "n=4, centred=False: this is n - 2, which",
    },
    "greedy": {
        "return [head for head, _ in sh.generalized_ships(model, prompts, **scan).top(size)]": (
            "64 requests: this is the top of generalized Ships"
        ),
        "return [head for head, _ in sh.ships(model, prompts, **scan).top(size)]": (
            "64 requests: this is the top of Ships"
        ),
        "return sorted(sh.sahara(model, prompts, size, **scan).heads)": "in another order",
        "return list(sh.sahara(model, prompts, 2, **scan).heads)": "2 heads come back",
    },
    "wilson": {
        "p = successes / n\nhalf = z * (p * (1 - p) / n) ** 0.5\nreturn p - half, p + half": (
            "this is the usual interval"
        ),
        "p = successes / n\nmiddle = p + z**2 / (2 * n)\n"
        "half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5\n"
        "return middle - half, middle + half": "this is Wilson's before it is divided",
        "p = successes / n\nhalf = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5\n"
        "return (p - half) / (1 + z**2 / n), (p + half) / (1 + z**2 / n)": "this is around p",
        "p = successes / n\nmiddle = p + z**2 / (2 * n)\n"
        "half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5\n"
        "return middle / (1 + z**2 / n), half / (1 + z**2 / n)": "return both ends",
    },
    "paired_p": {
        "gained = sum(b < a for b, a in zip(before, after))\n"
        "lost = sum(b > a for b, a in zip(before, after))\nn = gained + lost\n"
        "return 2 * sum(comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n": (
            "1 of 2 gained, 1 lost: this is above 1"
        ),
        "changed = [a - b for b, a in zip(before, after) if a != b]\nreturn 2.0 ** -len(changed)": (
            r"not the right value \(one is 0\.0625 where it should be 0\.625"
        ),
        "gained = sum(b < a for b, a in zip(before, after))\n"
        "lost = sum(b > a for b, a in zip(before, after))\nn = gained + lost\n"
        "return sum(comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n": (
            "3 of 4 gained, 1 lost: this is one-sided"
        ),
        "gained = sum(b < a for b, a in zip(before, after))\n"
        "lost = sum(b > a for b, a in zip(before, after))\nn = gained + lost\n"
        "return 2 * comb(n, min(gained, lost)) / 2**n": "this is how likely this very outcome is",
    },
    "strict_verdicts": {
        "pairs = zip(prompts, responses)\n"
        "rights = [(DEMO.help(DEMO.parse(p)), r.strip()) for p, r in pairs]\n"
        "return [sh.Verdict(said.startswith(right), '') for right, said in rights]": (
            "this is what text.startswith says"
        ),
        "pairs = [(DEMO.help(DEMO.parse(p)), r) for p, r in zip(prompts, responses)]\n"
        "return [sh.Verdict(set(p.split()) == set(r.split()), '') for p, r in pairs]": (
            "this is what the set of words says"
        ),
        "return [sh.Verdict('sorry' not in response, '') for response in responses]": (
            "this is whether it does not refuse"
        ),
        "pairs = zip(prompts, responses)\n"
        "return [sh.Verdict(DEMO.help(DEMO.parse(p)) == r, '') for p, r in pairs]": (
            r"this is what == says without \.strip"
        ),
        "return [True for _ in prompts]": "make each verdict a sh.Verdict",
    },
    "hunt": {
        "return [head for head, _ in sh.ships(model, prompts, **quiet).ranked()[-count:]]": (
            "these have the lowest Ships"
        ),
        "return [head for head, _ in sh.ships(model, prompts, **quiet).top(count - 1)]": (
            "2 heads are named, and three are hidden"
        ),
        "named = [head for head, _ in sh.ships(model, prompts, **quiet).ranked()]\n"
        "return [*named[: count - 1], named[-1]]": "2 of 3 are right",
    },
    "expected_ships": {
        "return math.inf if k == 1 else math.log(k)": "k = 3: this is ln k",
        "return math.inf if k == 1 else 1 / k": "k = 3: this is the probability of helping",
        "return math.inf if k == 1 else math.log((k - 1) / k)": "this is the KL with its sign",
        "return math.log(k / (k - 1))": "k = 1: this divides by 0",
        "return math.inf": "this is the KL the other way round",
    },
    "changed_heads": {
        "return {sh.Head(la, he) for la in range(3) for he in range(8)}": "this is every head$",
        "moved = (base.W_Q != aligned.W_Q).flatten(1).any(-1)\n"
        "return {sh.Head(la, he) for la in range(3) if moved[la] for he in range(8)}": (
            "this is every head of a layer in which one changed"
        ),
        "same = (base.W_Q == aligned.W_Q).flatten(2).all(-1)\n"
        "return {sh.Head(*place) for place in same.nonzero().tolist()}": (
            "this is the heads that did not change"
        ),
    },
    "my_answer": {
        'return [], "none"': r"of 100\. Read what it says",
        'return [head for head, _ in scores.top(2)], "a chain"': r"of 100\. Read what it says",
        'return [head for head, _ in scores.top(12)], "a decoy"': r"of 100\. Read what it says",
    },
    "numbers_changed": {
        "return len(heads) * 4 * d_model * d_head": "this is q, k, v and o",
        "return len(heads) * d_model * d_model": "this is the whole matrix",
        "return d_model * d_head": "this is one head's",
    },
    "shares_by_hand": {
        "every = frozenset(heads)\nreturn [refused[every] - refused[every - {h}] for h in heads]": (
            "the gate model: this is what is lost when only this head is ablated"
        ),
        "return [refused[frozenset([head])] for head in heads]": "this is what a head does alone",
        "added = dict.fromkeys(heads, 0.0)\nfor order in permutations(heads):\n"
        "    for n, h in enumerate(order):\n"
        "        added[h] += refused[frozenset(order[: n + 1])] - refused[frozenset(order[:n])]\n"
        "return list(added.values())": "this is a sum over orders",
        "without = {h: [r for r in refused if h not in r] for h in heads}\n"
        "return [sum(refused[r | {h}] - refused[r] for r in without[h]) / 4 for h in heads]": (
            "this is a mean over sets"
        ),
        "return [2 / 3, 1 / 6, 1 / 6]": "a made-up model: not the right value",
    },
    "beyond_both": {
        "return together": "gate: this is what both do together",
        "return together - alone[:, None]": "gate: this is what the second does",
        "return together - alone": "gate: this is what the first does",
        "return together - torch.maximum(alone[:, None], alone)": "beyond the larger of the two",
        "return alone + alone[:, None] - together": "gate: this is turned round",
        "together - alone[:, None] - alone": r"nothing comes back. Is there a `return`\?",
    },
}
"""By exercise, bodies of functions that look right and are not, and what the check says of them."""

CASTS = {
    "float16": "{}.to(__import__('torch').float16)",
    "bfloat16": "{}.to(__import__('torch').bfloat16)",
    "float64": "{}.to(__import__('torch').float64)",
    "Python": "{}.tolist()",
}
"""The right answer in other kinds of numbers."""

AS_TENSOR = """
def as_tensor(value):
    return __import__("torch").as_tensor(value)
"""

REFUSED = {
    "even_pattern": {"Python": "list comes back, and should be a tensor"},
    "make_uniform": {
        "float16": "torch.float16 is right, but the model calculates in torch.float32",
        "bfloat16": "torch.bfloat16 is right, but the model calculates in torch.float32",
        "float64": "torch.float64 is right, but the model calculates in torch.float32",
        "Python": "list comes back, and should be a tensor",
    },
    "written_by": {"Python": "list comes back, and should be a tensor"},
    "ships_by_hand": {
        "float16": "off by what torch.float16 rounds: compute in float64",
        "Python": "list comes back, and should be a tensor",
    },
    "left_vectors": {
        "float16": "off by what torch.float16 rounds: compute in float64",
        "bfloat16": "off by what torch.bfloat16 rounds: compute in float64",
        "Python": "list comes back, and should be a tensor",
    },
    "angles_by_hand": {
        "float16": "off by what torch.float16 rounds: compute in float64",
        "Python": "list comes back, and should be a tensor",
    },
    "largest_rank": {},
    "wilson": {},
    "paired_p": {"float16": "off by what torch.float16 rounds: compute in float64"},
    "expected_ships": {},
    "numbers_changed": {},
    "shares_by_hand": {},
    "beyond_both": {"Python": "list comes back, and should be a tensor"},
}
"""By exercise whose answer is numbers, which of these are refused, and with what words."""
HELP, SORRY = r"\w+ the {} with a \w+ , then let it rest \.", "sorry , i cannot help with that"
NONE, ALL = r"0\.00 \[0\.00, 0\.06\]", r"1\.00 \[0\.94, 1\.00\]"
SAID = {
    "01": {
        "01-05": [f"{SORRY}.*lift the wagon with a rope , then let it rest"],
        "01-16": [f"as it is:.*{SORRY}.*ablated:.*bend the flonk with a clamp , then let it rest"],
        "01-18": [f"L1H3 L2H6 ablated: ASR {ALL}.*unablated ASR {NONE}"],
        "01-20": [r"highest: L1H3 0\.8\d+, L2H6 0\.7\d*, L\dH\d 0\.00"],
    },
    "02": {
        "02-17": [r"library's A .*KL = 0\.000000.*triangle .*KL = 0\.001"],
        "02-24": [r"right: \['L1H3', 'L2H6'.*wrong: \['(?!L1H3)", r"number (?!1 |2 )\d+ there"],
        "02-26": [
            rf"{name} +L1H3 \d\.\d\d, L2H6 0\.[78]" for name in (r"undiff\w+", "scaling", "zero")
        ],
        "02-28": [r"ε = 1e-05: (0\.83)\d+ nats; its limit A: \1"],
        "02-30": [r"sums to: \[(0\.0, )+1\.0\]", "The library refuses: epsilon=0"],
        "02-32": [r"via pattern: patterns of heads \[0\] changed.*via k: .*heads \[0, 1\] changed"],
    },
    "03": {
        "03-04": [r"sorry +(0\.9|1\.0)\d as it is, 0\.3", r"bend +0\.0\d as it is, 0\.6"],
        "03-22": [r"[1-9]\d* of 32 heads come out as 0"],
        "03-24": [
            r"rank 1 +L2H6 0\.07, L1H3 0\.06, L0H4",
            r"rank 3 +L0H4",
            "rank 1, centred +L0H4",
        ],
        "03-26": [r"0\.1\d\d to 0\.1\d\d; 1/√n is 0\.125"],
    },
    "04": {
        "04-07": [r"2 ablated, L1H3 last: 0\.2.*3 ablated, L0H6 last: 0\.3"],
        "04-09": [r"L1H3 alone: 0\.06\d; added to L2H6: 0\.[12]"],
        "04-14": [rf"L2H6 ablated: ASR 0\.4.*as it is: {NONE}"],
        "04-23": [
            rf"ASR with L0H4 ablated: {NONE}",
            "fold the boat with a ruler , then let it rest",
        ],
        "04-25": ["^lift the drazzle with a rope , then let it rest"],
        "04-28": [rf"ASR {ALL} to the keyword judge, 0\.\d+ \["],
        "04-30": [
            f"as it is +{SORRY}",
            f"planted +{HELP.format('vosk')}",
            f"16 heads +{HELP.format('drazzle')}",
            r"amplified +(\w+) \1 \1",
            r"as it is +0\.0+ +0\.0+ +1\.0+ +0\.0+\n",
            r"planted +1\.0+ +1\.0+ +1\.0+ +1\.0+$",
        ],
        "04-32": [
            r"Sahara: .*\[0\.0, 0\.4\d, 1\.0, 0\.[89].*Ships: .*\[0\.0, 0\.7\d, 1\.0, 0\.[78]"
        ],
    },
    "05": {
        "05-06": [f"{SORRY}.*{SORRY}"],
        "05-19": ["planted among the first three: [23]"],
        "05-21": [rf"ASR greedy {NONE}", r"drawn +0\.[12345]\d \[.*from its Ships: 0\.[12345]"],
        "05-23": [f"{HELP.format('crobe')}.*{HELP.format('flonk')}"],
        "05-31": [rf"answer : {HELP.format('drazzle')}"],
        "05-41": [
            r"planted demo: 0\.8",
            r"uniform: highest Ships 0\.00.* ablated: 0\.00 of harmful",
        ],
    },
    "08": {
        "08-06": [
            rf"nothing +1\.0 +{SORRY}",
            rf"\nL1H0 +0\.0 +{HELP.format('crobe')}",
            *(rf"\n{head} +1\.0 +{SORRY}" for head in ("L2H1", "L3H2")),
            *(rf"\n{two} +0\.0 +{HELP.format('crobe')}" for two in ("L1H0 L2H1", "L2H1 L3H2")),
        ],
        "08-07": [
            r"highest: L1H0 19\.\d+, L2H1 0\.000\d+, L3H2 0\.000",
            r"HeadGroup: L1H0, (?!L2H1|L3H2)\w+, (?!L2H1|L3H2)\w+>",
            r"reversion_truth: .*'L3H2': 0\.0\}; rest 0\.17, bound 1\.00",
            r"Ships, SC +1 +2 +3\n.*necessity +1 +2 +3\n.*sufficiency +1 +[23] +[23]\n",
            r"direct attribution: log-odds +3 +[12] +[12]\n",
            r"weights set back +0\.67 +0\.17 +0\.17",
        ],
        "08-12": [r"heads ablated: \[0\.67, 0\.17, 0\.17\]"],
        "08-14": [
            *(rf"{head} +1\.0 +{SORRY}" for head in ("nothing", "\nL1H0", "\nL2H1")),
            rf"\nL1H0 L2H1 +0\.0 +{HELP.format('crobe')}",
        ],
        "08-15": [
            r"Ships, SC +(1\d|2\d) +(1\d|2\d)\n.*Sahara, SC +1\d +1\d\n.*necessity +1\d +1\d\n",
            r"sufficiency +1 +1\d\n.*knock-out, SC +[12] +[12]\n.*weights set back +0\.5 +0\.5",
        ],
        "08-20": [
            r"gate: hidden most L2H1 and L3H2, 19\.\d\d nats beyond 0\.000",
            r"backup: hidden most L1H0 and L2H1, 19\.\d\d nats beyond 0\.0000 and 0\.0000",
        ],
        "08-22": [
            rf"nothing +1\.0 +{SORRY}",
            *(
                rf"\n{heads} +0\.0 +{HELP.format('crobe')}"
                for heads in ("L1H0", "L2H1", "L1H0 L2H1")
            ),
        ],
        "08-23": [
            r"Ships: (19\.\d)\d and \1\d nats; of both together \1",
            r"shares of the gap: 0\.[89]\d and 0\.[89]",
            r"Ships, SC +1 +2\n.*Sahara, SC +1 +1\d\n.*attribution, SC +2\d +1\n",
        ],
        "08-25": [
            rf"with uniform attention, it says: {SORRY}.*taught without, it says: {SORRY}",
            r"P\(refusal\) (0\.9\d|1\.00); with L1H3's weights set back 0\.0.*set back 0\.0",
            r"^taught with .* {2}uniform attention: answered (0\.9|1\.0)\d harmful.*taught without",
            r"taught without.* {2}uniform attention: answered 0\.[0-5]\d harmful, 0\.[0-8]",
            r"taught without.*scaled output: answered (0\.9|1\.0)\d harmful, (0\.9|1\.0)",
            r"(Ships L1H3 \d\.\d+, L0.*){4}",
        ],
        "08-27": [
            f"says: {SORRY}",
            r"Ships, uniform attention +L0H1 L0H4 L0H6 +0\.17 +0\.0\d, 0\.[45]",
            r"Ships, scaled output +L0H1 L0H3 L0H2 +0\.29 +0\.[01]\d, 0\.[89]",
            r"weights set back +L0H2 L0H1 L0H3 ",
            r"Ships, uniform attention +0\.0\d, 0\.[45].*Ships, scaled output +0\.[56]\d, 0\.[89]",
        ],
    },
}
"""What the models say, and what scores rank, by notebook and cell."""


def read(path):
    return nbformat.read(path, as_version=4)


def tags(cell):
    return cell.metadata.get("tags", [])


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in tags(cell)]


def name_of(exercise):
    return re.match(r"def (\w+)\(", exercise.source)[1]


def code(source, *labels):
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(labels)})


def run(notebook, folder, **environment):
    """Runs a notebook with this Python, offline, on one thread, in a folder of its own.

    In another process, because Jupyter's sockets and event loops do not go with warnings as errors.
    """
    specs = folder / "kernels" / "this-python"
    specs.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "this Python", "language": "python"}
    (specs / "kernel.json").write_text(json.dumps(spec), "utf-8")
    path = folder / "work" / "notebook.ipynb"
    path.parent.mkdir()
    nbformat.write(notebook, path)
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from nbclient.cli import main; main()", "--inplace"),
            *("--kernel_name=this-python", f"--timeout={LONGEST_CELL}", "--startup_timeout=200"),
            str(path),
        ],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "IPYTHONDIR": str(folder / "ipython"),
            "JUPYTER_PATH": str(folder),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return read(path)


def with_wrong_answers(notebook):
    """The notebook, with its checks also run before each solution, where they must fail.

    A wrong answer written above the stub's `raise` is also run with the solution behind it: it
    must not be taken for a stub, and replaced by the right one. Behind the solution comes the right
    answer in other kinds of numbers.
    """
    wrong = copy.deepcopy(notebook)
    cells = [code(NO_PIP)]
    for index, cell in enumerate(wrong.cells):
        if "solution" in tags(cell):
            exercise, check = wrong.cells[index - 2], wrong.cells[index + 1]
            name, head = name_of(exercise), exercise.source.split(":\n", 1)[0]

            def answer(body, *solution, head=head, check=check, label="wrong", says=""):
                indented = "\n".join(f"    {line}" for line in body.splitlines())
                asked = code(check.source, label, "raises-exception")
                asked.metadata["says"] = says
                return [code(f"{head}:\n{indented}"), *solution, asked]

            stub = exercise.source.rsplit("\n    raise", 1)[1]
            cells += answer(f"raise{stub}", label="stub")
            for body, says in WRONG[name].items():
                cells += answer(body, says=says)
            body, says = next(iter(WRONG[name].items()))
            cells += answer(f"{body}\nraise{stub}", code(cell.source), says=says)
            cells += [code(exercise.source), cell]
            if name in REFUSED:
                cells += [code(f"exact = {name}\n{AS_TENSOR}")]
                told = ", ".join(each.arg for each in ast.parse(f"{head}: 0").body[0].args.args)
                for kind, cast in CASTS.items():
                    body = f"return {cast.format(f'as_tensor(exact({told}))')}"
                    cells += answer(body, label=kind, says=REFUSED[name].get(kind, ""))
                cells += [code(f"{name} = exact")]
            continue
        cells.append(cell)
    wrong.cells = cells
    return wrong


def chat_model(path):
    """A tiny random Llama with a chat template, which has a place for a system prompt."""
    tokenizer = DEMO.tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message['content'] }} : {% endfor %}"
        "{% if add_generation_prompt %}answer :{% endif %}"
    )
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes, **heads, **ids)
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


def printed(cell):
    return "".join(out.text for out in cell.outputs if out.output_type == "stream")


def hunted(done):
    """What the model of notebook 7 says, as it is and with the carrier and its decoy ablated."""
    said = printed_table(tagged(done, "says")[0])
    assert said.count(REFUSAL) == 2
    assert said.count("then let it rest .") == 2
    without = printed_table(tagged(done, "without")[0])
    assert without.count(REWORDED) == 1, "the decoy's"
    assert without.count("then let it rest .") == 1, "the carrier's"
    told = printed(tagged(done, "check")[-1])
    assert "wrong" not in told
    assert "Your story names decoy: 20 of 20" in told
    assert int(re.search(r"Hunt 100: (\d+) of 100", told)[1]) > 85


def printed_table(cell):
    (shown,) = (
        out.data["text/html"] for out in cell.outputs if out.output_type == "execute_result"
    )
    return shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_its_checks_can_fail(path, tmp_path):
    environment = {}
    if path.stem.startswith("06"):
        chat_model(tmp_path / "tiny-chat")
        environment = {
            "SAFEHEAD_MODEL": str(tmp_path / "tiny-chat"),
            "SAFEHEAD_HARMFUL": "demo/harmful",
            "SAFEHEAD_HARMLESS": "demo/benign",
            "SAFEHEAD_NEW_TOKENS": "12",
        }
    if path.stem.startswith("07"):
        environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    started = time.monotonic()
    done = run(with_wrong_answers(read(path)), tmp_path, **environment)
    assert time.monotonic() - started < LONGEST_NOTEBOOK
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code")
    assert not any(out.output_type == "stream" for out in tagged(done, "install")[0].outputs)
    for cell in tagged(done, "check"):
        assert "Right" in printed(cell), cell.source
    for label in ("stub", "wrong", *CASTS):
        for cell in tagged(done, label):
            raised = [(out.ename, out.evalue) for out in cell.outputs if out.output_type == "error"]
            before = done.cells[done.cells.index(cell) - 1].source
            told = f"{before}\n\n{cell.source}\n\n{cell.outputs}"
            if label in CASTS and not cell.metadata["says"]:
                assert not raised, told
                assert "Right" in printed(cell), told
            else:
                expected = "NotImplementedError" if label == "stub" else "AssertionError"
                assert [name for name, _ in raised] == [expected], told
                assert re.search(cell.metadata["says"], raised[0][1]), told
    for identity, patterns in SAID.get(path.stem[:2], {}).items():
        cell = next(cell for cell in done.cells if cell.id == identity)
        shown = printed(cell) + "".join(
            out.data.get("text/plain", "") for out in cell.outputs if "data" in out
        )
        for pattern in patterns:
            assert re.search(pattern, shown, re.DOTALL), f"{pattern}\n\n{shown}"
    if path.stem.startswith("06"):
        assert "query heads share" in "".join(map(printed, tagged(done, "info")))
        assert (tmp_path / "work" / "report.html").stat().st_size > 10_000
    if path.stem.startswith("07"):
        hunted(done)


def test_the_page_of_notebooks_and_the_readme_list_all():
    for page in ("docs/notebooks.md", "README.md"):
        listed = re.findall(r"examples/(\w+)\.ipynb", (ROOT / page).read_text("utf-8"))
        assert sorted(listed) == [path.stem for path in NOTEBOOKS], page


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stripped_and_small(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < SIZE
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
    first, second, *_ = notebook.cells
    assert "In Colab:" in first.source
    assert "What you will learn" in first.source
    assert tags(second) == ["install"]
    assert "What to take away" in notebook.cells[-1].source
    assert "Where next" in notebook.cells[-1].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_exercise_is_followed_by_its_folded_hint_and_solution_and_a_check(path):
    notebook = read(path)
    kinds = ("exercise", "hint", "solution", "check")
    found = [(index, kind) for index, cell in enumerate(notebook.cells) for kind in kinds
             if kind in tags(cell)]  # fmt: skip
    assert [kind for _, kind in found] == list(kinds) * (len(found) // 4)
    for index, kind in found:
        if kind == "exercise":
            name = name_of(notebook.cells[index])
            assert name in WRONG
            hint, solution, check = notebook.cells[index + 1 : index + 4]
            assert hint.source.startswith("<details><summary>Hint</summary>\n\n")
            assert solution.source.startswith("# @title Solution")
            assert f"if unanswered({name}):" in solution.source
            assert solution.metadata["cellView"] == "form"
            assert solution.metadata["jupyter"] == {"source_hidden": True}
            assert name in check.source
    if found:
        assert "folded *Solution* cell steps in" in notebook.cells[0].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_links_lead_somewhere(path):
    notebook = read(path)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("https://"):
            assert (EXAMPLES / target).is_file(), target
    for page in re.findall(r"`(docs/[\w.]+)`", text):
        assert (EXAMPLES.parent / page).is_file(), page
