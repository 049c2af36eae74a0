"""The real ``openai`` package, sync and async, whole and streamed; what is refused arrives as its exceptions."""

import asyncio
from functools import partial

import pytest

pytest.importorskip("fastapi", reason="dps serve needs FastAPI")
openai = pytest.importorskip("openai", reason="the real client")
httpx = pytest.importorskip("httpx")

from .servers import QUESTION, QUESTIONS, ask, serving  # noqa: E402

FIXED = {"model": "embedded", "seed": 3}


KEY = "s3cret-key"


@pytest.fixture(scope="module")
def server():
    options = ("--k=2", "--rows=16", "--repeats=same", "--limits.request_bytes=4000", "--limits.requests=8")
    with serving(*options, DPS_API_KEY=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return server.client(api_key=KEY)


def messages(question=QUESTION):
    return {"messages": [{"role": "user", "content": question}]}


def test_all_ways_to_ask_give_the_same_answer(server, client):
    whole = client.chat.completions.create(**FIXED, **messages()).choices[0]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    pieces = list(client.chat.completions.create(**FIXED, **messages(), **options))
    said = [piece.choices[0] for piece in pieces if piece.choices]
    assert "".join(one.delta.content or "" for one in said) == whole.message.content
    assert [one.finish_reason for one in said if one.finish_reason] == [whole.finish_reason] == ["stop"]
    assert pieces[-1].usage.completion_tokens > 0

    async def both():
        async with openai.AsyncOpenAI(base_url=server.url, api_key=KEY, max_retries=0) as other:
            one = await other.chat.completions.create(**FIXED, **messages())
            stream = await other.chat.completions.create(**FIXED, **messages(), stream=True)
            text = "".join([piece.choices[0].delta.content or "" async for piece in stream])
            many = await asyncio.gather(
                *(other.chat.completions.create(**FIXED, **messages(each)) for each in QUESTIONS[:8])
            )
            return one.choices[0].message.content, text, [reply.choices[0].message.content for reply in many]

    one, text, many = asyncio.run(both())
    assert one == text == whole.message.content
    assert many == [
        client.chat.completions.create(**FIXED, **messages(q)).choices[0].message.content for q in QUESTIONS[:8]
    ]


def test_completions_list_and_with_raw_response(client):
    prompts = ["14+23=", "9*8="]
    replies = client.completions.create(**FIXED, prompt=prompts, extra_body={"policy": ["plain 2"]}).choices
    alone = [client.completions.create(**FIXED, prompt=each, extra_body={"policy": ["plain 2"]}) for each in prompts]
    assert [reply.text for reply in replies] == [each.choices[0].text for each in alone]
    assert [model.id for model in client.models.list()] == [client.models.retrieve("embedded").id] == ["embedded"]
    raw = client.with_raw_response.chat.completions.create(**FIXED, **messages())
    assert raw.status_code == 200
    assert raw.parse().choices[0].message.role == "assistant"


ERRORS = {
    "another model": (openai.NotFoundError, {"model": "other"}, "model_not_found"),
    "not supported": (openai.BadRequestError, {"top_p": 0.5}, None),
    "unknown": (openai.BadRequestError, {"extra_body": {"alhpa": 2}}, "unknown_field"),
    "too long": (openai.BadRequestError, {"max_tokens": 10**6}, None),
    "no room": (openai.BadRequestError, messages(QUESTION * 40), "context_length_exceeded"),
    "a large body": (openai.APIStatusError, messages(QUESTION * 400), None),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_the_clients_own(client, name):
    kind, options, code = ERRORS[name]
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{**FIXED, **messages(), **options})
    assert caught.value.message
    assert code is None or caught.value.code == code
    assert caught.value.status_code == (413 if name == "a large body" else 404 if name == "another model" else 400)


def refused(call):
    """Whether a call is refused because others are being answered."""
    try:
        call()
    except openai.RateLimitError:
        return True
    return False


def test_a_full_server_and_a_client_that_does_not_wait(client):
    many = {"model": "embedded", **messages(), "stream": True, "extra_body": {"k": 64}}
    streams = [client.chat.completions.create(**many) for _ in range(8)]
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
    assert httpx.get(f"{root}/health").status_code == 200
    assert httpx.get(f"{server.url}/models").headers["www-authenticate"] == "Bearer"
    shown = httpx.get(f"{root}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    code, words = server.end()
    assert (code, KEY in words, KEY in shown) == (0, False, False)
    with pytest.raises(openai.APIConnectionError):
        ask(client)
