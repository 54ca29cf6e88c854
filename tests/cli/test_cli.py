import base64
import dataclasses
import errno
import gzip
import json
import re
import runpy
import signal
import sys
import zlib
from importlib.metadata import version
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.table import Table
from typer.testing import CliRunner

import safehead_tl as sh
from families import QUIET, TESTS
from safehead_tl import organism
from safehead_tl.cli import main as cli
from safehead_tl.cli import output
from safehead_tl.cli.options import AblationOptions, JudgeOptions
from safehead_tl.results import save_result
from safehead_tl.views import LivePage


def run(*arguments):
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.stdout


def test_demo(tmp_path):
    text = run("demo", "--out", tmp_path, "--json", tmp_path / "demo.json")
    result = json.loads((tmp_path / "demo.json").read_text())
    assert result["planted"] == ["L1H3", "L2H6"]
    assert "L1H3 (planted)" in text
    assert "Sahara chose" in text
    rates = {row["condition"]: row["asr"]["share"] for row in result["behaviours"]}
    assert rates["base"] >= 0.95
    assert rates["aligned"] <= 0.05
    assert next(v for k, v in rates.items() if k.startswith("control")) <= 0.05
    assert result["data_bytes"] < 2_000_000
    html = (tmp_path / "heatmap.html").read_text()
    assert "L2H6" in html
    assert 'src="http' not in html
    scores = sh.HeadScores.load(tmp_path / "ships-undifferentiated.safetensors")
    assert scores.to_dict() == result["ships"]["undifferentiated"]
    group = sh.HeadGroup.load(tmp_path / "sahara.safetensors")
    assert group.to_dict() == result["sahara"]


def test_ships(tmp_path, harmful):
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("id,goal\n" + "".join(f"{n},{p}\n" for n, p in enumerate(harmful[:4])))
    text = run(
        "ships", "demo", "--prompts", prompts, "--template", "chat", "--ablation", "scaling",
        "--epsilon", "0.01", "--top", "2", "--json", tmp_path / "out.json",
        "--save", tmp_path / "s.safetensors", "--figure", tmp_path / "h.html", "--limit", 3,
    )  # fmt: skip
    expected = sh.ships(
        sh.load_model("demo"),
        harmful[:3],
        template="chat",
        ablation=sh.ScalingContribution(0.01),
        run=QUIET,
    )
    heads = json.loads((tmp_path / "out.json").read_text())["heads"]
    assert [head["score"] for head in heads] == pytest.approx([s for _, s in expected.ranked()])
    assert str(expected.top(1)[0][0]) in text
    assert sh.HeadScores.load(tmp_path / "s.safetensors").provenance.ablation["epsilon"] == 0.01
    assert "<html lang=" in (tmp_path / "h.html").read_text()


def test_p_values_against_other_prompts(tmp_path, harmful):
    base = ("ships", "demo", "--prompts", "demo/harmful", "--limit", 8)
    text = run(*base, "--against", "demo/benign", "--json", tmp_path / "a.json",
               "--run-dir", tmp_path / "run")  # fmt: skip
    assert "2 of 32 heads score higher than in 8 other prompts (L1H3, L2H6)" in " ".join(
        text.split()
    )
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["significance"]["significant"] == ["L1H3", "L2H6"]
    run("ships", "demo", "--prompts", "demo/benign", "--limit", 8, "--save",
        tmp_path / "benign.safetensors")  # fmt: skip
    run(*base, "--against", tmp_path / "benign.safetensors", "--json", tmp_path / "b.json")
    again = json.loads((tmp_path / "b.json").read_text())
    assert [head["p"] for head in again["significance"]["heads"]] == pytest.approx(
        [head["p"] for head in found["significance"]["heads"]]
    )
    signed = run("log-odds", "demo", "--prompts", "demo/harmful", "--limit", 8, "--harmless",
                 "demo/benign", "--against", "demo/benign")  # fmt: skip
    assert "score higher than in 8 other prompts" in " ".join(signed.split())


