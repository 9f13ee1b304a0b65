"""Stop strings: never shown, however the text is split."""

from hypothesis import given
from hypothesis import strategies as st

from hybridmoe.text.stop_strings import StopFilter

SHORT = st.text(alphabet="ab", min_size=1, max_size=3)


@given(st.lists(st.text(alphabet="abc", max_size=4)), st.lists(SHORT, max_size=3))
def test_pieces_equal_the_whole_cut_at_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    # The text ends within the first prefix that contains a stop string.
    expected, has_stop, seen = whole, False, ""
    for piece in pieces:
        seen += piece
        found = [at for stop in stops if (at := seen.find(stop)) >= 0]
        if found:
            expected, has_stop = seen[: min(found)], True
            break
    stop_filter = StopFilter(stops)
    got = "".join(stop_filter.push(piece) for piece in pieces) + stop_filter.flush()
    assert got == expected
    assert stop_filter.has_stopped == has_stop


def test_a_prefix_is_held_until_it_cannot_match() -> None:
    stop_filter = StopFilter(["STOP"])
    assert stop_filter.push("go ST") == "go "
    assert stop_filter.push("ART") == "START"
    assert stop_filter.push("STO") == ""
    assert stop_filter.flush() == "STO"
