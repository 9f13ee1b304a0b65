"""Hit curves: lines between points, and files that are none."""

import json
from pathlib import Path

import pytest

from hybridmoe.errors import ConfigError
from hybridmoe.planning.hit_curve import read_hit_curve


def test_a_curve_is_a_line_between_its_points(tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    path.write_text(json.dumps({"slots": [100, 300], "hit_rate": [0.2, 0.6], "policy": "lru"}))
    curve = read_hit_curve(path)
    assert [curve(n) for n in (0, 50, 100, 200, 300, 999)] == pytest.approx(
        [0, 0.1, 0.2, 0.4, 0.6, 0.6]
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "slots: expected a list"),
        ('{"slots": [], "hit_rate": []}', "slots: expected a list"),
        ('{"slots": [1], "hit_rate": ["0"]}', "hit_rate: found '0'"),
        ('{"slots": [1], "hit_rate": [1.5]}', "hit_rate: found 1.5"),
        ('{"slots": [NaN], "hit_rate": [1]}', "slots: found nan"),
        ('{"slots": [1e999], "hit_rate": [1]}', "slots: found inf"),
        ('{"slots": [1, 2], "hit_rate": [1]}', "2 slots but 1 hit rates"),
        ('{"slots": [2, 1], "hit_rate": [0, 1]}', "slots: expected numbers that ascend"),
    ],
)
def test_what_is_no_curve_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "curve.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"^curve\.json: ") as refused:
        read_hit_curve(path)
    assert words in str(refused.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read"):
        read_hit_curve(tmp_path / "none.json")