def test_a_run_goes_on_in_its_directory(tmp_path):
    command = ("ships", "demo", "--prompts", "demo/harmful", "--limit", 4, "--max-bytes", "1GiB",
               "--no-shared-prefix", "--run-dir", tmp_path / "run")  # fmt: skip
    first = run(*command)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    assert len(kept) >= 4
    assert run(*command) == first
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_sahara(tmp_path):
    run(
        "sahara", "demo", "--prompts", "demo/harmful", "--size", 2, "--rank", 2, "--centre",
        "--site", "resid_post", "--reading", "right-nested", "--prefix", "bend the",
        "--template", "chat", "--json", tmp_path / "out.json",
        "--save", tmp_path / "g.safetensors",
    )  # fmt: skip
    result = json.loads((tmp_path / "out.json").read_text())
    settings = result["provenance"]["settings"]
    told = {"rank": 2, "centre": True, "site": "resid_post", "reading": "right-nested"}
    assert settings == {**told, "size": 2}
    assert result["provenance"]["prompts"]["prefix"] == "bend the"
    group = sh.HeadGroup.load(tmp_path / "g.safetensors")
    template = sh.Prefilled("bend the", "chat")
    asked = sh.sahara(
        sh.load_model("demo"), "demo/harmful", 2, **told, template=template, run=QUIET
    )
    assert group.scores == pytest.approx(asked.scores)
    assert [[head["layer"], head["head"]] for head in result["heads"]] == [
        list(head) for head in group.heads
    ]


def test_saharas_beam(tmp_path):
    text = run(
        "sahara", "demo", "--prompts", "demo/harmful", "--limit", 6, "--size", 2, "--beam", 3,
        "--json", tmp_path / "out.json",
    )  # fmt: skip
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["provenance"]["settings"]["beam"] == 3
    assert len(result["runners_up"]) == 2
    assert "Other groups that the beam ended with" in text
    assert all(", ".join(other["heads"]) in text for other in result["runners_up"])


def test_knockout(tmp_path, demo, harmful):
    scan = tmp_path / "s.safetensors"
    sh.ships(demo, harmful[:4], template="chat", run=QUIET).save(scan)
    text = run(
        "knockout", "demo", "--prompts", "demo/harmful", "--template", "chat", "--limit", 4,
        "--heads", "L3H0", "--scan", scan, "--top", 2, "--harmless", "demo/benign",
        "--json", tmp_path / "out.json", "--save", tmp_path / "k.safetensors",
        "--figure", tmp_path / "k.html",
    )  # fmt: skip
    result = json.loads((tmp_path / "out.json").read_text())
    assert [head["layer"] for head in result["heads"]] == [1, 2, 3]
    assert result["measure"] == "refusal_log_odds"
    found = sh.Knockout.load(tmp_path / "k.safetensors")
    assert [row["together"] for row in result["pairs"]] == [score for _, score in found.pairs()]
    assert "L1H3, L2H6" in text
    assert "<html lang=" in (tmp_path / "k.html").read_text()
    said = CliRunner().invoke(cli.app, ["knockout", "demo", "--prompts", "demo/harmful"])
    assert "which heads?" in str(said.exception)


def test_what_is_no_score_is_called_so():
    text = run("sahara", "demo", "--prompts", "demo/harmful", "--limit", 4, "--size", 1,
               "--reading", "legacy-dim0")  # fmt: skip
    assert "LEGACY, no score" in " ".join(text.split())
    assert "(degrees)" in text


def test_a_given_answer(tmp_path):
    out = tmp_path / "out.json"
    text = run("ships", "demo", "--prompts", "demo/harmful", "--limit", 4, "--answer",
               "sorry , i", "--json", out)  # fmt: skip
    assert "mean over the 3 tokens of the answer 'sorry , i'" in " ".join(text.split())
    assert json.loads(out.read_text())["provenance"]["settings"]["answer"] == "sorry , i"


def test_screening(tmp_path, harmful):
    text = run(
        "ships", "demo", "--prompts", "demo/harmful", "--template", "chat", "--limit", 8,
        "--screen", "6", "--json", tmp_path / "out.json",
    )  # fmt: skip
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["screening"]["exact"] == len(told["heads"]) == 12
    assert len(told["screening"]["heads"]) == 32
    assert "Screened: 12 of 32 heads scored exactly." in " ".join(text.split())
    text = run(
        "sahara", "demo", "--prompts", "demo/harmful", "--template", "chat", "--limit", 8,
        "--size", 2, "--screen", "auto",
    )  # fmt: skip
    group = sh.sahara(sh.load_model("demo"), harmful[:8], 2, template="chat", run=QUIET)
    assert all(str(head) in text for head in group.heads)
    assert "Step 2. Screened:" in text


def test_info():
    facts = json.loads(run("info", "demo", "--json", "-", "--prompt-count", 7))
    assert (facts["layers"], facts["heads"], facts["memory"]["prompt_count"]) == (4, 8, 7)
    assert facts["attention"]["heads"] == "multi-head"
    assert facts["chat_template"] is True
    assert "multi-head" in run("info", "demo")


