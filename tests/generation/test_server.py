import dataclasses
import json
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.request
from pathlib import Path

import pytest

import safehead_tl as sh
from families import QUIET
from safehead_tl.generation.batched import ENDED, Row, generate_rows
from safehead_tl.generation.decoding import Decoding
from safehead_tl.prompts.tokens import encode

PLANTED = ["L1H3", "L2H6"]
TOLD = {"template": "chat", "max_new_tokens": 20}
ALIGNED = Path(sh.__file__).parent / "data/organism/aligned"
CARD = {
    "what": "ablation",
    "source": "demo",
    "revision": None,
    "heads": PLANTED,
    "ablation": sh.UndifferentiatedAttention().describe(),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return sh.export("demo", PLANTED, tmp_path_factory.mktemp("exports") / "ablated").directory


def card(path, **changed):
    """A directory whose config says what was done to the checkpoint."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"safehead_tl": [{**CARD, **changed}]}))
    return path


def on(server, **run):
    return dataclasses.replace(QUIET, on=server, **run)


class Vllm:
    """Answers like vLLM: token ids go in, and those that the hooked model says come out."""

    def __init__(self, demo, prompts, heads=PLANTED):
        batch = encode(demo, prompts, "chat")
        variants = (tuple(map(sh.Head.parse, heads)),)
        rows = [Row(0, prompt, 0) for prompt in range(len(prompts))]
        found = generate_rows(
            demo, batch, rows, Decoding(20), variants, sh.UndifferentiatedAttention()
        )
        self.tokenizer = demo.tokenizer
        self.asked = [
            row[mask.bool()].tolist() for row, mask in zip(batch.tokens, batch.mask, strict=True)
        ]
        self.said = [row[row != ENDED].tolist() for row in found]

    def number_of(self, body):
        """Which prompt a request is of."""
        return self.asked.index(body["prompt"])

    def __call__(self, body, number):
        new = self.said[self.number_of(body)][: body["max_tokens"]]
        choice = {
            "index": 0,
            "text": " " + self.tokenizer.decode(new, skip_special_tokens=True),
            "finish_reason": "stop" if new[-1] == 2 else "length",
            **({"token_ids": new} if body.get("return_token_ids") else {}),
        }
        return 200, self.completion(choice, len(body["prompt"]), len(new))

    @staticmethod
    def completion(choice, read, new):
        usage = {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}
        return {"id": "1", "object": "text_completion", "choices": [choice], "usage": usage}


class Texts(Vllm):
    """Answers like `transformers serve`: it takes texts only, in front of which it puts a BOS."""

    def number_of(self, body):
        return self.asked.index(self.tokenizer(body["prompt"])["input_ids"])

    def __call__(self, body, number):
        if not isinstance(body["prompt"], str):
            return 400, {"detail": "prompt must be a string."}
        new = self.said[self.number_of(body)]
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        choice = {"index": 0, "text": text, "finish_reason": "stop" if new[-1] == 2 else "length"}
        return 200, self.completion(choice, len(self.asked[self.number_of(body)]), len(new))


@pytest.mark.parametrize("kind", [Vllm, Texts])
def test_answers_are_those_of_hooks(demo, harmful, exported, pretend_api, kind):
    prompts = harmful[:6]
    right, three = kind(demo, prompts), threading.Barrier(3, timeout=60)

    def answer(body, number):
        if number > 1:  # the first asks whether token ids are taken
            three.wait()
        return right(body, number)

    api = pretend_api(answer)
    server = sh.Server(api.url, str(exported), concurrency=3)
    found = sh.generate(demo, prompts, PLANTED, **TOLD, run=on(server))
    expected = sh.generate(demo, prompts, PLANTED, **TOLD, run=QUIET)
    assert (found.texts, found.tokens, found.ended) == (
        expected.texts, expected.tokens, expected.ended,
    )  # fmt: skip
    assert found.provenance.settings["served"] == [
        {"heads": PLANTED, "url": api.url, "model": str(exported)}
    ]
    assert found.provenance.forward_passes == 0
    assert {path for path, _, _ in api.requests} == {"/v1/completions"}
    assert api.busiest == 3
    for body in api.bodies[1:]:
        if kind is Vllm:
            settings = body
            assert (body["max_tokens"], body["temperature"], body["stop_token_ids"]) == (20, 0, [2])
        else:
            settings = json.loads(body["generation_config"])
            told = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": [2]}
            assert told.items() <= settings.items()
            assert body["prompt"].startswith("## query : ")
        assert settings["repetition_penalty"] == 1


def test_what_fails_is_tried_again(demo, harmful, exported, pretend_api, monkeypatch):
    waits = []
    monkeypatch.setattr("openai._base_client.time", types.SimpleNamespace(sleep=waits.append))
    right = Vllm(demo, harmful[:1])
    told = [{}, {}, {"Retry-After": "7"}, {"Retry-After": "0.5"}]
    failures = [
        (status, {}, headers) for status, headers in zip((503, 500, 429, 429), told, strict=True)
    ]

    def answer(body, number):
        return failures[number - 2] if 2 <= number <= 5 else right(body, number)

    api = pretend_api(answer)
    found = sh.generate(
        demo, harmful[:1], PLANTED, **TOLD, run=on(sh.Server(api.url, str(exported)))
    )
    assert found.tokens == ((len(right.said[0]),),)
    assert 0.37 <= waits[0] <= 0.5
    assert 0.75 <= waits[1] <= 1
    assert waits[2:] == [7, 0.5]
    few = sh.Server(pretend_api(lambda body, number: (503, {})).url, str(exported), max_retries=2)
    with pytest.raises(sh.SafeheadError, match="refused a request with status 503"):
        sh.generate(demo, harmful[:1], PLANTED, **TOLD, run=on(few))
    assert len(waits) == 6


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_answer_is_asked_for_twice(demo, harmful, exported, pretend_api, tmp_path, concurrency):
    prompts, right, broken = harmful[:8], Vllm(demo, harmful[:8]), [True]

    def answer(body, number):
        if broken[0] and body["max_tokens"] > 1 and number > 5:
            return 400, {"error": {"message": "the disk is full"}}
        return right(body, number)

    api = pretend_api(answer)
    server = sh.Server(api.url, str(exported), concurrency=concurrency)
    told = {**TOLD, "run": on(server, run_dir=tmp_path / "run")}
    with pytest.raises(sh.SafeheadError, match=r"status 400: .*the disk is full"):
        sh.generate(demo, prompts, PLANTED, **told)
    kept = [*(tmp_path / "run/pieces").iterdir()]
    assert len(kept) == 4
    assert len(api.requests) <= 5 + concurrency
    broken[0] = False
    before = len(api.requests)
    found = sh.generate(demo, prompts, PLANTED, **told)
    assert found.texts == sh.generate(demo, prompts, PLANTED, **TOLD, run=QUIET).texts
    asked = [right.number_of(body) for body in api.bodies[before + 1 :]]
    assert len(asked) == len(set(asked)) == 4
    again = sh.generate(demo, prompts, PLANTED, **told)
    assert len(api.requests) == before + 5
    assert again.texts == found.texts


def test_not_faster_than_told(demo, harmful, exported, pretend_api, monkeypatch):
    waits = []
    still = types.SimpleNamespace(monotonic=lambda: 0.0, sleep=waits.append)
    monkeypatch.setattr("safehead_tl.endpoints.time", still)
    api = pretend_api(Vllm(demo, harmful[:4]))
    server = sh.Server(api.url, str(exported), rate=4.0)
    sh.generate(demo, harmful[:4], PLANTED, **TOLD, run=on(server))
    assert sorted(waits) == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heads": ["L1H3"]}, "serves the model with L1H3 ablated, which nothing here asks for"),
        ({"heads": None}, "names no heads"),
        ({"heads": ["L1"]}, "names no heads"),
        (
            {"ablation": sh.UndifferentiatedAttention(1e-5).describe()},
            "another ablation, name='undifferentiated', epsilon=1e-05.*asked for is .*epsilon=None",
        ),
        ({"ablation": None}, "another ablation, None"),
        ({"source": "demo-base"}, "the model at hand is demo; its card names demo-base"),
        ({"revision": "0a1b"}, "load that model"),
        ({"what": "splice"}, "no card says that it was exported"),
    ],
)
def test_another_card_is_refused(demo, tmp_path, pretend_api, changed, message):
    api = pretend_api(lambda body, number: (400, {}))
    server = sh.Server(api.url, str(card(tmp_path / "served", **changed)))
    with pytest.raises(sh.SafeheadError, match=message):
        sh.generate(demo, ["bend"], PLANTED, **TOLD, run=on(server))
    assert api.requests == []


def test_what_is_served_must_be_known(demo, exported, tmp_path, pretend_api):
    api = pretend_api(Vllm(demo, ["bend"]))

    def refused(message, *served, heads=PLANTED):
        with pytest.raises(sh.SafeheadError, match=message):
            sh.generate(demo, ["bend"], heads, **TOLD, run=on(sh.Server(api.url, *served)))

    def asked(*served, heads=PLANTED, **told):
        server = sh.Server(api.url, *served, **told)
        return sh.generate(demo, ["bend"], heads, **TOLD, run=on(server)).texts

    expected = asked(str(exported))
    refused(r"Server\(\.\.\., checkpoint=DIRECTORY\)", "ablated")
    assert asked("ablated", checkpoint=exported) == expected
    api.listed = [{"id": "ablated", "root": "/srv/elsewhere"}, {"id": "demo", "root": str(ALIGNED)}]
    assert asked("ablated", checkpoint=exported) == expected
    refused("serves /srv/elsewhere, and the model at hand is demo", "ablated")
    api.listed = [{"id": "ablated", "root": str(exported)}]
    assert asked("ablated") == expected
    refused(f"serves {exported}, and not checkpoint=", "ablated", tmp_path)
    api.listed = []
    refused("has no config.json", str(tmp_path))
    (tmp_path / "config.json").write_text("[")
    refused("has no config.json that can be read", str(tmp_path))
    refused("no card says", str(ALIGNED.parent / "base"))
    refused("the model as it is, which nothing here asks for", str(ALIGNED))
    refused("L1H3 L2H6 ablated, which nothing here asks for", str(exported), heads=())
    assert asked(str(ALIGNED), heads=()) == asked("demo", heads=())


def test_a_server_that_reads_something_else(demo, harmful, exported, pretend_api):
    right = Vllm(demo, harmful[:2])

    def answering(change):
        def answer(body, number):
            status, said = right(body, number)
            change(said)
            return status, said

        return on(sh.Server(pretend_api(answer).url, str(exported)))

    for change, message in (
        (
            lambda said: said["usage"].update(prompt_tokens=said["usage"]["prompt_tokens"] + 1),
            r"read 14 tokens where prompts\[0\] has 13: .* second BOS",
        ),
        (lambda said: said.pop("usage"), "something else than a completion that counts its tokens"),
        (lambda said: said["choices"].clear(), "something else than a completion"),
        (lambda said: said["choices"][0].update(finish_reason="abort"), "broke off .*'abort'"),
    ):
        with pytest.raises(sh.SafeheadError, match=message):
            sh.generate(demo, harmful[:1], PLANTED, **TOLD, run=answering(change))


def test_refusals_are_told(demo, exported, pretend_api, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    missing = {"error": {"message": "The model does not exist"}}
    server = sh.Server(pretend_api(lambda body, number: (404, missing)).url, str(exported))
    with pytest.raises(sh.SafeheadError, match=r"status 404: .*The model does not exist"):
        sh.generate(demo, ["bend"], PLANTED, **TOLD, run=on(server))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = sh.Server(f"http://127.0.0.1:{free.getsockname()[1]}/v1", str(exported))
    with pytest.raises(sh.SafeheadError, match="could not be asked"):
        sh.generate(demo, ["bend"], PLANTED, **TOLD, run=on(nobody))
    for wrong, message in (
        ({"url": "localhost"}, "is not the address"),
        ({"rate": 0.0}, "rate=0"),
        ({"original": sh.Server("http://a/v1", "m", original=nobody)}, "has no original="),
    ):
        with pytest.raises(sh.SafeheadError, match=message):
            sh.Server(**{"url": "http://localhost:1/v1", "model": "m", **wrong})


def test_draws_are_seeded_one_by_one(demo, harmful, exported, pretend_api):
    drawn = {**TOLD, "top_k": 5, "temperature": 0.7, "samples": 2, "seed": 3}
    api = pretend_api(Vllm(demo, harmful[:2]))
    sh.generate(demo, harmful[:2], PLANTED, **drawn, run=on(sh.Server(api.url, str(exported))))
    seeds = [body["seed"] for body in api.bodies[1:]]
    assert len(set(seeds)) == 4
    assert {(body["top_k"], body["temperature"]) for body in api.bodies[1:]} == {(5, 0.7)}
    api = pretend_api(Texts(demo, harmful[:2]))
    with pytest.raises(sh.SafeheadError, match=r"Server\(\.\.\., concurrency=1\)"):
        sh.generate(demo, harmful[:2], PLANTED, **drawn, run=on(sh.Server(api.url, str(exported))))
    one = sh.Server(api.url, str(exported), concurrency=1)
    sh.generate(demo, harmful[:2], PLANTED, **drawn, run=on(one))
    assert sorted(body["seed"] for body in api.bodies[2:]) == sorted(seeds)
    settings = json.loads(api.bodies[-1]["generation_config"])
    assert (settings["do_sample"], settings["top_k"], settings["temperature"]) == (True, 5, 0.7)


def test_an_evaluation_from_two_servers_and_from_here(
    demo, harmful, exported, pretend_api, tmp_path
):
    prompts = harmful[:6]
    told = {"heads": ["L2H6", "L1H3"], "controls": 2, **TOLD}
    here = sh.evaluate(demo, prompts, **told, run=QUIET)
    ablated = pretend_api(Vllm(demo, prompts))
    plain = pretend_api(Vllm(demo, prompts, []))
    original = sh.Server(plain.url, str(ALIGNED))
    server = sh.Server(ablated.url, str(exported), original=original)
    told["run"] = on(server, run_dir=tmp_path / "run")
    found = sh.evaluate(demo, prompts, **told)
    assert found.harmful.texts == here.harmful.texts
    assert found.harmful.divergence.equal(here.harmful.divergence)
    assert (len(ablated.requests), len(plain.requests)) == (7, 7)
    assert [each["heads"] for each in found.provenance.settings["served"]] == [PLANTED, []]
    sh.evaluate(demo, prompts, **told)
    assert (len(ablated.requests), len(plain.requests)) == (7, 7)
    twice = sh.Server(plain.url, str(ALIGNED), original=sh.Server(ablated.url, str(exported)))
    with pytest.raises(sh.SafeheadError, match="original= serves the model with L1H3 L2H6 ablated"):
        sh.evaluate(demo, prompts, **{**told, "run": on(twice)})


def test_the_command_asks_servers(demo, harmful, exported, pretend_api, tmp_path):
    from typer.testing import CliRunner

    from safehead_tl.cli import app

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(harmful[:4]))
    ablated = pretend_api(Vllm(demo, harmful[:4]))
    plain = pretend_api(Vllm(demo, harmful[:4], []))
    told = ["evaluate", "demo", "--prompts", prompts, "--heads", "L1H3 L2H6", "--controls", 1,
            "--max-new-tokens", 20, "--json", tmp_path / "e.json"]  # fmt: skip
    server = ["--server", ablated.url, "--served-model", exported]
    original = ["--original-server", plain.url, "--original-model", ALIGNED]
    done = CliRunner().invoke(app, [str(each) for each in (*told, *server, *original)])
    assert done.exit_code == 0, done.output
    assert (len(ablated.requests), len(plain.requests)) == (5, 5)
    served = json.loads((tmp_path / "e.json").read_text())["provenance"]["settings"]["served"]
    assert [each["url"] for each in served] == [ablated.url, plain.url]
    for wrong, message in (
        (server[:2], "--server needs --served-model"),
        (original, "--original-server needs --server"),
        ([*server, *original[:2]], "--original-server needs --server and --original-model"),
        ([*server, "--ray"], "leave out --shard and --ray"),
    ):
        done = CliRunner().invoke(app, [str(each) for each in (*told, *wrong)])
        assert message in str(done.exception)


@pytest.mark.parametrize("name", ["ships", "sahara", "concentration", "asr_map", "last_states"])
def test_a_server_cannot_scan(demo, harmful, name):
    needed = {"concentration": {"orders": {"planted": PLANTED}}, "last_states": {"heads": PLANTED}}
    run = on(sh.Server("http://localhost:1/v1", "m"))
    with pytest.raises(sh.SafeheadError, match="it cannot ablate heads"):
        getattr(sh, name)(demo, harmful[:3], **needed.get(name, {}), run=run)


@pytest.fixture(scope="module")
def transformers_serve(exported):
    """A real server of the export, as the command starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = ["serve", exported, "--with", "transformers", "--port", str(port), "--start"]
    command = [sys.executable, "-m", "safehead_tl", *told]
    log = exported.parent / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while process.poll() is None:
            try:
                opener.open(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                time.sleep(0.2)
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def test_transformers_serve_says_what_hooks_do(demo, exported, transformers_serve, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    prompts = [*sh.load_prompts("demo/harmful")[:32], *sh.load_prompts("demo/benign")[:32]]
    told = {**TOLD, "max_new_tokens": 32}
    server = sh.Server(transformers_serve, str(exported))
    found = sh.generate(demo, prompts, PLANTED, **told, run=on(server))
    expected = sh.generate(demo, prompts, PLANTED, **told, run=QUIET)
    assert len(found.texts) == 64
    assert (found.texts, found.tokens, found.ended) == (
        expected.texts, expected.tokens, expected.ended,
    )  # fmt: skip
    assert found.texts != sh.generate(demo, prompts, **told, run=QUIET).texts
    drawn = {**told, "top_k": 5, "samples": 2}
    alone = dataclasses.replace(server, concurrency=1)
    first, again = (
        sh.generate(demo, prompts[:4], PLANTED, **drawn, run=on(alone)).texts for _ in range(2)
    )
    assert first == again
    other = sh.Server(transformers_serve, str(ALIGNED))
    with pytest.raises(sh.SafeheadError, match="Server is pinned to"):
        sh.generate(demo, prompts[:1], **told, run=on(other))
