"""Rate of a disk: pieces of all files are read, each once before any again; errors are one line."""

from pathlib import Path

import pytest

from hybridmoe.errors import DiskError
from hybridmoe.experts.disk import disk_rate
from hybridmoe.experts.disk.disk_rate import DiskMeter, measure_disk
from hybridmoe.experts.disk.file_reader import FileReader
from hybridmoe.experts.disk.read_request import ReadRequest

PIECE = 1 << 16


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(disk_rate, "PIECE_BYTES", PIECE)
    found = [tmp_path / "0", tmp_path / "1"]
    for path, size in zip(found, (3 * PIECE, 2 * PIECE - 1), strict=True):
        path.write_bytes(bytes(size))
    return found


def test_all_files_are_read_piece_by_piece(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    submit = FileReader.submit

    def noting(reader: FileReader, request: ReadRequest) -> None:
        (part,) = request.ranges
        read.append((part.file_index, part.offset // PIECE, part.num_bytes))
        submit(reader, request)

    monkeypatch.setattr(FileReader, "submit", noting)
    with DiskMeter(paths) as meter:
        if not meter.can_measure:
            pytest.skip("the file system has no direct reads")
        assert meter.measure(0.01) > 0
        assert meter.measure(0.0) > 0, "again, with the same files"
    pieces = {(0, 0, PIECE), (0, 1, PIECE), (0, 2, PIECE), (1, 0, PIECE)}
    assert set(read[:4]) == set(read[4:8]) == pieces
    assert len(read) >= 12, "six in flight, twice"


def test_files_without_a_piece_are_not_measured(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x" * 100)
    assert measure_disk([tmp_path / "short"]) is None


def test_a_file_that_is_shortened_is_an_error(paths: list[Path]) -> None:
    with DiskMeter(paths) as meter:
        paths[0].write_bytes(b"")
        paths[1].write_bytes(b"")
        with pytest.raises(DiskError, match=r"^[01]: tensor weights: "):
            meter.measure(0.01)