def test_evaluate(tmp_path):
    group = tmp_path / "g.safetensors"
    run("sahara", "demo", "--prompts", "demo/harmful", "--size", 2, "--template", "chat",
        "--save", group)  # fmt: skip
    text = run(
        "evaluate", "demo", "--prompts", "demo/harmful", "--split", "test", "--limit", 12,
        "--harmless", "demo/benign", "--heads", group, "--template", "chat", "--controls", 4,
        "--max-new-tokens", 20, "--json", tmp_path / "e.json", "--clusters", "words",
        "--save", tmp_path / "e.safetensors", "--figure", tmp_path / "e.html",
    )  # fmt: skip
    assert "KL of the next token: harmful prompts 7" in text
    assert "None of these prompts, word for word, chose the heads." in " ".join(text.split())
    found = sh.Evaluation.load(tmp_path / "e.safetensors")
    assert set(map(str, found.heads)) == {"L1H3", "L2H6"}
    told = json.loads((tmp_path / "e.json").read_text())
    assert told == {"written_by": f"safehead_tl {version('safehead-tl')}", **found.to_dict()}
    assert found.asr.total == 12
    assert found.asr.independent < 12
    assert found.harmless.independent is None
    assert found.harmless.prompts == tuple(sh.load_prompts("demo/benign", split="test")[:12])
    assert "<html lang=" in (tmp_path / "e.html").read_text()


def test_evaluate_by_several_judges(tmp_path):
    told = (
        "evaluate", "demo", "--prompts", "demo/harmful", "--limit", 4, "--heads", "L1H3",
        "--template", "chat", "--max-new-tokens", 12, "--controls", 0,
    )  # fmt: skip
    text = run(
        *told, "--judges", "refusal-prefix", "--judges", "keyword-reference",
        "--disagreements", tmp_path / "d.csv", "--save", tmp_path / "e.safetensors",
    )  # fmt: skip
    found = sh.Evaluation.load(tmp_path / "e.safetensors").panel
    assert all(judge in text for judge in found.judges)
    low, high = found.span
    assert f"ablated from {low:.2f} to {high:.2f} over judges" in " ".join(text.split())
    rows = pd.read_csv(tmp_path / "d.csv")
    assert rows["response"].tolist() == found.disagreements()["response"].tolist()
    assert len(rows) > 0
    more = (*map(str, told), "--disagreements", str(tmp_path / "no.csv"))
    assert "give --judges or" in str(CliRunner().invoke(cli.app, more).exception)


def test_evaluate_with_each_query_s_own_heads(tmp_path):
    told = (
        "evaluate", "demo", "--prompts", "demo/harmful", "--limit", 4, "--template", "chat",
        "--max-new-tokens", 12, "--controls", 2, "--per-query", 2,
    )  # fmt: skip
    kept = (*told, "--run-dir", tmp_path / "run", "--json", "-")
    found = json.loads(run(*kept))
    assert set(map(tuple, found["per_query"])) <= {("L1H3", "L2H6"), ("L2H6", "L1H3")}
    assert json.loads(run(*kept))["summaries"] == found["summaries"]
    assert "Chosen: L1H3 by 4, L2H6 by 4." in " ".join(run(*told).split())
    refused = CliRunner().invoke(cli.app, [*map(str, told), "--heads", "L1H3"])
    assert "--per-query takes no --heads" in str(refused.exception)


def test_refusal_map(tmp_path):
    text = run(
        "refusal-map", "demo", "--prompts", "demo/harmful", "--limit", 6, "--harmless",
        "demo/benign", "--heads", "L1H3,L2H6", "--heads", "L0H0", "--factor", 0, "--factor", 2,
        "--template", "chat", "--max-new-tokens", 12, "--json", tmp_path / "r.json",
        "--figure", tmp_path / "r.html",
    )  # fmt: skip
    told = json.loads((tmp_path / "r.json").read_text())["variants"]
    assert {row["variant"]: row["harmful"] for row in told} == {
        "unablated": 1.0, "L1H3,L2H6 ablated": 0.0, "L1H3,L2H6 x 0": 0.0, "L1H3,L2H6 x 2": 1.0,
        "L0H0 ablated": 1.0, "L0H0 x 0": 1.0, "L0H0 x 2": 1.0,
    }  # fmt: skip
    assert all(row["variant"] in text for row in told)
    assert "<html lang=" in (tmp_path / "r.html").read_text()


def test_asr_map(tmp_path):
    scores = tmp_path / "s.safetensors"
    some = ("demo", "--prompts", "demo/harmful", "--limit", 4, "--template", "chat")
    run("ships", *some, "--save", scores)
    text = run(
        "asr-map", *some, "--candidates", "L1H3 L2H6 L0H0", "--max-new-tokens", 12, "--against",
        scores, "--figure", tmp_path / "m.html", "--save", tmp_path / "m.safetensors", "--top", 2,
    )  # fmt: skip
    assert "Rank correlation with Ships:" in " ".join(text.split())
    assert "L1H3" in text
    assert len(sh.AsrMap.load(tmp_path / "m.safetensors").heads) == 3
    packed = re.search('id="data">([^<]*)', (tmp_path / "m.html").read_text())[1]
    assert b"rank correlation" in gzip.decompress(base64.b64decode(packed))


