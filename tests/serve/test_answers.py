"""What a server answers: the real client, sync and async, whole and streamed; a real process, the embedded model."""

import asyncio
from functools import partial

import pytest

pytest.importorskip("fastapi", reason="dps serve needs FastAPI")
openai = pytest.importorskip("openai", reason="the real client")
httpx = pytest.importorskip("httpx")

from dps.api import answer  # noqa: E402
from dps.model import load_model  # noqa: E402
from dps.sampler.arms import Arm  # noqa: E402
from dps.sampler.settings import SamplerConfig  # noqa: E402
from tests.serve.servers import QUESTION, QUESTIONS, ask, said, serving, texts  # noqa: E402

SAMPLER = SamplerConfig(block_size=24, max_new_tokens=72, num_mh_steps=5)
KEY = "s3cret-key"


@pytest.fixture(scope="module")
def model():
    return load_model("embedded")


@pytest.fixture(scope="module")
def server():
    limits = ("--limits.request_bytes=4000", "--limits.requests=8")
    with serving("--k=4", "--rows=16", *limits, DPS_API_KEY=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return server.client(api_key=KEY)


def test_an_answer_is_that_of_dps_answer_under_its_seed(client, model):
    reply = ask(client, seed=7, responses=True)
    [record] = answer(QUESTION, model, k=4, seed=7)
    [choice] = reply.choices
    assert texts(choice) == said(record)
    best = max(record.trajectories, key=lambda t: (t.answer == record.answer, t.base_logprob))
    assert choice.message.content == best.text
    assert choice.dps["answer"] == record.answer
    assert (choice.finish_reason, choice.dps["k"], choice.dps["seed"]) == ("stop", 4, 7)
    assert [r["class"] for r in choice.dps["responses"]] == [t.answer_class for t in record.trajectories]
    assert reply.usage.prompt_tokens == record.num_prompt_tokens
    assert reply.usage.completion_tokens == len(best.tokens)
    assert reply.usage.generated_tokens == sum(t.num_generated_tokens for t in record.trajectories)


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"k": 2}, {"k": 2}),
        ({"k": 3, "alpha": 2.0}, {"k": 3, "sampler": SamplerConfig(2.0, None, 24, 72, 5)}),
        ({"num_mh_steps": 9}, {"k": 4, "sampler": SamplerConfig(block_size=24, max_new_tokens=72, num_mh_steps=9)}),
        ({"policy": ["lowtemp 1", "power 2"]}, {"ladder": ["lowtemp 1", "power 2"]}),
        ({"temperature": 0.7}, {"ladder": ["plain 1"], "arms": {"plain": Arm(0.7)}}),
        ({"temperature": 0, "k": 2}, {"ladder": ["plain 2"], "arms": {"plain": Arm(1e-30)}}),
        ({"max_tokens": 24}, {"k": 4, "sampler": SamplerConfig(4.0, None, 24, 24, 5)}),
    ],
    ids=str,
)
def test_what_a_request_asks_for_is_what_it_gets(client, model, fields, settings):
    [choice] = ask(client, seed=3, responses=True, **fields).choices
    [record] = answer(QUESTION, model, seed=3, **settings)
    assert texts(choice) == said(record)


def test_choices_are_repeats_and_the_second_one_can_be_had_alone(client, model):
    reply = ask(client, seed=5, n=3, k=1, responses=True)
    records = answer([QUESTION] * 3, model, k=1, seed=5)
    assert [texts(choice) for choice in reply.choices] == [said(record) for record in records]
    [second] = ask(client, seed=5, repeat=1, k=1, responses=True).choices
    assert texts(second) == texts(reply.choices[1])
    assert [choice.dps["repeat"] for choice in reply.choices] == [0, 1, 2]
    assert reply.usage.completion_tokens == sum(len(r.trajectories[0].tokens) for r in records)


def test_repeats_count_up_unless_the_request_says_which_one(client):
    """One seed for all repeats, as harnesses send, gives other samples each time; naming a repeat gives it again."""
    options = {"seed": 11, "k": 2, "responses": True}
    choices = [ask(client, repeat=repeat, **options).choices[0] for repeat in (None, "count", 0, None)]
    assert [choice.dps["repeat"] for choice in choices] == [0, 1, 0, 2]
    assert texts(choices[0]) == texts(choices[2])
    assert len({str(texts(choice)) for choice in choices}) == 3
    unseeded = [ask(client, "From left to right: 5+6*2", k=2).choices[0].dps for _ in range(3)]
    assert [each["repeat"] for each in unseeded] == [0, 1, 2]


def test_completions_take_texts_and_tokens_and_stop(client, model):
    prompts = ["From left to right: 14+23*3=", "12+7="]
    options = {"model": "embedded", "seed": 2, "max_tokens": 24, "stop": ["7"], "extra_body": {"k": 2, "repeat": 0}}
    reply = client.completions.create(prompt=prompts, **options)
    tokens = client.completions.create(prompt=model.encode_all(prompts), **options)
    alone = [client.completions.create(prompt=prompt, **options).choices[0].text for prompt in prompts]
    assert [c.text for c in reply.choices] == [c.text for c in tokens.choices] == alone
    assert not any("7" in choice.text for choice in reply.choices)
    assert any(choice.finish_reason == "stop" for choice in reply.choices)
    whole = client.completions.create(prompt=prompts, **options | {"stop": None})
    assert any("7" in choice.text for choice in whole.choices)


