"""Ranks that join: each learns in one line why it waits, is refused, or gives way to another."""

import io
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
from gguf import GGMLQuantizationType as Type
from ranks import SHARES, WorkerThread, meet, pooled, start_worker
from tiny_gguf import write_tiny
from waiting import HANG_S, eventually

import hybridmoe
from hybridmoe.cli.progress_bar import ProgressBar
from hybridmoe.cluster import channel as channel_module
from hybridmoe.cluster import join as join_module
from hybridmoe.cluster import seat as seat_module
from hybridmoe.cluster.agreement import Terms
from hybridmoe.cluster.channel import Channel, let_in
from hybridmoe.cluster.hosts import Hosts
from hybridmoe.cluster.link import Link
from hybridmoe.cluster.rendezvous import MeetingPlace
from hybridmoe.cluster.seat import shape_of
from hybridmoe.errors import ClusterError, ConfigError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.llm.expert_pool import identity_of
from hybridmoe.llm.model_config import read_model_config
from hybridmoe.placement.options import LoadOptions


@pytest.fixture
def hosts(path: Path, place: MeetingPlace) -> Iterator[Hosts]:
    with GGUFFile.open(path) as file:
        config = read_model_config(file, LoadOptions())
        hosts = Hosts(place, identity_of(file, config, place), shape_of(2, config.hidden))
        yield hosts
        hosts.close()


def be_rank_0_until_met(place: MeetingPlace) -> None:
    """Be a rank 0 that dies during the handshake."""
    with place.listen() as listener:
        visit = let_in(listener.accept()[0], place.secret)
    visit.channel.leave()
    visit.channel.join()


@contextmanager
def another_service(place: MeetingPlace) -> Iterator[None]:
    """Have another service at rank 0's address, which says nothing in the end."""
    with socket.create_server((place.host, place.port)) as listener:

        def answer() -> None:
            silent = []
            with suppress(OSError):  # closed
                for number in count():
                    silent.append(listener.accept()[0])
                    if number < 3:
                        with suppress(OSError), silent.pop() as connection:
                            connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            for connection in silent:
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_ranks_say_in_one_line_what_they_wait_for(path: Path, place: MeetingPlace) -> None:
    waiting = f"hybridmoe: waiting for rank 0 at {place}"
    with another_service(place):
        worker = start_worker(path, place, 1)
        assert worker.stderr is not None
        other = f"{waiting}: another service listens at 127.0.0.1\n"
        assert worker.stderr.readline() == other
    be_rank_0_until_met(place)
    lost = f"hybridmoe: rank 0 at {place} is away: its connection is closed; joining again\n"
    assert worker.stderr.readline() == lost
    said: list[str] = []
    with ProgressBar(io.StringIO(), say=said.append) as bar:
        bar(hybridmoe.Progress("load", 1, 9, "bytes"))
        with pooled(path, place, SHARES, device="cpu", context_tokens=64, progress=bar):
            assert said[0] == "waiting for other hosts: 0 of 1 are ready"
            assert len(said) <= 2  # until they are there, and until they have placed experts
    *others, placed = worker.communicate()[1].splitlines(keepends=True)
    assert others in ([], [f"{waiting}\n"]) and placed.startswith(
        "hybridmoe: rank 1: experts 4 to 7 of"
    )
    assert worker.returncode == 0


