"""The service in this process: cancelling, failures, memory, and the order in which questions come."""

import asyncio
import contextlib
import copy
import json
import threading
import time
import warnings
from concurrent.futures import CancelledError
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="dps serve needs FastAPI")

from dps.api import answer, open_asker
from dps.config import ComputeConfig
from dps.decide import RULES, Ladder
from dps.decide.features import EMBEDDING, HIDDEN, PROMPT
from dps.model import load_model
from dps.run.service import Full, Service
from dps.sampler.engine import Engine
from dps.sampler.settings import SamplerConfig
from dps.sampler.stop import open_stops
from dps.serve.app import _line, make_app
from dps.serve.asking import Front
from dps.serve.config import Limits, ServeConfig
from dps.serve.protocol import ChatAsked, Refused
from dps.serve.replies import Reply
from dps.serve.run import open_service
from tests.serve.servers import QUESTIONS, said
from tests.tokenizer_kinds import byte_level

SAMPLER = SamplerConfig(block_size=24, max_new_tokens=72, num_mh_steps=5)


@pytest.fixture(scope="module")
def model():
    return load_model("embedded")


@pytest.fixture(scope="module")
def expected(model):
    return {record.question: said(record) for record in answer(QUESTIONS[:24], model, k=2, seed=3)}


@pytest.fixture
def opened(model):
    made = []

    def open_(**settings):
        config = ServeConfig(**{"k": 2, "rows": 8} | settings).check()
        asker, service = open_service(config, model, SAMPLER)
        made.append(service)
        front = Front(asker, config, service.engine)

        def asked(questions, **fields):
            tickets = []
            for question in questions:
                body = {"model": "embedded", "messages": [{"role": "user", "content": question}], "seed": 3}
                tickets += front.tickets(ChatAsked.model_validate(body | fields))
            service.ask(tickets)
            return tickets

        return service, asked

    yield open_
    for service in made:
        service.close(finish=False)


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_cancelled_leaves_the_rows_and_the_others_are_as_they_were(opened, expected):
    service, asked = opened()
    tickets = asked(QUESTIONS[:24], stop=["zz"])
    until(lambda: service.num_open)
    for ticket in tickets[::2]:
        ticket.cancel()
    for question, ticket in list(zip(QUESTIONS, tickets, strict=False))[1::2]:
        assert said(ticket.record.result(60)) == expected[question]
    with pytest.raises(CancelledError):
        tickets[0].record.result(1)
    until(lambda: service.num_open == 0)
    until(lambda: service.engine.idle)
    assert all(users == 0 for _, users in service.engine.stops._taken.values())
    generated = sum(t.num_generated_tokens for each in tickets[1::2] for t in each.record.result().trajectories)
    assert service.account.counts["num_generated_tokens"] >= generated