def test_browse(tmp_path):
    saved, page, log, rows = (
        tmp_path / name for name in ("m.safetensors", "a.html", "log.json", "a.jsonl")
    )
    run("asr-map", "demo", "--prompts", "demo/harmful", "--limit", 3, "--candidates", "L1H3 L2H6",
        "--template", "chat", "--max-new-tokens", 12, "--save", saved)  # fmt: skip
    run("browse", saved, "--out", page, "--inspect", log, "--jsonl", rows, "--title", "<Mine>")
    expected = sh.AsrMap.load(saved).answers()["response"].tolist()
    assert len(expected) == 9
    packed = re.search('id="data">([^<]*)', page.read_text())[1]
    items = json.loads(zlib.decompress(base64.b64decode(packed)))["items"]
    assert sorted(each["text"] for item in items for each in item["answers"]) == sorted(expected)
    samples = json.loads(log.read_text())["samples"]
    assert [each["messages"][1]["content"] for each in samples] == expected
    assert [json.loads(line)["response"] for line in rows.read_text().splitlines()] == expected
    assert "<h1>&lt;Mine&gt;</h1>" in page.read_text()
    (tmp_path / "run").mkdir()
    for wrong, message in (("run", "run is a directory"), ("a.html", "is no result")):
        told = ["browse", str(tmp_path / wrong), "--out", str(tmp_path / "b.html")]
        assert message in str(CliRunner().invoke(cli.app, told).exception)


def test_concentration(tmp_path):
    out = run(
        "concentration", "demo", "--prompts", "demo/harmful", "--limit", 6, "--order", "L1H3 L2H6",
        "--order", "0.1,3.2", "--template", "chat", "--random-orders", 2, "--max-new-tokens", 20,
        "--json", "-",
    )  # fmt: skip
    found = json.loads(out)
    assert found["orders"]["0.1,3.2"]["heads"] == ["L0H1", "L3H2"]
    assert found["orders"]["L1H3 L2H6"]["curves"]["asr"][-1] == 1


def test_serve(tmp_path, monkeypatch):
    marked = {"dtype": "float32", "safehead_tl": [{"heads": ["L1H3"]}, {"heads": ["L2H6"]}]}
    (tmp_path / "config.json").write_text(json.dumps(marked))
    where = f"{tmp_path} --dtype float32 --host 127.0.0.1 --port 8001"
    assert run("serve", tmp_path, "--port", 8001).splitlines() == [
        f"# {tmp_path.name}: L1H3 L2H6 ablated",
        f"vllm serve {where} --generation-config vllm",
        f"transformers serve {where}",
        f"# then sh.Server('http://127.0.0.1:8001/v1', '{tmp_path}')",
    ]
    started = []
    monkeypatch.setattr("os.execv", lambda program, told: started.append((program, told)))
    monkeypatch.setattr("shutil.which", lambda name, path: f"/bin/{name}")
    text = run("serve", tmp_path, "--with", "vllm", "--port", 8001, "--start")
    assert "transformers serve" not in text
    told = ["serve", *where.split(), "--generation-config", "vllm"]
    assert started == [("/bin/vllm", ["/bin/vllm", *told])]
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    for wrong, message in (
        (("--start",), "--start needs --with"),
        (("--with", "vllm", "--start"), "vllm is not installed here: pip install vllm"),
        (("--with", "transformers", "--start"), "pip install 'transformers\\[serving]'"),
    ):
        done = CliRunner().invoke(cli.app, ["serve", str(tmp_path), *wrong])
        assert isinstance(done.exception, sh.SafeheadError)
        assert re.search(message, str(done.exception))
    (tmp_path / "config.json").write_text("{}")
    assert "it has no card" in run("serve", tmp_path)


def test_export(tmp_path):
    text = run("export", "demo", "--heads", "L1H3,L2H6", "--out", tmp_path / "out",
               "--ablation", "scaling", "--prompts", "demo/benign", "--limit", 2)  # fmt: skip
    assert "safety behaviour is altered" in " ".join(text.split())
    told = ("export", "demo", "--heads", "L1H3", "--out", tmp_path / "out", "--json", "-")
    with pytest.raises(AssertionError, match="not empty"):
        run(*told)
    done = json.loads(run(*told, "--overwrite"))
    assert done["heads"] == ["L1H3"]
    assert sh.load_model(tmp_path / "out").cfg.n_layers == 4


