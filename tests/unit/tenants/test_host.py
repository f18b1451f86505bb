"""Whom a daemon of many tenants wakes, and when it asks which tenants there are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from couchjobs.cluster.peers import Tenants
from couchjobs.couch.connection import connect
from couchjobs.couch.live_feeds import LiveFeeds
from couchjobs.settings import load_settings
from couchjobs.tenants.host import Host
from couchjobs.workers.config import WorkersList


@pytest.fixture
async def host() -> AsyncIterator[Any]:
    """One with the tenants a and b, that serves nobody yet."""
    async with connect(load_settings(url="http://127.0.0.1:9", jobs_doctype="io.jobs")) as connection:
        host: Any = Host(connection, WorkersList(), "all")
        host._tenants = {key: SimpleNamespace(due_at=None, is_awake=key == "b") for key in ("a", "b")}
        yield host


def living(host: Any, **served: Tenants) -> None:
    """Have these daemons live, and the host look at that."""
    peers = [
        (name, SimpleNamespace(tenants=tenants, schedules=True, moved=True, serves_many=False))
        for name, tenants in served.items()
    ]
    host._presence.peers.living = lambda: iter(peers)
    host._rank()


async def test_rank_when_a_daemon_is_gone_then_those_that_it_served_are_woken_and_no_others(host: Any) -> None:
    """One of another tenant may start and end again and again, and one of all may have left jobs of all."""
    stranger, own, every = Tenants(frozenset({"z"})), Tenants(frozenset({"a"})), Tenants(None)
    for before, after, woken in (
        ({}, {"one": stranger}, set()),
        ({"one": stranger}, {}, set()),
        ({}, {"one": own}, {"a"}),
        ({"one": own}, {}, {"a"}),
        ({"one": own, "two": every}, {"one": own}, {"a", "b"}),
    ):
        living(host, **before)
        for tenant in host._tenants.values():
            tenant.due_at = None
        living(host, **after)
        assert {key for key, tenant in host._tenants.items() if tenant.due_at is not None} == woken, after
        assert host._handed_over <= {"a"}, "who is awake is woken for something else the next time"


async def test_tenants_when_another_daemon_has_the_first_right_then_they_have_no_place_here(host: Any) -> None:
    """Else each daemon would keep the same ones awake, and nobody the others."""
    host.connection.server.live_feeds = LiveFeeds(6, 500)
    host._tenants = {
        key: Mock(is_awake=key != "asleep", last_change_at=at, databases={f"{key}/jobs"})
        for key, at in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0), ("asleep", 5.0))
    }
    host._ranks = {"d": 1, "c": 0}
    assert host._most_active() == {host._tenants["b"], host._tenants["c"]}
    host._ranks = dict.fromkeys("abcd", 1)
    assert not host._most_active()
    assert host.connection.server.live_feeds._preferred == {"c/jobs", "d/jobs"}, "what is left over, others may have"


async def test_shards_when_several_daemons_serve_many_then_they_are_shared_out(host: Any) -> None:
    """Each would keep a fifth of what the server opens, and five of them all of it."""
    live = host.connection.server.live_feeds = LiveFeeds(100, 500)
    one = ("one", SimpleNamespace(tenants=Tenants(None), schedules=True, moved=True, serves_many=True))
    own = ("own", SimpleNamespace(tenants=Tenants(frozenset({"a"})), schedules=True, moved=True, serves_many=False))
    for peers, most in (([one, own], 50), ([own], 50), ([], 50)):
        host._presence.peers.living = lambda peers=peers: iter(peers)
        host._rank()
        assert live.most == most, "more of them after a while without errors"


async def test_unknown_when_databases_of_strangers_change_then_the_tenants_are_asked_for_once(host: Any) -> None:
    """They change twice a second, for ever, and there may be thousands of tenants to read."""
    for name, asks in (
        ("userdb-616e6e", False),
        ("a/orders", False),
        ("notio-jobs", False),
        ("c/io-jobs", True),
        ("c/io-jobs", False),
        ("io-jobs", True),
        ("d/io-jobs", True),
    ):
        host._note_unknown(name)
        assert await host._look.within(0) is asks, name