def test_another_file_is_refused_on_both_sides(
    path: Path, place: MeetingPlace, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    write_tiny(other, type=Type.Q8_0, gain=0.7, seed=1)
    worker = WorkerThread(other, place, 1, expert_share=SHARES)
    line = r"rank 1 \(.*\) has a model file with fingerprint \w+..., rank 0 has \w+...: give all"
    with pytest.raises(ClusterError, match=f"^{line}"), pooled(path, place, SHARES):
        pass
    worker.join()
    assert isinstance(worker.error, ConfigError)
    assert re.match(f"rank 0 at {place} refuses: {line}", str(worker.error))


def test_another_key_is_refused_on_both_sides(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = tmp_path / "right", tmp_path / "wrong"
    for key in keys:
        key.touch(0o600)
        key.write_text(f"the {key.name} secret of this cluster")
    place = meet(monkeypatch, 2, keys[0])
    with GGUFFile.open(path) as file:
        config = read_model_config(file, LoadOptions())
        hosts = Hosts(place, identity_of(file, config, place), shape_of(2, config.hidden))
        wrong = meet(monkeypatch, 2, keys[1])
        rogue = WorkerThread(path, MeetingPlace(1, 2, place.host, place.port, wrong.secret), 1,
                             expert_share=SHARES)  # fmt: skip
        rogue.join()
        assert str(rogue.error) == f"cluster_key_file: rank 0 at {place} has another key"
        refusal = "rank 1 has another --cluster-key-file: refused"
        eventually(lambda: hosts.outage == refusal)
        with pytest.raises(ClusterError, match=refusal):
            hosts.gather(0.0, lambda done, total: None)
        hosts.close()


def test_refused_workers_all_learn_of_it_before_rank_0_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    write_tiny(other, type=Type.Q8_0, gain=0.7, seed=1)
    take_terms = join_module._take_terms

    def take_late(channel: Channel, place: MeetingPlace, report: Any) -> Terms:
        time.sleep(place.rank - 1)
        return take_terms(channel, place, report)

    monkeypatch.setattr(join_module, "_take_terms", take_late)
    place, shares = meet(monkeypatch, 3), (1.0, 1.0, 1.0)
    workers = [WorkerThread(other, place, rank, expert_share=shares) for rank in (1, 2)]
    with pytest.raises(ClusterError, match="give all ranks copies"), pooled(path, place, shares):
        pass
    for worker in workers:
        worker.join()
        assert re.match(f"rank 0 at {place} refuses: rank", str(worker.error))


def test_an_older_process_of_a_rank_gives_way_to_a_newer_one(
    path: Path, place: MeetingPlace, hosts: Hosts
) -> None:
    (seat,) = hosts.seats
    older = WorkerThread(path, place, 1, expert_share=SHARES)
    eventually(lambda: seat.hello is not None)
    newer = WorkerThread(path, place, 1, expert_share=SHARES)
    older.join()
    assert str(older.error) == f"RANK=1: another process has joined rank 0 at {place} as rank 1"
    hosts.close()
    newer.join()
    assert newer.error is None


def test_a_second_process_of_a_rank_waits_for_the_end_of_the_first(
    path: Path, place: MeetingPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat, is_over = Link.beat, threading.Event()

    def beat_and_end_late(self: Link, *, is_first: bool) -> None:
        beat(self, is_first=is_first)
        if is_first and not is_over.is_set():
            eventually(lambda: len(second.said) == 2 and llm.engine.outage is None)
            is_over.set()

    monkeypatch.setattr(Link, "beat", beat_and_end_late)
    monkeypatch.setattr(seat_module, "SILENCE_S", 0.0)
    first = start_worker(path, place, 1)
    with pooled(path, place, SHARES, device="cpu", context_tokens=64) as llm:
        second = WorkerThread(path, place, 1, expert_share=SHARES)
        eventually(lambda: second.said == [f"rank 0 at {place}: another process is rank 1"])
        first.kill()
        first.communicate()
        eventually(is_over.is_set)
        time.sleep(0.2)  # for what the first leaves behind
        assert llm.engine.outage is None
        llm.generate("Once", max_tokens=2, ignore_eos=True)
    second.join()
    assert second.error is None


def test_a_rank_past_the_last_is_refused(
    path: Path, place: MeetingPlace, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = MeetingPlace(2, 3, place.host, place.port, place.secret)
    worker = WorkerThread(path, more, 2, expert_share=(1.0, 1.0, 1.0))
    worker.join()
    assert re.search(
        r"refuses: rank 2 \(.*\) has WORLD_SIZE 3, rank 0 has 2: start", str(worker.error)
    )
    assert hosts.outage == "rank 1 has not joined"


def test_an_error_that_ends_rank_0_is_told_to_workers_that_are_joining(
    path: Path, place: MeetingPlace, hosts: Hosts
) -> None:
    (seat,) = hosts.seats
    worker = WorkerThread(path, place, 1, expert_share=SHARES)
    eventually(lambda: seat.hello is not None)
    hosts.close("rank 7 has no disk")
    eventually(lambda: bool(worker.said))
    assert worker.said == [f"rank 0 at {place} has ended: rank 7 has no disk; joining again"]
    with pooled(path, place, SHARES, device="cpu", context_tokens=64):
        pass  # the next rank 0
    worker.join()
    assert worker.error is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_worker_ends_by_a_signal_at_once(
    path: Path, place: MeetingPlace, number: signal.Signals
) -> None:
    """Also as process 1 of a container, for which signals have no default action."""
    for before in ((), ("unshare", "--pid", "--fork", "--kill-child")):
        worker = start_worker(path, place, 1, before=before)
        assert worker.stderr is not None
        line = worker.stderr.readline()
        if line.startswith("unshare: "):
            worker.communicate()
            pytest.skip("a namespace takes root")
        assert line == f"hybridmoe: waiting for rank 0 at {place}\n"
        process = psutil.Process(worker.pid)
        (process.children()[0] if before else process).send_signal(number)
        assert worker.communicate(timeout=HANG_S) == (None, "")
        assert worker.returncode == (128 + number if before else -number)


def test_a_worker_below_nohup_ignores_the_end_of_its_terminal(
    path: Path, place: MeetingPlace
) -> None:
    worker = start_worker(path, place, 1, before=("nohup",))
    assert worker.stderr is not None
    while not worker.stderr.readline().startswith("hybridmoe: waiting"):
        pass
    worker.send_signal(signal.SIGHUP)
    with pooled(path, place, SHARES, device="cpu", context_tokens=64):
        pass
    worker.communicate()
    assert worker.returncode == 0


def test_a_worker_that_dies_before_it_is_ready_is_away(
    path: Path, place: MeetingPlace, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    (seat,) = hosts.seats
    monkeypatch.setattr(channel_module, "_PULSE_S", 0.05)
    monkeypatch.setattr(channel_module, "_SILENCE_S", 1.5)
    worker = WorkerThread(path, place, 1, expert_share=SHARES)
    eventually(lambda: seat.hello is not None)
    time.sleep(3.0)
    assert seat.absence == f"{seat.name} is getting ready"
    monkeypatch.setattr(channel_module, "_PULSE_S", 1000.0)
    away = r" is away: (no sign of life for 1.5 s|its connection is closed)"  # at the second end
    eventually(lambda: re.match(f"rank 1 .*{away}$", str(seat.absence)) is not None)
    monkeypatch.setattr(channel_module, "_PULSE_S", 0.05)
    eventually(lambda: seat.absence == f"{seat.name} is getting ready")
    assert re.match(f"rank 0 at {place}{away}; joining again$", worker.said[0])
    hosts.close()
    worker.join()
    assert worker.error is None


def test_a_share_that_does_not_fit_is_refused_on_both_sides(
    path: Path, place: MeetingPlace
) -> None:
    worker = WorkerThread(path, place, 1, expert_share=SHARES, expert_ram=1000)
    line = r"expert_ram=1000 bytes: expected at least"
    with pytest.raises(ClusterError, match=rf"^rank 1 \(.*\): {line}"), pooled(path, place, SHARES):
        pass
    worker.join()
    assert isinstance(worker.error, ConfigError) and re.match(line, str(worker.error))


def test_shares_of_another_number_are_refused(
    path: Path, place: MeetingPlace, worker: WorkerThread
) -> None:
    with (
        pytest.raises(ConfigError, match="expert_share: 3 numbers, expected 2"),
        pooled(path, place, (1.0, 1.0, 1.0)),
    ):
        pass
    with pooled(path, place, SHARES, device="cpu", context_tokens=64):
        pass  # the worker has waited for it


def test_a_dense_model_has_nothing_to_share(tmp_path: Path, place: MeetingPlace) -> None:
    path = tmp_path / "dense.gguf"
    write_tiny(path, dense_layers=3)
    with (
        pytest.raises(ConfigError, match="expert_parallel: this model has no experts"),
        pooled(path, place, SHARES),
    ):
        pass
