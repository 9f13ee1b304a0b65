"""Request bodies: shape counted while they arrive; limits on size, time and total memory."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from hybridmoe.serve import ServeConfig
from hybridmoe.serve.content_encoding import body_decoder
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.request_body import LARGE_BYTES, BodyBudget, JsonShape

JSON = st.recursive(
    st.none() | st.integers() | st.text('"\\[]{},:aé\n'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('"\\[]{},'), inner),
    max_leaves=20,
)


def shape_of(*pieces: bytes) -> tuple[int, int]:
    shape = JsonShape()
    for piece in pieces:
        shape.feed(piece)
    return shape.depth, shape.num_values


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


def test_depth_is_counted_outside_of_strings() -> None:
    assert shape_of(b'{"a": [{"b": "[[[\\"[["}]}')[0] == 3
    assert shape_of(b"[" * 1000) == (1000, 1000)
    assert shape_of(b'"' + b"[" * 100) == (0, 0)
    assert shape_of(b"[1,2],[3]") == (1, 6)


@given(JSON, st.integers(1, 9), st.booleans())
def test_pieces_make_no_difference(value: Any, size: int, is_ascii: bool) -> None:
    body = json.dumps(value, ensure_ascii=is_ascii).encode()
    whole = shape_of(body)
    assert whole[0] == depth_of(value)
    assert shape_of(*(body[i : i + size] for i in range(0, len(body), size))) == whole


def test_counting_takes_no_more_steps_for_quotes_that_are_never_closed() -> None:
    # 32 000 beginnings of a string, none of which ends: not a step for each pair of them.
    assert shape_of(b'"' + b'\\"' * 32_000) == (0, 0)


class Client:
    """Client that sends pieces, then stays silent."""

    def __init__(self, *pieces: bytes, is_whole: bool = True) -> None:
        self._messages = [
            {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
        ]
        self._messages[-1]["more_body"] = not is_whole
        self.is_silent = asyncio.Event()

    async def receive(self) -> Any:
        if self._messages:
            return self._messages.pop(0)
        self.is_silent.set()
        await asyncio.Event().wait()


async def read(bodies: BodyBudget, client: Client, coding: str = "") -> bytes | None:
    with bodies.reader() as reader:
        return await reader.read(Headers({"Content-Encoding": coding}), client.receive)


def refusal(test: Callable[[BodyBudget], Awaitable[Any]], **limits: Any) -> ApiError:
    async def run() -> None:
        await test(BodyBudget(ServeConfig(model_name="m", **limits)))

    with pytest.raises(ApiError) as caught:
        asyncio.run(run())
    return caught.value


def test_a_body_that_holds_too_many_values_is_refused() -> None:
    error = refusal(lambda bodies: read(bodies, Client(b"[0,0,", b"0,0]")), max_json_values=4)
    assert error.status == 400 and "more than 4 values" in str(error)


def test_a_body_that_does_not_come_is_given_up() -> None:
    sent = Client(b"{", is_whole=False)
    for limits in ({"body_idle_timeout_s": 1e-3}, {"body_timeout_s": 1e-3}):
        error = refusal(lambda bodies: read(bodies, sent), **limits)
        assert error.status == 408 and error.headers["Connection"] == "close"


def test_large_bodies_are_bounded_together_and_room_is_given_back() -> None:
    large = b" " * (LARGE_BYTES + 1)

    async def test(bodies: BodyBudget) -> None:
        with bodies.reader() as first:
            assert await first.read(Headers(), Client(large).receive) == large
            assert await read(bodies, Client(b"{}")) == b"{}"
            with pytest.raises(ApiError) as caught:
                await read(bodies, Client(large))
            assert caught.value.status == 503 and "Retry-After" in caught.value.headers
        for _ in range(3):
            assert await read(bodies, Client(large)) == large
        deep = Client(large, b"[" * 65, b"", is_whole=False)
        with bodies.reader() as refused:
            reading = asyncio.create_task(refused.read(Headers(), deep.receive))
            await deep.is_silent.wait()
            assert await read(bodies, Client(large)) == large  # what is refused is not held
            reading.cancel()

    asyncio.run(
        test(BodyBudget(ServeConfig(model_name="m", max_body_memory_bytes=LARGE_BYTES + 1)))
    )


def test_half_sent_bodies_end_with_the_server() -> None:
    async def test(bodies: BodyBudget) -> None:
        client = Client(b"{", is_whole=False)
        reading = asyncio.create_task(read(bodies, client))
        await client.is_silent.wait()
        ending = ApiError(503, "ending")
        bodies.close(ending)
        for again in (reading, read(bodies, Client(b"{", is_whole=False))):
            with pytest.raises(ApiError, match="ending"):
                await again

    asyncio.run(test(BodyBudget(ServeConfig(model_name="m"))))


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "zstd": zstandard.ZstdCompressor().compress,
    "identity": bytes,
}


@pytest.mark.parametrize("coding", CODINGS)
def test_compressed_bodies_are_decoded(coding: str) -> None:
    data = json.dumps([f"text {i * 7919 % 10007}" for i in range(2000)]).encode()
    sent = CODINGS[coding](data[:9000]) + CODINGS[coding](data[9000:])
    if coding.lower() == "deflate":
        sent = CODINGS[coding](data)  # one stream; the others may have several members

    async def test() -> None:
        for size in (1, 700, len(sent)):
            pieces = [sent[i : i + size] for i in range(0, len(sent), size)]
            assert (
                await read(BodyBudget(ServeConfig(model_name="m")), Client(*pieces), coding) == data
            )

    asyncio.run(test())


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_a_bomb_is_refused_before_it_is_unpacked(coding: str) -> None:
    bomb = CODINGS[coding](bytes(64 << 20))
    decoder = body_decoder(coding)
    assert decoder is not None
    assert max(len(part) for part in decoder.feed(bomb)) <= 8 << 20
    limits = {"max_body_bytes": 1 << 20}
    error = refusal(lambda bodies: read(bodies, Client(bomb), coding), **limits)
    assert error.status == 413 and "larger than 1048576 bytes" in str(error)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_compressed_bodies_that_are_damaged_are_refused(coding: str) -> None:
    whole = CODINGS[coding](b"[1, 2, 3]" * 99)
    for sent, reason in (
        (whole[:-3], "cut off"),
        (b"[1, 2, 3]" * 9, ""),
        (whole[:10] + bytes(30) + whole[40:], ""),
    ):
        error = refusal(partial(read, client=Client(sent), coding=coding))
        assert error.status == 400
        assert f"the body is not valid {coding}" in str(error) and reason in str(error)


def test_unknown_codings_are_refused_with_those_that_are_known() -> None:
    for coding in ("br", "gzip, zstd"):
        error = refusal(partial(read, client=Client(b"x"), coding=coding))
        assert error.status == 415 and "expected one of gzip, deflate, zstd" in str(error)
        assert error.headers["Accept-Encoding"] == "gzip, deflate, zstd"
