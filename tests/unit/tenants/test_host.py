"""Whom a daemon of many tenants wakes, and when it asks which tenants there are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from couchjobs.cluster.peers import Tenants
from couchjobs.couch.connection import connect
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
