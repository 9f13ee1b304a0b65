"""Messages between ranks: what is written is read, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridmoe.cluster.message import Frame, FrameShape, Header, Kind
from hybridmoe.errors import ClusterError

SHAPE = FrameShape(max_tokens=3, top_k=2, hidden=4)
REQUEST = Header(Kind.REQUEST, layer=5, num_tokens=2, step_tokens=7, step=9, number=11)


def arrive(frame: Frame, header: Header, line: str = "") -> Frame:
    """Frame that the message is read from, with an older one's bytes in its memory."""
    sent = frame.seal(header, line)
    found = Frame(SHAPE)
    found.memory.fill_(0xAB)
    found.memory[: len(sent)] = sent
    return found


def fill(frame: Frame) -> None:
    ids, weights, states = frame.request(2)
    ids[:] = [[1, -1], [0, 3]]
    weights[:] = [[0.5, 0.25], [1, 2]]
    states[:] = np.arange(8).reshape(2, 4)


def test_a_request_arrives() -> None:
    frame = Frame(SHAPE)
    fill(frame)
    found = arrive(frame, REQUEST)
    assert found.read() == REQUEST
    assert all(map(np.array_equal, found.request(2), frame.request(2)))
    assert len(frame.seal(REQUEST)) == 64 + 2 * (8 * 2 + 4 * 4) + 8


@pytest.mark.parametrize("kind", [Kind.SUM, Kind.ABANDONED, Kind.FAREWELL])
def test_other_kinds_arrive(kind: Kind) -> None:
    frame = Frame(SHAPE)
    frame.sums(2)[:] = 3.0
    header = Header(kind, num_tokens=2, number=4)
    found = arrive(frame, header)
    assert found.read() == header
    assert kind is not Kind.SUM or (found.sums(2) == 3.0).all()


def test_a_line_is_cut_and_printable() -> None:
    found = arrive(Frame(SHAPE), Header(Kind.FAILURE, number=1), "a\x1b[31m\nb" + "x" * 5000)
    assert found.read().kind is Kind.FAILURE
    assert found.line.startswith("a [31m bx") and len(found.line) == 2048


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, 0, "begins with"),
        (8, 77, "kind is 77"),
        (16, 4, "4 tokens, expected 3 at most"),
        (16, 1, "64 bytes of a request of 1 tokens"),
        (32, 12, "number 12 at the begin, 11 at the end"),
        (40, 65, "65 bytes of a request"),
        (46, 255, "bytes of a request"),  # petabytes
        (64 + 64, 12, "number 11 at the begin, 12 at the end"),
    ],
)
def test_a_wrong_field_is_named(at: int, value: int, message: str) -> None:
    frame = Frame(SHAPE)
    fill(frame)
    found = arrive(frame, REQUEST)
    found.memory[at] = value
    with pytest.raises(ClusterError, match=f"malformed message: .*{message}"):
        found.read()


def test_a_shorter_message_than_it_says_is_refused() -> None:
    found, frame = Frame(SHAPE), Frame(SHAPE)
    fill(frame)
    sent = frame.seal(REQUEST)
    found.memory[: len(sent)] = sent
    assert found.read() == REQUEST
    sent = frame.seal(REQUEST._replace(number=12))
    found.memory[:70] = sent[:70]  # the rest is the last message's
    with pytest.raises(ClusterError, match="number 12 at the begin, 11 at the end"):
        found.read()


@given(st.binary(min_size=56, max_size=56), st.integers(0, 56))
def test_any_header_is_read_within_limits_or_refused(junk: bytes, num_right: int) -> None:
    frame = Frame(SHAPE)
    frame.memory.zero_()
    right = bytes(frame.seal(REQUEST)[:56].tolist())
    frame.memory[:56] = torch.tensor(list(right[:num_right] + junk[num_right:]), dtype=torch.uint8)
    try:
        found = frame.read()
    except ClusterError as error:
        assert str(error).startswith("malformed message: ")
    else:
        assert found.num_tokens <= SHAPE.max_tokens or found.kind is not Kind.REQUEST
