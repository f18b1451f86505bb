"""What has been seen of a database."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couchjobs.scheduler import seen as module
from couchjobs.scheduler.seen import Seen

STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "forget"]), st.integers(0, 12), st.integers(0, 3), st.booleans()), max_size=60
)


@given(STEPS)
def test_seen_when_documents_come_and_are_forgotten_then_as_a_plain_dict(steps: list[Any]) -> None:
    """Whenever it merges."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MERGED_AT", 5)
        seen, plain = Seen(), dict[str, tuple[str, bool]]()
        for what, number, rev, deleted in steps:
            doc_id = f"doc-{number}"
            if what == "add":
                seen.add(doc_id, f"{rev}-a", deleted=deleted)
                plain[doc_id] = (f"{rev}-a", deleted)
            else:
                seen.forget([doc_id])
                plain.pop(doc_id, None)
            for known in range(13):
                one = f"doc-{known}"
                there = plain.get(one)
                assert seen.knows(one) == (there is not None and not there[1])
                for revision in range(4):
                    for gone in (False, True):
                        assert seen.has(one, f"{revision}-a", deleted=gone) == (there == (f"{revision}-a", gone))
        assert len(seen) == len(plain)


def test_seen_when_a_document_is_deleted_then_a_later_one_of_its_id_is_new() -> None:
    """It is created again."""
    seen = Seen()
    seen.add("a", "1-a", deleted=False)
    assert seen.knows("a")
    seen.add("a", "2-b", deleted=True)
    assert not seen.knows("a")
    assert seen.has("a", "2-b", deleted=True)
    assert not seen.has("a", "2-b", deleted=False)


@given(st.dictionaries(st.text(max_size=5), st.tuples(st.integers(1, 9), st.booleans())), st.sets(st.text(max_size=5)))
def test_seen_when_written_down_and_read_again_then_the_same(
    known: dict[str, tuple[int, bool]], asked: set[str]
) -> None:
    """And what another one adopts of it is what it knew."""
    seen = Seen()
    for doc_id, (rev, deleted) in known.items():
        seen.add(doc_id, f"{rev}-a", deleted=deleted)
    again, other = Seen.from_bytes(seen.as_bytes()), Seen()
    other.add("kept", "1-b", deleted=False)
    other.adopt(again, asked - {"kept"})
    for doc_id, (rev, deleted) in known.items():
        assert again.has(doc_id, f"{rev}-a", deleted=deleted)
        assert other.has(doc_id, f"{rev}-a", deleted=deleted) is (doc_id in asked - {"kept"})
    assert other.knows("kept")
    with pytest.raises(ValueError, match="no whole number"):
        Seen.from_bytes(b"123")


def test_seen_when_made_anew_twice_before_anything_came_then_what_was_before_is_known() -> None:
    """Or where the first time was not written down."""
    first = Seen()
    first.add("old", "1-a", deleted=False)
    again = first.renewed().renewed()
    assert again.has("old", "1-a", deleted=False)
    assert not again.knows("old")


def test_seen_when_made_anew_again_and_again_then_the_last_ones_are_known_and_memory_is_bounded() -> None:
    """A database that is filled anew each night, for years."""
    seen = Seen()
    for night in range(2000):
        seen.add(f"{night}", "1-a", deleted=False)
        seen = seen.renewed()
    assert all(seen.has(f"{night}", "1-a", deleted=False) for night in range(1990, 2000))
    count, one = 0, seen.before
    while one is not None:
        count, one = count + 1, one.before
    assert count == 10


def test_seen_when_those_before_are_large_then_the_newest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its size."""
    monkeypatch.setattr("couchjobs.scheduler.seen._MOST_REMEMBERED", 10)
    seen = Seen()
    for night in range(5):
        for number in range(8 if night < 4 else 20):
            seen.add(f"{night} {number}", "1-a", deleted=False)
        seen = seen.renewed()
    assert seen.has("4 19", "1-a", deleted=False)
    assert not seen.has("3 0", "1-a", deleted=False)