def test_out_of_memory_halves_the_rows_and_loses_nothing(opened, expected, monkeypatch):
    service, asked = opened(rows=32)
    window, count = Engine._window, 0

    def failing(engine):
        nonlocal count
        count += 1
        if count in (20, 60):
            raise torch.OutOfMemoryError("no memory")
        return window(engine)

    monkeypatch.setattr(Engine, "_window", failing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tickets = asked(QUESTIONS[:24])
        for question, ticket in zip(QUESTIONS, tickets, strict=False):
            assert said(ticket.record.result(120)) == expected[question]
    assert service.engine.rows == 8


def test_what_goes_wrong_fails_what_is_sampled_and_the_next_is_answered(opened, expected, capsys):
    service, asked = opened()
    assert said(asked(QUESTIONS[1:2])[0].record.result(60)) == expected[QUESTIONS[1]]
    service._prepare, prepare = None, service._prepare  # what is asked now cannot be prepared
    broken = asked(QUESTIONS[2:3])[0]
    with pytest.raises(TypeError):
        broken.record.result(60)
    service._prepare = prepare
    assert said(asked(QUESTIONS[3:4])[0].record.result(60)) == expected[QUESTIONS[3]]
    assert "Traceback" in capsys.readouterr().err


def test_a_full_queue_takes_all_of_a_request_or_nothing(opened):
    service, asked = opened(limits=Limits(waiting=4))
    held = threading.Event()
    prepare = service._prepare
    service._prepare = lambda *given: held.wait(30) and prepare(*given)
    first = asked(QUESTIONS[:1])
    until(lambda: service.num_waiting == 0)
    second = asked(QUESTIONS[1:4])
    with pytest.raises(Full):
        asked(QUESTIONS[4:6])
    held.set()
    assert all(ticket.record.result(60) for ticket in (*first, *second))


def test_a_request_without_an_answer_gives_its_repeat_to_its_retry(model, opened):
    service, _ = opened(limits=Limits(waiting=1))
    front = Front(open_asker(model, k=1, sampler=SAMPLER), ServeConfig(), service.engine)
    body = {"model": "embedded", "messages": [{"role": "user", "content": "1+2"}], "seed": 3, "n": 2}

    def repeats(tickets):
        return [ticket.item.metadata["repeat"] for ticket in tickets]

    asked = ChatAsked.model_validate(body)
    first = front.tickets(asked)
    front.give_back(asked, first)
    first, second = front.tickets(asked), front.tickets(asked)
    assert (repeats(first), repeats(second)) == ([0, 1], [2, 3])
    front.give_back(asked, first)  # others came after them
    assert repeats(front.tickets(asked)) == [4, 5]
    with pytest.raises(Refused, match="max_tokens"):
        front.tickets(asked.model_copy(update={"max_tokens": 999}))
    named = asked.model_copy(update={"repeat": 6})
    front.give_back(named, front.tickets(named))
    assert repeats(front.tickets(asked)) == [6, 7]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_before_the_answer_begins_takes_its_question_along(model, opened, stream, caplog):
    """Nothing is sampled for nobody, and the log has nothing to say."""
    service, _ = opened()
    config = ServeConfig(k=2, rows=8)
    app = make_app(open_asker(model, k=2, sampler=SAMPLER), service, config)
    body = {"model": "embedded", "messages": [{"role": "user", "content": "1+2"}], "stream": stream, "k": 64}
    coming = iter([{"type": "http.request", "body": json.dumps(body).encode()}, {"type": "http.disconnect"}])
    path = "/v1/chat/completions"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": [(b"content-type", b"application/json")], "asgi": {"spec_version": "2.4"}}

    async def receive():
        return next(coming, {"type": "http.disconnect"})

    async def send(message):
        raise OSError

    with contextlib.suppress(Exception):
        asyncio.run(app(scope, receive, send))
    until(lambda: service.num_open + service.num_waiting == 0, 1)
    assert not caplog.records


def test_characters_of_several_tokens_and_lines_within_a_text_arrive_whole(model):
    text = "\u2028\x85é"
    assert _line({"text": text}).splitlines()[1:] == [""]
    assert json.loads(_line({"text": text}).removeprefix("data: "))["text"] == text
    tokenizer = byte_level()
    tokens = np.array(tokenizer("é🙂x東", add_special_tokens=False)["input_ids"])
    best = SimpleNamespace(tokens=tokens, token_logprob=np.zeros(len(tokens)))
    parts = {"model": replace(model, tokenizer=tokenizer), "name": "", "aggregator": "majority", "tickets": ()}
    parts |= {
        "n": 1,
        "logprobs": True,
        "responses": False,
        "stops": open_stops((), tokenizer, 330, torch.device("cpu")),
    }
    content = Reply(**parts, chat=True)._of_tokens(best)["content"]
    assert b"".join(bytes(each["bytes"]) for each in content).decode() == "é🙂x東"
    assert len(content) > 4
    assert max(Reply(**parts, chat=False)._of_tokens(best)["text_offset"]) == 3


def test_different_stop_strings_wait_for_room(opened, expected, monkeypatch):
    """Each request has strings of its own, and only two sets of them have room at a time."""
    monkeypatch.setattr("dps.serve.run.STOP_ROOM", 12)
    _, asked = opened()
    tickets = [asked([question], stop=[f"zz{number:03d}"])[0] for number, question in enumerate(QUESTIONS[:16])]
    for question, ticket in zip(QUESTIONS, tickets, strict=False):
        assert said(ticket.record.result(60)) == expected[question]


def test_questions_of_several_policies_share_the_rows(opened, model, expected):
    _, asked = opened(rows=32)
    fields = [{}, {"temperature": 0.7}, {"policy": ["plain 1", "power 1"]}, {"max_tokens": 24}]
    tickets = [asked([QUESTIONS[n]], **fields[n % 4])[0] for n in range(24)]
    for n in range(0, 24, 4):
        assert said(tickets[n].record.result(60)) == expected[QUESTIONS[n]]
        short = answer(QUESTIONS[n + 3], model, k=2, seed=3, sampler=SamplerConfig(4.0, None, 24, 24, 5))
        assert said(tickets[n + 3].record.result(60)) == said(short[0])


def test_a_rule_is_asked_about_each_question_under_its_own_seed(opened, model):
    service, _ = opened()
    asker = open_asker(model, rule=RULES["esc"], k=8, sampler=SAMPLER)
    front = Front(asker, ServeConfig(rows=8), service.engine)
    tickets = []
    for seed in (1, 2):
        body = {"model": "embedded", "messages": [{"role": "user", "content": QUESTIONS[0]}], "seed": seed}
        tickets += front.tickets(ChatAsked.model_validate(body))
    service.ask(tickets)
    for seed, ticket in zip((1, 2), tickets, strict=True):
        [alone] = answer(QUESTIONS[0], model, rule=RULES["esc"], k=8, sampler=SAMPLER, seed=seed)
        record = ticket.record.result(60)
        assert said(record) == said(alone)
        assert [(d.k, d.p_enough) for d in record.decisions] == [(d.k, d.p_enough) for d in alone.decisions]


class Looking:
    """Wants one response more the first time; looks at embedding, hidden states and prompt."""

    name, threshold, label = "looking", 0.5, "no_gain"
    calibration: ClassVar = {"seconds_per_token": 1e-3, "prefill_seconds_per_token": 1e-4}
    ladder, arms = Ladder.parse(["power 1", "power 1", "power 2"]), MappingProxyType({})
    parts, prompt_layers = frozenset({EMBEDDING, HIDDEN, PROMPT}), (4, 12)

    def predict_enough(self, features):
        assert all(f.embedding.size and f.hidden.size and f.prompt.size for f in features)
        return np.array([float(f.scalars[-1] > 1) for f in features])

    def check_model(self, identity, embedding_size=None):
        pass


def test_a_controller_sees_what_it_looks_at(model):
    alone = answer(QUESTIONS[:5], model, controller=Looking(), ladder=Looking.ladder, sampler=SAMPLER, seed=3)
    asker = open_asker(model, controller=Looking(), ladder=Looking.ladder, sampler=SAMPLER)
    engine = asker.open_rows(ComputeConfig(rows=16), 60, [replace(SAMPLER, num_mh_steps=9)], stop_room=60)
    service = Service(engine, asker.benchmark.grader, asker.prepare, most_waiting=99, eager=True)
    front = Front(asker, ServeConfig(), engine)
    body = {"model": "embedded", "seed": 3, "messages": []}
    user = [{"role": "user", "content": question} for question in QUESTIONS[:6]]
    asked = [
        ChatAsked.model_validate(body | {"messages": [each]} | ({"k": 1} if n == 5 else {}))
        for n, each in enumerate(user)
    ]
    tickets = [ticket for each in asked for ticket in front.tickets(each)]
    service.ask(tickets)
    for ticket, record in zip(tickets, alone, strict=False):
        assert said(ticket.record.result(60)) == said(record)
        assert [d.k for d in ticket.record.result().decisions] == [1, 2]
    assert tickets[5].record.result(60).k == 1
    with pytest.raises(Refused, match="changes what the policy looking was chosen for"):
        front.tickets(ChatAsked.model_validate(body | {"messages": user[:1], "alpha": 2}))
    service.close()


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}a", "leaves out what the developer"),
        (
            "{% for m in messages if m.role != 'user' %}{{ raise_exception(m.role) }}{% endfor %}a",
            r"\(developer\)",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The chat template ends")
def test_a_role_that_the_template_does_not_know_is_refused(model, opened, template, sentence):
    service, _ = opened()
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    asker = open_asker(replace(model, tokenizer=tokenizer), k=1, sampler=SAMPLER, style="text")
    front = Front(asker, ServeConfig(), service.engine)
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "1+2"}]
    with pytest.raises(Refused, match=sentence):
        front.tickets(ChatAsked.model_validate({"model": "embedded", "messages": messages}))


@pytest.mark.parametrize("template", ["none", "style"])
@pytest.mark.filterwarnings("ignore:The chat template ends")
def test_a_chat_template_renders_all_messages(model, template):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }};{% endfor %}a"
    asker = open_asker(replace(model, tokenizer=tokenizer), k=1, sampler=SAMPLER, style="text")
    engine = asker.open_rows(ComputeConfig(rows=8), 180, [replace(SAMPLER, num_mh_steps=9)])
    front = Front(asker, ServeConfig(template=template), engine)
    messages = [
        {"role": "user", "content": "1+2"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "4"},
    ]
    asked = ChatAsked.model_validate({"model": "embedded", "messages": messages})
    if template == "style":
        messages[-1]["content"] = asker.benchmark.chat_template.replace("{question}", "4")
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    [(prompt, tokens)] = front._chat(asked)
    assert (prompt, tokens) == (text, tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))