def test_logprobs_are_those_of_the_response(client, model):
    [choice] = ask(client, seed=7, k=1, logprobs=True).choices
    [record] = answer(QUESTION, model, k=1, seed=7)
    [trajectory] = record.trajectories
    assert [each.logprob for each in choice.logprobs.content] == pytest.approx(trajectory.token_logprob.tolist())
    assert "".join(each.token for each in choice.logprobs.content).startswith(trajectory.text[:5])
    reply = client.completions.create(model="embedded", prompt="1+2=", logprobs=0, seed=1, extra_body={"k": 1})
    assert len(reply.choices[0].logprobs.token_logprobs) == reply.usage.completion_tokens


def test_a_stream_tells_of_the_ladder_and_then_the_answer(client):
    options = {"seed": 7, "responses": True}
    [choice] = ask(client, **options).choices
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, **options))
    told = [c.choices[0].dps for c in chunks if c.choices and hasattr(c.choices[0], "dps")]
    *ended, checkpoint, last = told
    assert checkpoint["more"] == 0
    assert checkpoint["answers"] == [response["answer"] for response in choice.dps["responses"]]
    assert [each["ended"] for each in ended] == sorted(each["ended"] for each in ended)
    assert ended[-1] == {"ended": 4, "requested": 4}
    assert last == choice.dps | {"seconds": last["seconds"]}
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == choice.message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.generated_tokens == choice.dps["generated_tokens"]
    with client.completions.create(model="embedded", prompt="1+2=", stream=True, extra_body={"k": 1}) as pieces:
        assert "".join(piece.choices[0].text for piece in pieces)


def test_async_and_many_at_a_time_get_the_same_answers(server, client):
    whole = [ask(client, question, seed=3, k=2).choices[0].message.content for question in QUESTIONS[:8]]

    async def both():
        async with openai.AsyncOpenAI(base_url=server.url, api_key=KEY, max_retries=0) as other:
            stream = await ask(other, QUESTIONS[0], seed=3, k=2, stream=True)
            text = "".join([piece.choices[0].delta.content or "" async for piece in stream])
            many = await asyncio.gather(*(ask(other, question, seed=3, k=2) for question in QUESTIONS[:8]))
            return text, [reply.choices[0].message.content for reply in many]

    assert asyncio.run(both()) == (whole[0], whole)


def test_models_health_and_metrics(server, client):
    [model] = client.models.list().data
    assert (model.id, model.dps["ladder"]) == ("embedded", ["power 4"])
    assert client.models.retrieve("embedded").id == "embedded"
    raw = client.with_raw_response.models.list()
    assert (raw.status_code, raw.parse().data) == (200, [model])
    ask(client, k=1)
    root = server.url.removesuffix("/v1")
    assert httpx.get(f"{root}/health").json() == {"status": "ok"}
    metrics = httpx.get(f"{root}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    assert "dps_rows 16.0" in metrics
    assert 'dps_requests_total{path="/v1/chat/completions",status="200"}' in metrics


def messages(text):
    return {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("kind", "status", "options", "code"),
    [
        (openai.NotFoundError, 404, {"model": "other"}, "model_not_found"),
        (openai.BadRequestError, 400, {"top_p": 0.5}, None),
        (openai.BadRequestError, 400, {"extra_body": {"alhpa": 2}}, "unknown_field"),
        (openai.BadRequestError, 400, {"max_tokens": 10**6}, None),
        (openai.BadRequestError, 400, messages(QUESTION * 40), "context_length_exceeded"),
        (openai.APIStatusError, 413, messages(QUESTION * 400), "too_large"),
    ],
    ids=["another model", "not supported", "unknown", "too long", "no room", "a large body"],
)
def test_errors_are_the_clients_own(client, kind, status, options, code):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "embedded", **messages(QUESTION), **options})
    assert caught.value.message
    assert (caught.value.status_code, caught.value.code) == (status, code)


def refused(call):
    """Whether a call is refused because others are being answered."""
    try:
        call()
    except openai.RateLimitError:
        return True
    return False


def test_a_full_server_and_a_client_that_does_not_wait(client):
    streams = [ask(client, stream=True, k=64) for _ in range(8)]
    with pytest.raises(openai.RateLimitError):
        ask(client)
    for stream in streams:
        stream.close()
    impatient = partial(ask, client.with_options(timeout=0.1), k=64, num_mh_steps=20)
    with pytest.raises(openai.APITimeoutError):
        all(iter(partial(refused, impatient), False))  # until the server has seen that the others have gone


def test_the_key_is_asked_for_and_never_shown(server, client):
    root = server.url.removesuffix("/v1")
    for key in ("none", KEY[:-1], f"{KEY}y"):
        with pytest.raises(openai.AuthenticationError):
            ask(server.client(api_key=key))
    assert httpx.get(f"{root}/metrics").status_code == 401
    assert httpx.get(f"{server.url}/models").headers["www-authenticate"] == "Bearer"
    shown = httpx.get(f"{root}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    code, words = server.end()
    assert (code, KEY in words, KEY in shown) == (0, False, False)
    with pytest.raises(openai.APIConnectionError):
        ask(client)