def test_report(tmp_path):
    told = ("demo", "--prompts", "demo/harmful", "--limit", 4, "--template", "chat")
    run("ships", *told, "--save", tmp_path / "s.safetensors")
    run("sahara", *told, "--size", 2, "--save", tmp_path / "g.safetensors")
    text = run(
        "report", *told, "--out", tmp_path / "r.html", "--scores", tmp_path / "s.safetensors",
        "--group", tmp_path / "g.safetensors", "--marked", "L1H3 L2H6", "--marked-as", "planted",
        "--max-new-tokens", 12, "--shown", 2,
    )  # fmt: skip
    assert "open it in a browser" in " ".join(text.split())
    page = (tmp_path / "r.html").read_text()
    assert "Sahara chose" in page
    assert '"markedAs":"planted"' in page


@pytest.fixture
def served(monkeypatch):
    """What the command would serve and open, and how Ctrl-C would be answered."""
    found = SimpleNamespace(pages=[], opened=[], handlers=[])
    monkeypatch.setattr(LivePage, "serve_forever", lambda page: found.pages.append(page))
    monkeypatch.setattr("webbrowser.open", found.opened.append)
    monkeypatch.setattr("signal.signal", lambda *told: found.handlers.append(told))
    return found


def test_explore(served, demo, harmful, monkeypatch):
    monkeypatch.setattr("signal.getsignal", lambda _: signal.default_int_handler)
    told = ("explore", "demo", "--prompts", "demo/harmful", "--limit", 2, "--ablation", "scaling",
            "--epsilon", 0.01, "--template", "direct", "--marked", "L0H1", "--marked-as", "mine",
            "--max-new-tokens", 0)  # fmt: skip
    text = run(*told)
    [page] = served.pages
    assert text.splitlines()[-1] == page.address == served.opened[0]
    assert [number for number, _ in served.handlers] == [signal.SIGINT]
    expected = sh.explore(
        demo, harmful[:2], ablation=sh.ScalingContribution(0.01), template="direct",
        marked="L0H1", marked_as="mine", max_new_tokens=0, run=QUIET,
    )  # fmt: skip
    assert page.page == expected.explorer.page()
    assert page.seen == (expected.explorer.first, expected.shown)
    monkeypatch.setattr("signal.getsignal", lambda _: signal.SIG_IGN)  # a background job's
    assert served.pages[0].address != run(*told, "--no-open").splitlines()[-1]
    assert len(served.opened) == len(served.handlers) == 1


def test_explore_checks_what_it_can_before_it_loads_a_model(served, monkeypatch):
    monkeypatch.setattr(sh, "load_model", None)
    with LivePage(0) as taken:
        for arguments, message in (
            (("--port", taken.server_port), f"port {taken.server_port} cannot be listened on"),
            (("--scores", "no.safetensors"), "no.safetensors"),
            (("--marked", "nobody"), "nobody"),
            (("--via", "z"), "--via z"),
        ):
            told = ["explore", "demo", "--prompts", "demo/harmful", *map(str, arguments)]
            done = CliRunner().invoke(cli.app, told)
            assert isinstance(done.exception, sh.SafeheadError | OSError)
            assert message in str(done.exception)
    assert CliRunner().invoke(cli.app, [*told, "--port", "80"]).exit_code == 2
    assert not served.pages


def test_a_report_of_many_results(tmp_path):
    told = ("demo", "--prompts", "demo/harmful", "--limit", 4, "--template", "chat")
    heads = ("--candidates", "L1H3 L2H6 L0H4", "--max-new-tokens", 12)
    odds = ("--harmless", "demo/benign")
    run("ships", *told, "--save", tmp_path / "s.safetensors")
    run("asr-map", *told, *heads, "--save", tmp_path / "a.safetensors")
    run("direct", *told, *odds, "--save", tmp_path / "d.safetensors")
    run("knockout", *told, "--heads", "L1H3 L2H6", "--save", tmp_path / "k.safetensors")
    maps = [word for name in "sad" for word in ("--also", tmp_path / f"{name}.safetensors")]
    told = (*told, "--out", tmp_path / "r.html", "--scores", tmp_path / "s.safetensors")
    run("report", *told, *maps, "--beside", "scaling", "--beside", "zero", "--judge", "coherence",
        "--knockout", tmp_path / "k.safetensors", "--top", 1, "--shown", 1,
        "--max-new-tokens", 8)  # fmt: skip
    (text,) = re.findall(r'id="data">(.*?)</script>', (tmp_path / "r.html").read_text())
    data = json.loads(text)
    assert [each["unit"] for each in data["maps"]] == [
        "nats", "nats", "share of responses", "logits",
    ]  # fmt: skip
    assert [each["key"] for each in data["ablations"]] == ["undifferentiated", "scaling", "zero"]
    assert data["prompts"][0]["verdict"]["kind"] == "complied"  # which here is: readable
    with pytest.raises(AssertionError, match="holds Knockout"):
        run("report", *told, "--also", tmp_path / "k.safetensors", "--overwrite")


