"""Requests of the soak test, valid and invalid, each with the responses it may get.

Made at random, but in fixed shares: a deck has each kind as often as it weighs, and is shuffled
again when it has been dealt.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["KINDS", "Ask", "Deck", "Raw"]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
MODEL = "hybridmoe-demo"
_TOO_MANY_WORDS = 2000  # more than the context that the soak gives its server
_SHARED = "You are a helpful assistant that answers in one short sentence. " * 8
_QUESTIONS = (
    "Hello!", "What is 47 + 38?", "My name is Bokira.", "How do I start a chat?", "What is 12 + 9?",
    "Which day comes after Monday?", "Spell the word tree.", "What is the weather in Oslo?",
)  # fmt: skip
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "is_large": {"type": "boolean"}},
    "required": ["name", "is_large"],
    "additionalProperties": False,
}
_CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
_WEATHER = {"name": "get_weather", "description": "Get the weather in a city", "parameters": _CITY}
_TOOLS = [{"type": "function", "function": _WEATHER}]


@dataclass(frozen=True, slots=True)
class Ask:
    """A request over HTTP as clients make it. No body: a GET."""

    path: str
    body: dict[str, Any] | None = None
    status: int = 200
    end: str = ""  # text that the last event of a stream must contain
    holds: Callable[[Any], bool] | None = None  # of the response's JSON

    @property
    def is_stream(self) -> bool:
        return bool(self.body and self.body.get("stream"))

    def __str__(self) -> str:
        return f"{self.path} {json.dumps(self.body)[:400]}"


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes on a connection, which the server must refuse or close. size: zeros that follow."""

    data: bytes
    size: int = 0
    statuses: tuple[int, ...] = (400,)  # or no response at all
    must_close: bool = False  # the client leaves without waiting for a response


Make = Callable[[random.Random], Ask | Raw]


class Deck:
    """Deals kinds of requests in their shares."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._left: list[str] = []

    def deal(self) -> tuple[str, Ask | Raw]:
        """A kind's name, and a request of it."""
        if not self._left:
            self._left = [name for name, (weight, _) in KINDS.items() for _ in range(weight)]
            self._rng.shuffle(self._left)
        name = self._left.pop()
        return name, KINDS[name][1](self._rng)


def _chat(rng: random.Random, *, stream: bool = False, **more: Any) -> Ask:
    body = {"messages": _messages(rng), **_sampling(rng), "max_tokens": rng.randint(1, 48), **more}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": rng.random() < 0.5}}
    return Ask(CHAT, body, end="[DONE]" if stream else "")


def _messages(rng: random.Random, *, system: bool = True) -> list[dict[str, Any]]:
    out = [{"role": "user", "content": rng.choice(_QUESTIONS)}]
    if system and rng.random() < 0.3:
        out.insert(0, {"role": "system", "content": _SHARED})
    if rng.random() < 0.3:
        answer = {"role": "assistant", "content": "Yes."}
        out += [answer, {"role": "user", "content": rng.choice(_QUESTIONS)}]
    return out


def _sampling(rng: random.Random) -> dict[str, Any]:
    every: dict[str, Any] = {
        "temperature": rng.choice([0.0, 0.7, 1.5]), "top_p": 0.9, "seed": rng.randrange(99),
        "stop": ["zzz", "."],
    }  # fmt: skip
    return {name: value for name, value in every.items() if rng.random() < 0.5}


def _text(rng: random.Random, *, stream: bool = False, **more: Any) -> Ask:
    prompt: Any = " ".join(rng.choice(_QUESTIONS) for _ in range(rng.randint(1, 12)))
    if rng.random() < 0.2:
        prompt = [rng.randrange(200) for _ in range(rng.randint(1, 150))]
    body = {
        "prompt": prompt, "stream": stream, "ignore_eos": True, "max_tokens": rng.randint(1, 150),
        **_sampling(rng), **more,
    }  # fmt: skip
    return Ask(TEXT, body, end="[DONE]" if stream else "")


