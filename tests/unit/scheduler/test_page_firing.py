"""What a page of changes makes fire, where not all of it can be stored at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import pytest

from couchjobs.couch.answers import Found
from couchjobs.couch.changes import Change
from couchjobs.couch.connection import Connection, connect
from couchjobs.errors import CouchError, Unavailable
from couchjobs.jobs.job import Job
from couchjobs.scheduler import page_firing
from couchjobs.scheduler.page_firing import PageFiring
from couchjobs.scheduler.past import Past
from couchjobs.scheduler.seen import Seen
from couchjobs.scheduler.trigger import EventTrigger, new_trigger
from couchjobs.settings import load_settings
from couchjobs.triggers.infos import TriggerInfos

PAGE = [Change("a", "1-a", False), Change("b", "1-b", False), Change("c", "1-c", False)]


class Firings:
    """Counts firings by their trigger; those of some cannot be stored."""

    def __init__(self) -> None:
        self.fired: Counter[str] = Counter()
        self.failing: set[str] = set()

    async def fire(self, infos: TriggerInfos, make_job: Callable[[], Job], _makers: Collection[str] = ()) -> None:
        """Store one, or not."""
        assert make_job().trigger_id == infos.id
        if infos.id in self.failing:
            raise Unavailable("the database of its jobs is missing")
        self.fired[infos.id] += 1


@pytest.fixture
async def connection() -> AsyncIterator[Connection]:
    """One that is never used."""
    async with connect(load_settings(url="http://127.0.0.1:9")) as connection:
        yield connection


def of_orders(firing: Any, connection: Connection, past: Past, unknown: set[str]) -> PageFiring:
    """Return what fires for a database of orders; CouchDB does not say what those with the ids `unknown` are."""
    page = PageFiring(connection, connection.settings.tenant, "orders", firing, past)

    async def revisions(asked: list[tuple[str, str | None]], *, revs: bool = False) -> AsyncIterator[list[Found]]:
        assert revs or not asked
        yield [
            Found(doc_id, rev, None, reason="maintenance_mode")
            if doc_id in unknown
            else Found(doc_id, rev, {"_id": doc_id, "_rev": rev, "_revisions": {"start": 1, "ids": [(rev or "")[2:]]}})
            for doc_id, rev in asked
        ]

    page._database.revisions = revisions  # type: ignore[assignment,method-assign]
    return page


def trigger(connection: Connection, name: str, debounce: str = "") -> EventTrigger:
    """Return one that fires for each new order."""
    more = {"debounce": debounce} if debounce else {}
    document = {"_id": name, "type": "@event", "arguments": "orders:CREATED", "worker": "w", "message": None, **more}
    made = new_trigger(connection.settings.tenant, TriggerInfos.from_document(document))
    assert isinstance(made, EventTrigger)
    return made


@pytest.mark.parametrize("seen", [Seen(), None])
async def test_page_when_it_is_tried_again_then_what_has_fired_of_it_does_not_fire_again(
    connection: Connection, seen: Seen | None
) -> None:
    """A debounced trigger would open one window after the other, for as long as one document is not to be had."""
    firings, unknown, past = Firings(), {"b"}, Past()
    past.seen = seen
    page = of_orders(firings, connection, past, unknown)
    triggers = [trigger(connection, "each"), trigger(connection, "window", "10s")]
    for _ in range(5):
        with pytest.raises(CouchError):
            await page.fire(triggers, PAGE)
    assert firings.fired == {"each": 2, "window": 1}
    unknown.clear()
    await page.fire(triggers, PAGE)
    page.done()
    assert firings.fired == {"each": 3, "window": 2}


async def test_page_when_one_trigger_cannot_be_stored_then_the_others_fire_once(connection: Connection) -> None:
    """And it, when it can: for each document."""
    firings, past = Firings(), Past()
    firings.failing.add("bad")
    page = of_orders(firings, connection, past, set())
    triggers = [trigger(connection, "bad"), trigger(connection, "good"), trigger(connection, "window", "10s")]
    for _ in range(5):
        with pytest.raises(CouchError):
            await page.fire(triggers, PAGE)
    assert firings.fired == {"good": 3, "window": 1}
    firings.failing.clear()
    await page.fire(triggers, PAGE)
    page.done()
    assert firings.fired == {"bad": 3, "good": 3, "window": 1}


async def test_page_when_a_document_has_changed_before_the_next_try_then_it_is_not_new_again(
    connection: Connection,
) -> None:
    """Its first revision has fired as CREATED; the position was not moved for another one's sake."""
    firings, unknown, past = Firings(), {"b"}, Past()
    past.seen = Seen()
    page = of_orders(firings, connection, past, unknown)
    triggers = [trigger(connection, "each")]
    with pytest.raises(CouchError):
        await page.fire(triggers, PAGE)
    unknown.clear()
    await page.fire(triggers, [PAGE[1], PAGE[2], Change("a", "2-a", False)])
    assert firings.fired == {"each": 3}


async def test_page_when_its_documents_change_again_and_again_then_little_is_remembered(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One document may be not to be had for days; and what cannot be stored is no firing that would be counted."""
    monkeypatch.setattr(page_firing, "_MOST_FIRED", 10)
    firings, past = Firings(), Past()
    firings.failing.add("bad")
    page = of_orders(firings, connection, past, {"b"})
    triggers = [trigger(connection, "bad"), trigger(connection, "good")]
    for number in range(1, 50):
        with pytest.raises(CouchError):
            await page.fire(triggers, [Change("a", f"1-{number}", False), PAGE[1]])
    assert len(page._fired) <= 10
    assert "bad" not in page.loops.found


@pytest.mark.parametrize("was_there", [False, True])
async def test_page_when_nobody_knows_a_document_of_it_then_waited_for_a_while_unless_it_was_deleted(
    connection: Connection, was_there: bool
) -> None:
    """A copy of a cluster tells of it first, and the others have it a moment later: its row does not come again."""
    firings, past = Firings(), Past()
    past.seen = Seen()
    page = of_orders(firings, connection, past, set())
    database: Any = page._database
    with_all = database.revisions

    async def without_b(asked: list[tuple[str, str | None]], *, revs: bool = False) -> AsyncIterator[list[Found]]:
        async for answers in with_all(asked, revs=revs):
            yield [Found("b", "1-b", None, absent=True) if one.doc_id == "b" else one for one in answers]

    async def nothing(_: str) -> None:
        return None

    async def missing(wanted: list[Any]) -> list[Any]:
        return [] if was_there else wanted

    database.revisions, database.find, database.missing_revisions = without_b, nothing, missing
    triggers = [trigger(connection, "each")]
    for _ in range(0 if was_there else page_firing._LOOKS):
        with pytest.raises(CouchError):
            await page.fire(triggers, PAGE)
    await page.fire(triggers, PAGE)
    assert firings.fired == {"each": 2}