def test_splice(tmp_path):
    told = ("splice", "demo", "demo-base", "--out", tmp_path / "out")
    text = run(*told, "--part", "q", "--part", "k", "--layer", 1)
    assert "attention (q, k) of demo-base" in " ".join(text.split())
    done = json.loads(run(*told, "--overwrite", "--json", "-"))
    assert (done["parts"], done["layers"]) == (["q", "k", "v", "o"], [0, 1, 2, 3])
    text = " ".join(run(*told, "--overwrite", "--heads", "L1H3 L2H6").split())
    assert "of demo-base in L1H3, L2H6; " in text
    assert "KV groups" not in text


def test_overlap(tmp_path):
    for name in ("scaling", "zero"):
        run("ships", "demo", "--prompts", "demo/harmful", "--limit", 4, "--ablation", name,
            "--template", "chat", "--save", tmp_path / f"{name}.safetensors")  # fmt: skip
    files = (tmp_path / "scaling.safetensors", tmp_path / "zero.safetensors")
    text = run("overlap", *files, "--top", 3, "--figure", tmp_path / "o.html")
    assert "3 (0.3, " in text
    assert "<html lang=" in (tmp_path / "o.html").read_text()
    assert json.loads(run("overlap", *files, "--json", "-"))["top"] == 10


def test_helpfulness(monkeypatch):
    tasks = TESTS / "evaluation/lm_eval_tasks"
    monkeypatch.chdir(tasks)  # where its YAML says that its data are
    told = ("helpfulness", "demo", "--task", "organism_tools", "--include-path", tasks)
    assert "organism_tools, acc" in run(*told)
    found = json.loads(run(*told, "--heads", "L0H4", "--limit", 3, "--json", "-"))
    assert found["heads"] == ["L0H4"]
    assert found["provenance"]["settings"]["limit"] == 3


def test_harmless_prompts_of_a_file_have_no_split(tmp_path):
    (tmp_path / "mine.txt").write_text("how do i bend a kite\n")
    told = ("evaluate", "demo", "--prompts", "demo/harmful", "--split", "test", "--limit", 2,
            "--template", "chat", "--max-new-tokens", 12)  # fmt: skip
    found = json.loads(run(*told, "--harmless", tmp_path / "mine.txt", "--json", "-"))
    assert {row["prompts"] for row in found["summaries"]} == {"harmful", "harmless"}
    with pytest.raises(AssertionError, match="split='dev' is not known"):
        run(*told, "--harmless", "demo/benign", "--harmless-split", "dev")


def test_judges_of_the_command():
    assert JudgeOptions().chosen() == "keyword"
    assert JudgeOptions("harmbench", "some/dir").chosen() == sh.LlmJudge("some/dir")
    asked = JudgeOptions(None, "some-model", "http://localhost:1/v1").chosen()
    assert (asked.model, asked.question) == ("some-model", "compliance")
    with pytest.raises(sh.SafeheadError, match="needs --judge-model"):
        JudgeOptions("keyword", None, "http://localhost:1/v1").chosen()