def _formatted(rng: random.Random) -> Ask:
    """A complete response fits its form; one that was cut off need not."""
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": _SCHEMA}}
    forms: list[tuple[dict[str, Any], Callable[[str], bool]]] = [
        (schema, lambda text: json.loads(text).keys() == {"name", "is_large"}),
        ({"type": "regex", "pattern": "[0-9]{5}"}, str.isdecimal),
        ({"type": "grammar", "grammar": 'root ::= "yes" | "no"'}, lambda t: t in ("yes", "no")),
    ]
    form, fits = rng.choice(forms)

    def holds(response: Any) -> bool:
        choices = [c for c in response["choices"] if c["finish_reason"] == "stop"]
        return all(fits(choice["message"]["content"]) for choice in choices)

    body = {"messages": _messages(rng), "response_format": form, "max_tokens": rng.choice([3, 90])}
    return Ask(CHAT, {**body, "n": rng.randint(1, 2)}, holds=holds)


def _calling(rng: random.Random) -> Ask:
    choice = rng.choice(["auto", "none", "required"])
    strict = [{"type": "function", "function": {**_WEATHER, "strict": True}}]
    ask = _chat(rng, tools=rng.choice([_TOOLS, strict]), tool_choice=choice, max_tokens=60, stop=[])

    def holds(response: Any) -> bool:
        (choice_,) = response["choices"]
        calls = choice_["message"].get("tool_calls") or []
        is_whole = choice_["finish_reason"] == "tool_calls"
        cities = [json.loads(call["function"]["arguments"]) for call in calls if is_whole]
        return not (choice == "none" and calls) and all("city" in city for city in cities)

    return Ask(ask.path, ask.body, holds=holds if choice == "required" else None)


def _responding(rng: random.Random) -> Ask:
    body = {"input": rng.choice(_QUESTIONS), "max_output_tokens": rng.randint(1, 48)}
    if rng.random() < 0.3:
        body |= {"instructions": _SHARED, "tools": [{"type": "function", **_WEATHER}]}
    stream = rng.random() < 0.5
    return Ask(RESPONSES, {**body, "stream": stream}, end="response." if stream else "")


def _messaging(rng: random.Random) -> Ask:
    messages = _messages(rng, system=False)
    base = {"model": MODEL, "messages": messages}
    body: dict[str, Any] = {**base, "max_tokens": rng.randint(1, 48)}
    if rng.random() < 0.3:
        body |= {"system": _SHARED, "tools": [{"name": "f", "input_schema": _CITY}]}
    if rng.random() < 0.2:
        return Ask(f"{MESSAGES}/count_tokens", base)
    stream = rng.random() < 0.5
    return Ask(MESSAGES, {**body, "stream": stream}, end="message_stop" if stream else "")


def _too_long(rng: random.Random) -> Ask:
    text = " ".join(rng.choice(_QUESTIONS).split()[0] for _ in range(_TOO_MANY_WORDS))
    messages = [{"role": "user", "content": text}]
    bodies: dict[str, dict[str, Any]] = {
        CHAT: {"messages": messages},
        TEXT: {"prompt": text, "stream": True},
        RESPONSES: {"input": text, "stream": True},
        MESSAGES: {"model": MODEL, "messages": messages, "max_tokens": 5},
    }
    path = rng.choice(list(bodies))
    return Ask(path, bodies[path], 400, holds=lambda body: "too long" in body["error"]["message"])


def _looking(rng: random.Random) -> Ask:
    return rng.choice([
        Ask("/health"), Ask("/metrics"), Ask("/v1/models"), Ask("/"), Ask("/static/chat.js"),
        Ask("/openapi.json"), Ask("/nothing", status=404), Ask(CHAT, status=405),
        Ask("/v1/embeddings", {"input": "x"}, 501), Ask(CHAT, {"model": "m", "messages": []}, 400),
        Ask("/tokenize", {"content": "Hello " * rng.randint(1, 1000), "with_pieces": True}),
        Ask("/detokenize", {"tokens": [rng.randrange(300) for _ in range(50)]}),
        Ask("/detokenize", {"tokens": [10**9]}, 400),
    ])  # fmt: skip


