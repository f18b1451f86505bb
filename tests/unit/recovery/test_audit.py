"""What becomes of claims that nobody runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from couchjobs.jobs.job import Job
from couchjobs.jobs.own_claims import OwnClaims
from couchjobs.recovery.audit import Audit


def claimed(rev: str, daemon: str) -> dict[str, Any]:
    """A running leaf of a job."""
    claim = {"id": rev, "daemon": daemon, "at": "2026-01-01T00:00:00Z"}
    return {"_id": "j", "_rev": rev, "worker": "w", "message": None, "state": "running", "claim": claim}


async def test_give_up_when_two_leaves_are_claims_of_this_daemon_then_one_goes_and_the_other_is_put_back() -> None:
    """Neither answer came: each would wait for the other for as long as the daemon lives."""
    deleted: list[str] = []
    put_back: list[str] = []
    found = [claimed("2-f", "own"), claimed("2-a", "own"), {**claimed("1-q", "own"), "state": "queued", "claim": None}]

    async def leaves(_: str) -> list[dict[str, Any]]:
        return found

    async def delete_leaf(leaf: dict[str, Any]) -> bool:
        deleted.append(leaf["_rev"])
        return True

    async def release(job: Any) -> bool:
        put_back.append(job.rev)
        return True

    store = SimpleNamespace(database=SimpleNamespace(leaves=leaves), read=Job.read)
    lost: Any = SimpleNamespace(
        store=store,
        failures=SimpleNamespace(daemon="own"),
        ends=SimpleNamespace(delete_leaf=delete_leaf),
        release=release,
    )
    assert await Audit(lost, OwnClaims()).give_up("j")
    assert (deleted, put_back) == (["2-a"], ["2-f"])
    found.insert(1, claimed("2-c", "other"))
    assert not await Audit(lost, OwnClaims()).give_up("j"), "another daemon runs it on a branch that loses"


async def test_give_up_when_the_leaf_that_loses_has_run_then_its_try_counts() -> None:
    """It is withdrawn, and the one that wins stands for it."""
    taken: list[str] = []
    found = [claimed("2-f", "own"), claimed("2-a", "own")]

    async def leaves(_: str) -> list[dict[str, Any]]:
        return found

    async def delete_leaf(_: dict[str, Any]) -> bool:
        return True

    async def take(job: Any, why: str) -> bool:
        taken.append(job.rev)
        return True

    store = SimpleNamespace(database=SimpleNamespace(leaves=leaves), read=Job.read)
    lost: Any = SimpleNamespace(
        store=store, failures=SimpleNamespace(daemon="own"), ends=SimpleNamespace(delete_leaf=delete_leaf), take=take
    )
    claims = OwnClaims()
    claims.begun["j"] = "2-a"
    assert await Audit(lost, claims).give_up("j")
    assert taken == ["2-f"]
    assert "j" not in claims.begun
