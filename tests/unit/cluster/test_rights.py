"""Who has the right to what, among daemons that see one another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from couchjobs.cluster.daemon import Daemon
from couchjobs.cluster.peers import Peers
from couchjobs.prefixer import Prefixer
from couchjobs.settings import load_settings

DB = Prefixer("alice.example", "alice")


def daemons_of(**kinds: str) -> list[Daemon]:
    """Daemons that all see one another: of `one` tenant, of `many` by name, of `all`."""
    tenants: dict[str, dict[str, Any]] = {
        "one": {"prefix": "alice"},
        "many": {"tenants": ["alice", "bob"]},
        "all": {"tenants": "all"},
    }
    common = {"worker_types": ["w"], "schedules": True, "beat": 1}
    documents = [{"_id": f"daemon:{name}", **tenants[kind], **common} for name, kind in kinds.items()]
    found = []
    for name, kind in kinds.items():
        peers = Peers(name, 30.0)
        peers.note(documents, moved=True)
        settings = load_settings()
        presence: Any = SimpleNamespace(
            id=name,
            peers=peers,
            serves_many=kind != "one",
            schedules=True,
            connection=SimpleNamespace(settings=settings),
        )
        daemon = Daemon(SimpleNamespace(settings=settings), DB, presence)  # type: ignore[arg-type]
        daemon.partition.take(["w"])
        found.append(daemon)
    return found


@pytest.mark.parametrize(
    "kinds",
    [
        {"a": "one", "b": "one", "c": "one"},
        {"a": "one", "b": "all"},
        {"a": "many", "b": "one", "c": "one"},
        {"a": "all", "b": "many", "c": "one", "d": "one"},
        {"a": "all", "b": "many"},
    ],
)
def test_rights_when_daemons_of_one_tenant_and_of_many_share_it_then_each_thing_is_exactly_one_daemons(
    kinds: dict[str, str],
) -> None:
    """Feeds have no second right: what two leave to one another is done by nobody."""
    daemons = daemons_of(**kinds)
    for number in range(100):
        assert sum(daemon.fires(f"feed:orders-{number}") for daemon in daemons) == 1
        assert sum(daemon.answers_for(f"dead-{number}", ["w"]) for daemon in daemons) == 1
        assert sum(daemon.partition.has(f"job-{number}", "w") for daemon in daemons) == 1
        assert sorted(daemon.rank_for(f"trigger:{number}") or 0 for daemon in daemons) == [*range(len(daemons))]
    for duty in ("conflicts", "unnamed", "retention"):
        assert sum(daemon.answers_for(duty, ["w"]) for daemon in daemons) == 1


def test_rights_when_daemons_of_one_tenant_are_there_then_they_come_first_and_still_share_it() -> None:
    """One of many that comes takes nothing from them, nor does it keep them from sharing; it comes last."""
    one, other, many = daemons_of(a="one", b="one", c="all")
    alone = daemons_of(a="one", b="one")
    for number in range(100):
        key = f"feed:orders-{number}"
        assert [daemon.fires(key) for daemon in (one, other, many)] == [*(daemon.fires(key) for daemon in alone), False]
        jobs = [daemon.partition.has(f"job-{number}", "w") for daemon in (one, other, many)]
        assert jobs == [*(daemon.partition.has(f"job-{number}", "w") for daemon in alone), False]
    assert many.rank_for("feed:orders") == 2


def test_partition_when_a_daemon_of_many_has_none_of_the_workers_then_it_counts_for_nothing() -> None:
    """And where those of one tenant have another worker, it has all jobs of its own."""
    one, many = daemons_of(a="one", b="all")
    for daemon, own in ((one, "other"), (many, "w")):
        daemon.partition.take([own])
    assert all(many.partition.has(f"job-{number}", "w") for number in range(50)) is False
    peers: Any = many.partition._peers
    peers._peers["a"].worker_types = frozenset({"other"})
    many.partition.take(["w"])
    assert all(many.partition.has(f"job-{number}", "w") for number in range(50))


def test_rights_when_all_are_of_one_tenant_then_they_share_it() -> None:
    """None has all of it."""
    for daemon in daemons_of(a="one", b="one"):
        assert 0 < sum(daemon.partition.has(f"job-{number}", "w") for number in range(100)) < 100