def _mistyped(rng: random.Random) -> Ask:
    wrong: dict[str, Any] = rng.choice([
        {"messages": "x"}, {"messages": []}, {"messages": [{"role": "owl"}]},
        {"temperature": "hot"}, {"max_tokens": 1.5}, {"n": 99}, {"logit_bias": {"x": 1}},
        {"tools": [{"type": "web"}]},
        {"logit_bias": {"99999999": 1}}, {"response_format": {"type": "regex", "pattern": "("}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": "no"}}},
        {"functions": [{}]}, {"tool_choice": "required"}, {"stream_options": {"include_usage": 7}},
    ])  # fmt: skip
    return Ask(CHAT, {"messages": _messages(rng), **wrong}, 400)


def _malformed(rng: random.Random) -> Raw:
    """Bodies that are no JSON, or none that a request may be."""
    body = rng.choice([
        b"", b"{", b"[1]", b"\xff\xfe\x00", b'{"messages": NaN}', b"1" * 5000, b"null",
        b'"\\ud800"', b'{"a":' * 70 + b"1" + b"}" * 70, b"[" * 100_000, b'{"messages": [' * 40,
    ])  # fmt: skip
    return Raw(_head(rng.choice([CHAT, TEXT, RESPONSES, MESSAGES]), len(body)) + body)


def _misframed(rng: random.Random) -> Raw:
    """Requests that are wrong before their body: lengths, chunks, headers, or no HTTP at all."""
    whole = b'{"prompt": "Hello", "max_tokens": 2}'
    chunked = _head(TEXT, None) + b"Transfer-Encoding: chunked\r\n\r\n"
    return rng.choice([
        Raw(_head(TEXT, len(whole) + 99) + whole, must_close=True),  # the rest never comes
        Raw(_head(TEXT, 5) + whole),
        Raw(_head(TEXT, -1) + whole),
        Raw(_head(TEXT, None) + b"Content-Length: ten\r\n\r\n" + whole),
        Raw(_head(TEXT, None) + b"Content-Length: 3\r\nContent-Length: 36\r\n\r\n" + whole),
        Raw(chunked + b"zz\r\n" + whole),
        Raw(chunked + b"5\r\n" + whole[:5], must_close=True),
        Raw(b"GET / HTTP/1.1\r\nHost: elsewhere\r\n\r\n", statuses=(403,)),
        Raw(bytes(rng.randrange(256) for _ in range(200)) + b"\r\n\r\n"),
        Raw(b"POST " + TEXT.encode() + b" HTTP/1.1\r\nHos", must_close=True),
        Raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000, statuses=(400, 431)),
        Raw(b"", must_close=True),
    ])  # fmt: skip


def _too_large(rng: random.Random) -> Raw:
    size = 17 << 20
    if rng.random() < 0.5:
        return Raw(_head(CHAT, size), size, statuses=(413,))
    return Raw(_head(CHAT, size), size // 4, must_close=True)


def _head(path: str, length: int | None) -> bytes:
    """The head of a POST; without a length it is still open."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    end = "" if length is None else f"Connection: close\r\nContent-Length: {length}\r\n\r\n"
    return (head + end).encode()


KINDS: dict[str, tuple[int, Make]] = {  # a name, its share, and what makes one
    "chat": (12, _chat),
    "chat stream": (16, lambda rng: _chat(rng, stream=True)),
    "chat, several": (6, lambda rng: _chat(rng, stream=rng.random() < 0.5, n=rng.randint(2, 3))),
    "chat, told all": (
        6,
        lambda rng: _chat(
            rng, stream=True, logprobs=True, top_logprobs=5, return_experts=True,
            return_progress=True,
        ),
    ),
    "completion": (8, _text),
    "completion stream": (12, lambda rng: _text(rng, stream=True, logprobs=rng.choice([None, 3]))),
    "formatted": (10, _formatted),
    "tools": (10, _calling),
    "responses": (8, _responding),
    "messages": (8, _messaging),
    "too long": (4, _too_long),
    "looking": (10, _looking),
    "mistyped": (6, _mistyped),
    "malformed": (8, _malformed),
    "misframed": (8, _misframed),
    "too large": (1, _too_large),
}  # fmt: skip
