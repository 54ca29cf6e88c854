import json
import logging
import socket
import sys
import time

import pytest

from safehead_tl.errors import SafeheadError
from safehead_tl.judges.base import Judge, Verdict, judged
from safehead_tl.judges.endpoint import EndpointJudge

KEY = "sk-not-a-real-key"
PROMPTS = ["bend a kite", "lift a boat", "mend a drum"]
RESPONSES = ["Take a clamp.", "Sorry, no.", "Use a needle."]


def completion(text):
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
    }


@pytest.fixture
def serve(pretend_api, monkeypatch):
    """Answers chat completions by a function of the question's text."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def start(reply):
        def answer(body, number):
            outcome = reply(body["messages"][-1]["content"], number)
            return outcome if isinstance(outcome, tuple) else (200, completion(outcome))

        return pretend_api(answer)

    return start


def no_if_sorry(question, number):
    return "No." if "Sorry" in question else "yes"


def test_answers_become_verdicts(serve):
    server = serve(no_if_sorry)
    judge = EndpointJudge(server.url, "judge-1", settings={"temperature": 0, "max_tokens": 5})
    assert isinstance(judge, Judge)
    assert judged(judge, PROMPTS, RESPONSES) == [
        Verdict(True, "yes"),
        Verdict(False, "No."),
        Verdict(True, "yes"),
    ]
    assert judge.judge([], []) == []
    assert len(server.requests) == 3
    questions = set()
    for path, authorization, body in server.requests:
        assert path == "/v1/chat/completions"
        assert authorization == f"Bearer {KEY}"
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge-1", 0, 5)
        questions.add(body["messages"][0]["content"])
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        assert any(prompt in question and response in question for question in questions)


def test_a_template_of_ones_own_and_the_turns_of_a_guard(serve):
    server = serve(
        lambda question, number: "fine, 9" if question == "a/b{prompt}" else "unsafe\nS1"
    )
    own = EndpointJudge(server.url, "m", "{prompt}/{response}", "fine", "poor")
    assert own.judge(["a"], ["b{prompt}"]) == [Verdict(True, "fine, 9")]
    guard = EndpointJudge(f"{server.url}/chat/completions", "m", "llama-guard")
    assert guard.judge(["a"], ["b"]) == [Verdict(True, "unsafe\nS1")]
    assert server.requests[-1][2]["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]


def test_order_and_concurrency(serve):
    def slowest_first(question, number):
        time.sleep(0.2 / number)
        return no_if_sorry(question, number)

    server = serve(slowest_first)
    responses = ["Sorry, no." if index % 3 else "Take a clamp." for index in range(8)]
    verdicts = EndpointJudge(server.url, "m", concurrency=3).judge(["bend"] * 8, responses)
    assert [verdict.success for verdict in verdicts] == [not index % 3 for index in range(8)]
    assert 2 <= server.busiest <= 3


@pytest.mark.parametrize("status", [429, 500])
def test_passing_failures_are_tried_again(serve, status):
    failure = (status, {"error": {"message": "wait a little"}})
    server = serve(lambda question, number: failure if number == 1 else "yes")
    assert EndpointJudge(server.url, "m").judge(["a"], ["b"]) == [Verdict(True, "yes")]
    assert len(server.requests) == 2


def test_lasting_failures_are_told(serve, monkeypatch):
    server = serve(lambda question, number: (503, {"error": {"message": "the oven is cold"}}))
    judge = EndpointJudge(server.url, "m", max_retries=1)
    with pytest.raises(SafeheadError, match=r"127.0.0.1:\d+/v1 .* 503: .*the oven is cold"):
        judge.judge(["a"], ["b"])
    assert len(server.requests) == 2
    monkeypatch.delenv("OPENAI_API_KEY")
    closed = serve(lambda question, number: (401, {"error": {"message": "who are you"}}))
    with pytest.raises(SafeheadError, match=r"401: .*who are you.* \(OPENAI_API_KEY is not set\)"):
        EndpointJudge(closed.url, "m").judge(["a"], ["b"])


def test_nobody_there(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(SafeheadError, match=f"{url} could not be asked: .*refused"):
        EndpointJudge(url, "m", max_retries=0).judge(["a"], ["b"])


def test_too_slow(serve):
    server = serve(lambda question, number: time.sleep(0.3) or "yes")
    with pytest.raises(SafeheadError, match=r"could not be asked: .*timed out"):
        EndpointJudge(server.url, "m", timeout=0.05, max_retries=0).judge(["a"], ["b"])


def test_unclear_answers_are_told(serve, caplog):
    server = serve(lambda question, number: "perhaps" if "Sorry" in question else "yes")
    judge = EndpointJudge(server.url, "m")
    with caplog.at_level(logging.WARNING):
        verdicts = judged(judge, PROMPTS, RESPONSES)
    assert verdicts[1] == Verdict(False, "unclear: 'perhaps'")
    assert "'endpoint:m' answered 1 of 3 times neither" in caplog.text
    with pytest.raises(SafeheadError, match="none of its 1 answers does; the first is 'perhaps'"):
        judge.judge(PROMPTS[1:2], RESPONSES[1:2])


@pytest.mark.parametrize("answer", [{"choices": []}, {"detail": "hello"}, ["yes"], "yes", None])
def test_what_is_no_chat_completion(serve, answer):
    server = serve(lambda question, number: (200, answer))
    with pytest.raises(SafeheadError, match="something else than a chat completion"):
        EndpointJudge(server.url, "m").judge(["a"], ["b"])


def test_no_content(serve):
    server = serve(lambda question, number: None if number == 1 else "yes")
    verdicts = EndpointJudge(server.url, "m", concurrency=1).judge(["a", "b"], ["c", "d"])
    assert verdicts == [Verdict(False, "unclear: ''"), Verdict(True, "yes")]


def test_no_secret_is_described_or_told(serve, monkeypatch):
    server = serve(lambda question, number: (400, {"error": {"message": "no"}}))
    url = server.url.replace("//", "//me:hidden@") + "?key=hidden"
    judge = EndpointJudge(url, "m")
    assert KEY not in json.dumps(judge.describe())
    assert "hidden" not in json.dumps(judge.describe())
    assert judge.describe()["url"] == server.url
    with pytest.raises(SafeheadError) as error:
        judge.judge(["a"], ["b"])
    assert server.requests[0][0] == "/v1/chat/completions?key=hidden"
    assert "hidden" not in str(error.value)
    assert KEY not in str(error.value)


def test_openai_is_wanted_only_when_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    judge = EndpointJudge("http://localhost:1/v1", "m")
    assert judge.name == "endpoint:m"
    with pytest.raises(SafeheadError, match=r"pip install 'safehead-tl\[endpoint\]'"):
        judge.judge(["a"], ["b"])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"url": "localhost:8000"}, "is not the address of an API"),
        ({"question": "complies"}, "'complies' is not known"),
        ({"concurrency": 0}, "must be positive"),
        ({"success_words": "no"}, "do not tell answers apart"),
    ],
)
def test_settings_that_are_refused(told, message):
    with pytest.raises(SafeheadError, match=message):
        EndpointJudge(**{"url": "http://localhost:1/v1", "model": "m", **told})
