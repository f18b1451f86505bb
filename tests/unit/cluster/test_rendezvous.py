"""Which daemon has the first right to what."""

from __future__ import annotations

from couchjobs.cluster.rendezvous import BUCKETS, bucket, buckets_of, first_right


def test_first_right_when_a_daemon_comes_or_goes_then_only_its_share_moves() -> None:
    """Evenly, and all daemons agree."""
    three, keys = ["a", "b", "c"], [str(n) for n in range(3000)]
    before = {key: first_right(key, three) for key in keys}
    assert before == {key: first_right(key, three[::-1]) for key in keys}
    assert all(900 < list(before.values()).count(daemon) < 1100 for daemon in three)
    after = {key: first_right(key, ["a", "c"]) for key in keys}
    assert all(after[key] == before[key] for key in keys if before[key] != "b")
    assert first_right("x", []) is None
    assert first_right("x", ["a"]) == "a"


def test_buckets_when_shared_then_each_has_one_owner_and_all_have_about_as_many() -> None:
    """The parts of the daemons are apart, and together everything."""
    daemons = [f"host-{number}" for number in range(8)]
    shares = [buckets_of(daemon, daemons) for daemon in daemons]
    assert sorted(number for share in shares for number in share) == [*range(BUCKETS)]
    assert max(len(share) for share in shares) < 1.5 * BUCKETS / 8
    assert buckets_of("a", ["a"]) == frozenset(range(BUCKETS))
    assert len({bucket(f"job-{number}") for number in range(10_000)}) == BUCKETS