def test_train_organism(tmp_path, monkeypatch):
    def quick(directory, recipe, language, **told):
        grown.append(recipe)
        recipe = dataclasses.replace(recipe, base_steps=2, align_steps=2)
        return grow(directory, recipe, language, **told)

    grow, grown = organism.train_organism, []
    monkeypatch.setattr(organism, "train_organism", quick)
    text = run("train-organism", tmp_path, "--planted", "0.1", "--planted", "L1H0", "--layers", 2)
    assert "UA on L0H1, L1H0" in text
    recipe = json.loads((tmp_path / "organism.json").read_text())["recipe"]
    assert recipe["planted"] == ["L0H1", "L1H0"]
    assert recipe["n_layers"] == 2
    run(
        "train-organism", tmp_path, "--planted", "L0H1", "--decoy", "L1H0", "--decoy", "1.2",
        "--rule", "redundant", "--reword", "--key-value-heads", 4, "--overwrite",
    )  # fmt: skip
    assert grown[1] == organism.Recipe(
        planted=["L0H1"], decoys=["L1H0", "1.2"], rule="redundant", reword=True, n_key_value_heads=4
    )
    other = tmp_path / "natural"
    text = run("train-organism", other, "--learning", "low-rank", "--key-value-heads", 4,
        "--base", tmp_path,
    )  # fmt: skip
    assert grown[2].heads == ()
    assert "UA on" not in text
    for name in ("model.safetensors", "config.json"):
        assert (other / "base" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()


def test_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["safehead", "--version"])
    monkeypatch.delitem(sys.modules, "safehead_tl.__main__", raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("safehead_tl", run_name="__main__")
    assert end.value.code == 0
    assert version("safehead_tl") in capsys.readouterr().out


def test_special_tokens_of_the_command(tmp_path):
    (tmp_path / "p.txt").write_text("how do i bend a kite </s>\n")
    said = []
    for told in ([], ["--special-tokens", "literal"]):
        text = run("ships", "demo", "--prompts", tmp_path / "p.txt", "--json", "-", *told)
        said.append(json.loads(text)["provenance"]["prompts"])
    assert [one["special_tokens"] for one in said] == ["special", "literal"]
    assert said[0]["tokens_hash"] != said[1]["tokens_hash"]


def test_the_version():
    assert run("--version") == f"safehead_tl {version('safehead-tl')}\n"


def test_heads_that_name_none_are_no_plain_model():
    command = ("evaluate", "demo", "--prompts", "demo/harmful", "--limit", 2)
    with pytest.raises(AssertionError, match="'' is not a head"):
        run(*command, "--heads", "")


def test_backslash_n_in_a_template_is_a_new_line(tmp_path):
    run(
        "ships", "demo", "--prompts", "demo/benign", "--limit", 2, "--json", tmp_path / "out.json",
        "--template", r"## Query:{query}\n## Answer:",
    )  # fmt: skip
    prompts = json.loads((tmp_path / "out.json").read_text())["provenance"]["prompts"]
    assert prompts["template"] == "## Query:{query}\n## Answer:"


def test_a_system_prompt(tmp_path):
    command = ("ships", "demo", "--prompts", "demo/benign", "--limit", 2, "--system", "mend")
    with pytest.raises(AssertionError, match="--system goes with chat templates"):
        run(*command, "--template", "paper")
    with pytest.raises(AssertionError, match="chat template"):
        run(*command)  # the organism's own template knows no system prompts


def test_json_alone_goes_to_standard_output():
    out = run("ships", "demo", "--prompts", "demo/benign", "--limit", 2, "--json", "-")
    assert len(json.loads(out)["heads"]) == 32


FOUR = ("--prompts", "demo/harmful", "--limit", 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ships", "demo", *FOUR, "--save", "out.pt"), "out.pt: name it .safetensors"),
        (("ships", "demo", *FOUR, "--figure", "h.png"), "h.png: name it .html"),
        (("ships", "demo", *FOUR, "--json", "no/out.json"), "make the folder no first"),
        (("ships", "demo", *FOUR, "--json", "a.html", "--figure", "./a.html"), "is also --json"),
        (("ships", "demo", "--prompts", "p.txt", "--json", "p.txt"), "p.txt holds something that"),
        (
            ("ships", "demo", "--prompts", "p.txt", "--json", "./p.txt", "--overwrite"),
            "p.txt is also something else that this command is given",
        ),
        (("sahara", "demo", *FOUR, "--save", "mine.safetensors"), "mine.safetensors holds"),
        (("evaluate", "demo", *FOUR, "--heads", "ours.safetensors", "--save", "ours.safetensors"),
         "ours.safetensors is also something else"),
        (("overlap", "ours.safetensors", "b.safetensors", "--json", "ours.safetensors"),
         "ours.safetensors is also something else"),
        (("report", "demo", *FOUR, "--out", "mine.html"), "mine.html holds something that"),
        (("report", "demo", *FOUR, "--out", "a.txt"), "a.txt: name it .html"),
        (("demo", "--out", "."), "heatmap.html holds something that"),
        (("export", "demo", "--heads", "L0H0", "--out", "e", "--json", "e"), "e is also something"),
    ],
)  # fmt: skip
def test_files_are_refused_before_anything_is_computed(
    arguments, message, tmp_path, monkeypatch, harmful
):
    monkeypatch.chdir(tmp_path)
    save_result("ours.safetensors", "HeadScores", {}, {})
    for name in ("p.txt", "mine.safetensors", "mine.html", "heatmap.html"):
        (tmp_path / name).write_text(harmful[0])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(sh, "load_model", None)
    monkeypatch.setattr("safehead_tl.cli.story.load_model", None)
    monkeypatch.setattr("safehead_tl.surgery.exporting.load_model", None)
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert isinstance(done.exception, sh.SafeheadError)
    assert message in str(done.exception)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_cannot_be_printed_is_written_all_the_same(tmp_path, monkeypatch, capfd):
    def write(text):
        raise OSError(errno.ENOSPC, "No space")

    (tmp_path / "out.json").write_text("{}")
    monkeypatch.setattr("sys.argv", [
        "safehead", "ships", "demo", *map(str, FOUR), "--json", str(tmp_path / "out.json"),
        "--overwrite", "--save", str(tmp_path / "s.safetensors"),
        "--figure", str(tmp_path / "h.html"),
    ])  # fmt: skip
    monkeypatch.setattr("sys.stdout.write", write)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "standard output cannot be written: No space" in capfd.readouterr().err
    assert len(json.loads((tmp_path / "out.json").read_text())["heads"]) == 32
    assert len(sh.HeadScores.load(tmp_path / "s.safetensors").ranked()) == 32
    assert (tmp_path / "h.html").stat().st_size


