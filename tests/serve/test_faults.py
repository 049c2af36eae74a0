"""Clients that go away, lie, crawl or come in crowds, and a server that is told to end."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import psutil
import pytest

pytest.importorskip("fastapi", reason="dps serve needs FastAPI")
openai = pytest.importorskip("openai", reason="the real client")
httpx = pytest.importorskip("httpx")

from dps.api import answer  # noqa: E402
from dps.model import load_model  # noqa: E402
from tests.commands import ROOT, dps, refused  # noqa: E402
from tests.serve.servers import QUESTION, QUESTIONS, ask, said, serving, texts  # noqa: E402

CHAT = {"model": "embedded", "messages": [{"role": "user", "content": QUESTION}]}
COMPLETION = {"model": "embedded", "prompt": "1+2="}


@pytest.fixture(scope="module")
def expected():
    return {r.question: said(r) for r in answer(QUESTIONS, load_model("embedded"), k=2, seed=3)}


@pytest.fixture(scope="module")
def server():
    with serving("--k=2", "--limits.choices=8", "--limits.request_bytes=20000", "--limits.body_s=1") as running:
        yield running


def raw(server, body, size=None):
    """Open a connection and send a request by hand; of a body of that size, if it is said to be longer."""
    where = urlsplit(server.url)
    connection = socket.create_connection((where.hostname, where.port), timeout=30)
    body = json.dumps(body).encode()
    head = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {size or len(body)}\r\n\r\n"
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n" + head.encode() + body)
    return connection


def metric(server, name):
    text = httpx.get(f"{server.url.removesuffix('/v1')}/metrics").text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")))


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_clients_that_go_away_take_their_chains_with_them(server, expected):
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(ask, server.client(), q, seed=3, responses=True) for q in QUESTIONS[:8]]
        gone = [raw(server, CHAT | {"k": 64, "seed": n, "stream": n % 2 == 0}) for n in range(50)]
        until(lambda: metric(server, "dps_questions_running") > 2)
        for connection in gone:
            connection.close()
        for question, reply in zip(QUESTIONS, others, strict=False):
            assert texts(reply.result().choices[0]) == expected[question]
    until(lambda: metric(server, "dps_questions_running") + metric(server, "dps_questions_waiting") == 0)

    def rests():
        before = metric(server, "dps_generated_tokens_total")
        time.sleep(0.3)
        return metric(server, "dps_generated_tokens_total") == before

    until(rests)  # nothing is sampled for nobody, once the steps that were under way are counted


MALFORMED = [
    (b"", 400, "JSON|required"),
    (b"{", 400, "no JSON"),
    (b"[]", 400, "JSON object"),
    (b"[" * 5000, 400, "JSON|parsing"),
    (b'{"model": "\xff"}', 400, "JSON|parsing|decode"),
    (CHAT | {"messages": []}, 400, "messages"),
    (CHAT | {"messages": "hello"}, 400, "messages"),
    (CHAT | {"messages": [{"role": "user"}]}, 400, "content"),
    (CHAT | {"messages": [{"role": "robot", "content": "x"}]}, 400, "role"),
    (CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "content"),
    (CHAT | {"messages": [*CHAT["messages"], {"role": "assistant", "content": "x"}]}, 400, "last message"),
    (CHAT | {"messages": [*CHAT["messages"] * 2]}, 400, "no chat template"),
    (CHAT | {"messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate|UTF|str"),
    (CHAT | {"messages": [{"role": "user", "content": "x", "name": "me", "refusal": None}]}, 400, "0.name"),
    (b'{"model": "embedded", "metadata": ' + b"[" * 900 + b"]" * 900 + b"}", 400, "messages"),
    (b'{"model": "embedded", "metadata": ' + b"[" * 9000 + b"]" * 9000 + b"}", 400, "messages|JSON|parsing"),
    (CHAT | {"tools": json.loads("[" * 900 + "]" * 900)}, 400, "tools"),
    (CHAT | {"model": "gpt-4"}, 404, "Expected the model embedded"),
    (CHAT | {"temperature": -1}, 400, "temperature"),
    (CHAT | {"temperature": 0.5, "alpha": 2}, 400, "plain sampling, alpha for something else"),
    (CHAT | {"alpha": 0.5}, 400, "alpha"),
    (CHAT | {"n": 0}, 400, "n: "),
    (CHAT | {"n": 9}, 400, "at most 8 choices"),
    (CHAT | {"k": 5000}, 400, "k: "),
    (CHAT | {"seed": 1.5}, 400, "seed"),
    (CHAT | {"seed": "1"}, 400, "seed"),
    (CHAT | {"stop": [""]}, 400, "stop"),
    (CHAT | {"stop": ["x" * 600]}, 400, "stop strings of less than"),
    (CHAT | {"top_p": 0.9}, 400, "top_p is not supported"),
    (CHAT | {"tools": [{"type": "function"}]}, 400, "tools is not supported"),
    (CHAT | {"wine": "red"}, 400, "Unknown field wine"),
    (CHAT | {"stream_options": {"include_usage": True}}, 400, "needs stream"),
    (CHAT | {"policy": ["hot 2"]}, 400, "names the arm hot"),
    (CHAT | {"policy": "other"}, 400, "or a list of rungs"),
    (CHAT | {"policy": ["plain 1"], "k": 2}, 400, "k and policy both"),
    (CHAT | {"num_mh_steps": 51}, 400, "num_mh_steps of at most 50"),
    (CHAT | {"style": "verse"}, 400, "style"),
    (CHAT | {"max_tokens": 73}, 400, "max_tokens of at most 72"),
    (CHAT | {"max_tokens": 20, "max_completion_tokens": 30}, 400, "differ"),
    (CHAT | {"logprobs": True, "top_logprobs": 3}, 400, "top_logprobs is not supported"),
    (CHAT | {"messages": [{"role": "user", "content": "1+" * 200}]}, 400, "together more than the 256"),
    (b"x" * 20001, 413, "at most 20,000 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "sentence"), MALFORMED, ids=range(len(MALFORMED)))
def test_what_cannot_be_meant_is_refused_in_the_protocols_form(server, body, status, sentence):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = httpx.post(f"{server.url}/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert any(each in error["message"] for each in sentence.split("|")), error
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (COMPLETION | {"prompt": [[1, 99999]]}, "token ids"),
        (COMPLETION | {"prompt": ""}, "empty"),
        (COMPLETION | {"prompt": ["1"] * 9}, "at most 8 choices"),
        (COMPLETION | {"prompt": [[1, -2]]}, "token ids"),
        (COMPLETION | {"prompt": [True]}, "prompt"),
        (COMPLETION | {"echo": True}, "prompts are not scored"),
        (COMPLETION | {"logprobs": 3}, "logprobs of 0"),
        (COMPLETION | {"messages": []}, "Unknown field messages"),
        (COMPLETION | {"best_of": 3}, "best_of"),
    ],
    ids=str,
)
def test_completions_refuse_what_they_do_not_honour(server, body, sentence):
    reply = httpx.post(f"{server.url}/completions", json=body)
    assert reply.status_code == 400
    assert sentence in reply.json()["error"]["message"]


def test_other_paths_and_methods_are_refused_in_the_same_form(server):
    assert httpx.get(f"{server.url}/nothing").json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{server.url}/chat/completions").status_code == 405
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("other")


def test_a_slow_sender_is_turned_away(server):
    with raw(server, CHAT, size=1000) as connection:
        assert b" 408 " in connection.recv(4096).splitlines()[0]


def test_a_slow_reader_holds_nobody_up(server, expected):
    body = CHAT | {"n": 8, "k": 4, "stream": True, "responses": True}
    slow = [raw(server, body) for _ in range(4)]
    try:
        for connection in slow:
            assert connection.recv(1)
        replies = [ask(server.client(timeout=60), q, seed=3, responses=True) for q in QUESTIONS[:4]]
        assert [texts(reply.choices[0]) for reply in replies] == [expected[q] for q in QUESTIONS[:4]]
        whole = slow[0].recv(1)
        while not whole.endswith(b"[DONE]\n\n\r\n0\r\n\r\n"):
            whole += slow[0].recv(100)
        assert whole.count(b'"finish_reason": "stop"') >= 1
    finally:
        for connection in slow:
            connection.close()


def test_memory_stays_flat(server):
    """Prompts that come again are kept; of nothing else is there more after more requests."""
    client, process = server.client(), psutil.Process(server.process.pid)

    def one(n):
        ask(client, f"{n % 50}+{n % 5}", temperature=0.5 + n / 1e4, max_tokens=2, stop=[f"y{n}"])

    used = []
    for first in (0, 1000, 2000):
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(one, range(first, first + 250)))
        used.append(process.memory_info().rss)
    assert used[2] - used[0] < 16 << 20


@pytest.fixture(scope="module")
def small():
    with serving("--k=2", "--rows=8", "--limits.waiting=16") as running:
        yield running


def test_a_full_queue_says_so_and_loses_nothing(small, expected):
    async def one(client, question):
        body = CHAT | {"messages": [{"role": "user", "content": question}], "seed": 3, "responses": True}
        return question, await client.post("/chat/completions", json=body)

    async def crowd():
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=small.url, timeout=120, limits=limits) as client:
            return await asyncio.gather(*(one(client, question) for question in QUESTIONS))

    replies = asyncio.run(crowd())
    full = [reply for _, reply in replies if reply.status_code == 429]
    answered = {question: reply.json()["choices"][0] for question, reply in replies if reply.status_code == 200}
    assert full
    assert answered
    assert len(full) + len(answered) == len(QUESTIONS)
    assert {(reply.json()["error"]["code"], reply.headers["retry-after"]) for reply in full} == {("queue_full", "1")}
    for question, choice in answered.items():
        assert [(r["arm"], r["index"], r["text"]) for r in choice["dps"]["responses"]] == expected[question]


def test_sigterm_finishes_what_runs_and_ends(small, expected):
    with ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(ask, small.client(), q, seed=3, responses=True) for q in QUESTIONS[:16]]
        until(lambda: metric(small, "dps_questions_running") + metric(small, "dps_questions_waiting") >= 14)
        small.process.terminate()
        time.sleep(0.2)
        code, words = small.end(timeout=120)  # to be told twice changes nothing
        for question, reply in zip(QUESTIONS, asked, strict=False):
            assert texts(reply.result().choices[0]) == expected[question]
    assert code == 0, words
    assert "everything that was asked is answered" in words
    assert "Traceback" not in words
    with pytest.raises(openai.APIConnectionError):
        ask(small.client())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--host=0.0.0.0"], "Expected a key for the address 0.0.0.0"),
        (["--host=::"], "Expected a key for the address ::"),
        (["--host=example.org"], "Expected a key for the address example.org"),
        (["--host=0.0.0.0", "--api-key=a b"], "Expected a key of printable ASCII"),
        (["--k=2", "--ladder=[plain 1]"], "k and ladder both say how far to go"),
        (["--k=0"], "k.start"),
        (["--rows=7"], "rows must be at least 8"),
        (["--port=99999"], "Expected a port from 0"),
        (["--style=verse"], "Expected a style among"),
        (["--limits.waiting=0"], "limits.waiting must be above 0"),
        (["--policy=nothing.yaml", "--k=2"], "policy says what is sampled, and so does k"),
        (["--model=./nothing"], "nothing"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused_before_a_model_loads(capsys, options, sentence, monkeypatch):
    monkeypatch.setattr("dps.model.load_model", None)
    assert sentence in refused(capsys, "serve", *options)


def test_the_settings_in_force_do_not_show_the_key():
    shown = dps("serve", "--api-key=s3cret-key", "--print_config")
    assert shown.returncode == 0, shown.stderr
    assert "api_key" in shown.stdout
    assert "s3cret" not in shown.stdout


def test_a_port_that_is_taken_is_said(server):
    port = urlsplit(server.url).port
    taken = dps("serve", f"--port={port}")
    assert taken.returncode == 2
    assert f"127.0.0.1:{port} cannot be had" in taken.stderr


@pytest.mark.slow
def test_many_requests_of_two_hundred_clients():
    """None is wrong, lost or mixed up; processor time is compared, since this machine may have other work."""
    script = [sys.executable, "scripts/serve_load.py", "--clients=200", "--requests=250", "--repeats=2", "--k=2"]
    measured = json.loads(subprocess.run(script, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    assert measured["requests"] * measured["repeats"] == 500
    assert measured["wrong, lost or mixed up"] == 0
    assert measured["the same by processor time"]["median"] > 0.8