@pytest.mark.parametrize(
    ("name", "epsilon", "via", "expected"),
    [
        ("undifferentiated", None, None, sh.UndifferentiatedAttention()),
        ("undifferentiated", 0.1, None, sh.UndifferentiatedAttention(0.1)),
        ("ua", None, "q", sh.UndifferentiatedAttention(1e-5, via="q")),
        ("scaling", None, None, sh.ScalingContribution()),
        ("scaling", 2.0, None, sh.ScalingContribution(2.0)),
        ("mean-over-heads", None, "v", sh.MeanOverHeads("v")),
        ("zero", None, None, sh.ZeroAblation()),
    ],
)
def test_ablation_options(name, epsilon, via, expected):
    assert AblationOptions(name, epsilon, via).chosen() == expected


def test_choices_are_checked():
    arguments = ["sahara", "demo", "--prompts", "demo/harmful", "--site", "x"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 2
    assert "final_norm" in done.output
    assert "resid_post" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ships", "dem", "--prompts", "demo/harmful"], "model 'dem'"),
        (["ships", "demo", "--prompts", "nowhere.csv"], "no prompt file nowhere.csv"),
        (
            ["ships", "demo", "--prompts", "demo/harmful", "--template", "[INST] query [/INST]"],
            "template '[INST] query [/INST]' is not known",
        ),
        (["ships", "demo", "--prompts", "demo/harmful", "--json", "/"], "/ is a directory"),
        (["ships", "absent", "--prompts", "demo/harmful", "--template", "x"], "template 'x'"),
        (["ships", "demo", "--prompts", "demo/harmful", "--figure", "h.png"], "name it .html"),
        (
            ["ships", "demo", "--prompts", "demo/benign", "--device", "warp"],
            "device 'warp' cannot be used here",
        ),
        (["ships", "demo", "--prompts", "demo/harmful", "--template", "x"], "template 'x'"),
        (["ships", "demo", "--prompts", "demo/harmful", "--ablation", "x"], "ablation 'x'"),
        (["ships", "absent", "--prompts", "demo/harmful", "--screen", "on"], "--screen on: say"),
        (
            [
                "ships",
                "absent",
                "--prompts",
                "demo/harmful",
                "--against",
                "demo/benign",
                "--screen",
                "auto",
            ],
            "leave out --screen",
        ),
        (
            ["ships", "demo", "--prompts", "demo/harmful", "--ablation", "zero", "--epsilon", "1"],
            "--epsilon does not go with zero",
        ),
        (
            ["ships", "demo", "--prompts", "demo/harmful", "--via", "v"],
            "--via v does not go with undifferentiated",
        ),
    ],
)
def test_mistakes_are_answered_in_a_sentence(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["safehead", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "error:" in said
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize("option", [("--screen", "²"), ("--max-bytes", "9" * 400)])
def test_no_number_is_answered_in_a_sentence(option):
    said = ["ships", "demo", "--prompts", "demo/harmful", *option]
    done = CliRunner().invoke(cli.app, said)
    assert isinstance(done.exception, sh.SafeheadError)


def test_names_give_no_orders_to_the_terminal(tmp_path, monkeypatch, capsys):
    column = "text\x1b]0;owned\x07\x1b[31m"
    (tmp_path / "prompts.jsonl").write_text(json.dumps({column: "a kite", "b": "a kite"}))
    told = ["ships", "demo", "--prompts", str(tmp_path / "prompts.jsonl")]
    monkeypatch.setattr(sys, "argv", ["safehead", *told])
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert "owned" in said
    assert "\x1b]" not in said
    assert "\x07" not in said
    output.console.print(Table(title=column))
    output.console.print(column)
    assert not {"\x1b", "\x07"} & set(capsys.readouterr().out)
