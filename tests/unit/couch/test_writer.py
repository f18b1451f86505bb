"""Group commit, and what becomes of a write whose answer is lost, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from couchjobs.couch.answers import WriteAnswer, Written
from couchjobs.couch.client import CouchServer
from couchjobs.couch.database import Database
from couchjobs.couch.surely import INSIST_FOR_LONG_S, Insistence, Refusals, write_surely
from couchjobs.couch.writer import GroupWriter
from couchjobs.errors import BadRequest, NotFound, Stumbled, TooLarge, Unavailable


async def turns(count: int = 15) -> None:
    """Let so many turns of the event loop go by."""
    for _ in range(count):
        await asyncio.sleep(0)


class ScriptedServer(CouchServer):
    """A server whose answers a function makes up."""

    def __init__(self, answer: Callable[[str, str, Any], Any]) -> None:
        super().__init__("http://nowhere.invalid")
        self.requests: list[tuple[str, str, Any]] = []
        self.turns = 1
        self._answer = answer

    async def request(self, method: str, path: str, **more: Any) -> Any:
        """Answer after some turns of the loop."""
        body = orjson.loads(more["body"]) if more.get("body") else None
        self.requests.append((method, path, body))
        await turns(self.turns)
        return self._answer(method, path, body)


def writer_on(answer: Callable[[str, str, Any], Any], **options: Any) -> tuple[GroupWriter, ScriptedServer]:
    """A writer on a scripted server."""
    server = ScriptedServer(answer)
    return GroupWriter(Database(server, "db"), **options), server


def all_ok(method: str, path: str, body: Any) -> Any:
    """Every document is stored."""
    return [{"ok": True, "id": doc["_id"], "rev": "1-a"} for doc in body["docs"]]


async def test_writer_when_many_wait_then_they_go_together() -> None:
    """At most two requests at a time, at most 500 documents each."""
    writer, server = writer_on(all_ok)
    answers = await asyncio.gather(*(writer.write({"_id": str(n)}) for n in range(1200)))
    assert all(answer.written is Written.OK for answer in answers)
    assert [len(body["docs"]) for _, _, body in server.requests] == [500, 500, 200]
    await writer.close()


async def test_writer_when_a_few_may_be_held_then_they_go_with_the_next_that_may_not() -> None:
    """Or as soon as they are many, or the moment is over, or the writer is closed."""
    writer, server = writer_on(all_ok)
    writer.may_hold = lambda: True
    held = writer.submit({"_id": "held"})
    for _ in range(10):
        await asyncio.sleep(0)
    assert not server.requests
    writer.may_hold = lambda: False
    await asyncio.gather(held, writer.write({"_id": "urgent"}))
    writer.may_hold = lambda: True
    await asyncio.gather(*(writer.write({"_id": str(n)}) for n in range(20)))
    await writer.write({"_id": "alone"})
    last = writer.submit({"_id": "last"})
    await writer.close()
    assert last.done()
    assert [len(body["docs"]) for _, _, body in server.requests] == [2, 20, 1, 1]


async def test_writer_when_others_are_about_to_come_then_documents_wait_for_them() -> None:
    """Neither one alone nor hundreds do; and what is released goes together with what follows from that."""
    writer, server = writer_on(all_ok)
    writer.hold()
    await writer.write({"_id": "alone"})
    held = [writer.submit({"_id": str(n)}) for n in range(10)]
    await turns()
    assert len(server.requests) == 1
    writer.release()
    await turns(3)
    await asyncio.gather(*held, writer.write({"_id": "follows"}))
    writer.hold()
    await asyncio.gather(*(writer.write({"_id": str(n)}) for n in range(200)))
    assert [len(body["docs"]) for _, _, body in server.requests] == [1, 11, 200]
    await writer.close()


async def test_writer_when_the_others_do_not_come_then_nothing_waits_for_long() -> None:
    """Once they have not come in time, the next documents do not wait either."""
    writer, server = writer_on(all_ok)
    writer.hold()
    await asyncio.gather(*(writer.write({"_id": str(n)}) for n in range(10)))
    later = [writer.submit({"_id": str(n)}) for n in range(10)]
    await turns()
    assert all(answer.done() for answer in later)
    assert [len(body["docs"]) for _, _, body in server.requests] == [10, 10]
    await writer.close()


async def test_writer_when_ends_follow_from_an_answer_then_they_go_with_what_waits() -> None:
    """Not one request later."""
    writer, server = writer_on(all_ok)
    server.turns = 20

    async def claim_and_end(name: str) -> None:
        await writer.write({"_id": name})
        await asyncio.create_task(asyncio.sleep(0))
        await writer.write({"_id": f"{name} ends"})

    claims = asyncio.gather(*(claim_and_end(str(n)) for n in range(3)))
    await turns()
    await asyncio.gather(claims, writer.write({"_id": "pushed meanwhile"}))
    assert [len(body["docs"]) for _, _, body in server.requests] == [3, 4]
    await writer.close()


async def test_writer_when_asked_for_what_is_about_to_be_sent_then_that_has_been_answered() -> None:
    """What follows from what was done before is waited for; what is refused is no news."""
    writer, _ = writer_on(lambda *_: [{"id": "b", "error": "conflict"}, {"ok": True, "id": "a", "rev": "1-a"}])
    answers = [writer.submit({"_id": one}) for one in "ba"]
    assert writer.newest == ""
    await writer.answered(10)
    assert all(answer.done() for answer in answers)
    assert writer.newest == "1-a"
    await writer.close()


async def test_writer_when_documents_are_large_then_smaller_batches() -> None:
    """Bytes are limited too."""
    writer, server = writer_on(all_ok, max_bytes=1000)
    await asyncio.gather(*(writer.write({"_id": str(n), "x": "y" * 400}) for n in range(5)))
    assert [len(body["docs"]) for _, _, body in server.requests] == [2, 2, 1]


async def test_writer_when_rows_differ_then_each_caller_gets_his_own() -> None:
    """Matched by id, whatever the order; a row that is missing is unknown."""
    rows = [
        {"id": "conflict", "error": "conflict", "reason": "r"},
        {"id": "forbidden", "error": "forbidden", "reason": "no"},
        {"id": "special", "error": "doc_validation", "reason": "r"},
        {"id": "broken", "error": "internal_server_error", "reason": "r"},
        {"id": "twice", "error": "conflict", "reason": "r"},
        {"id": "accepted", "ok": True, "accepted": True, "rev": "1-b"},
        {"id": "ok", "ok": True, "rev": "1-a"},
        {"id": "twice", "ok": True, "rev": "1-c"},
    ]
    writer, _ = writer_on(lambda method, path, body: rows)
    names = ["ok", "accepted", "conflict", "forbidden", "special", "broken", "missing", "twice", "twice"]
    answers = await asyncio.gather(*(writer.write({"_id": name}) for name in names))
    assert [answer.written.value for answer in answers] == [
        "ok",
        "accepted",
        "conflict",
        "refused",
        "refused",
        "unknown",
        "unknown",
        "conflict",
        "ok",
    ]
    assert answers[3].reason == "forbidden: no"
    assert answers[1].stored


async def test_writer_when_a_row_has_an_error_then_it_is_its_own_only_where_others_are_stored() -> None:
    """A function that validates documents may stumble over one, or be broken for all; a shard may be away."""

    def rows(method: str, path: str, body: Any) -> list[Any]:
        return [
            {"id": one["_id"], "error": one["error"], "reason": "r"} if "error" in one
            else {"id": one["_id"], "ok": True, "rev": "1-a"}
            for one in body["docs"]
        ]  # fmt: skip

    writer, _ = writer_on(rows)
    stumbles = {"_id": "a", "error": "TypeError"}
    assert not (await writer.write(stumbles)).alone, "of all documents, perhaps"
    errors = ["TypeError", "os_process_error", "internal_server_error", "conflict", "insufficient_storage"]
    answers = await asyncio.gather(writer.write({"_id": "b"}), *(writer.write({"_id": e, "error": e}) for e in errors))
    assert [answer.alone for answer in answers] == [False, True, True, False, False, False]
    assert [answer.own_error for answer in answers] == [False, True, True, False, False, False]


async def test_writer_when_couchdb_stumbles_over_one_then_its_own_error_and_no_conflict_of_the_rest() -> None:
    """The request is answered 500 as a whole, and some of its documents are stored all the same."""
    stored: set[str] = set()

    def stumbling(method: str, path: str, body: Any) -> Any:
        if path.endswith("_bulk_get"):
            return {"results": [{"id": "a", "docs": [{"ok": {"_id": "a", "_rev": "1-a"}}]}]}
        rows: list[Any] = []
        for one in body["docs"]:
            name = one["_id"]
            if name == "bad":
                raise Stumbled("POST /db/_bulk_docs: 500 unknown_error: function_clause", 500)
            conflict = {"id": name, "error": "conflict", "reason": "Document update conflict."}
            rows.append(conflict if name in stored or name == "other" else {"id": name, "ok": True, "rev": "1-a"})
            stored.add(name)
        return rows

    writer, server = writer_on(stumbling)
    answers = await asyncio.gather(*(writer.write({"_id": name}) for name in ("a", "other", "bad", "b")))
    assert [answer.written.value for answer in answers] == ["unknown", "unknown", "unknown", "ok"]
    assert [answer.own_error for answer in answers] == [False, False, True, False]
    assert not any(answer.alone or answer.unsent for answer in answers)
    again = await writer.write({"_id": "bad"})
    assert again.own_error
    assert again.others_stored_at
    stored.clear()
    settled, _ = await asyncio.gather(write_surely(writer, {"_id": "a"}), writer.write({"_id": "bad"}))
    assert settled.written is Written.OK, "what was stored beside the bad one is ours"
    server.requests.clear()
    await asyncio.gather(*(writer.write({"_id": name}) for name in ("c", "bad", "d")))
    written = [[one["_id"] for one in body["docs"]] for _, path, body in server.requests if path.endswith("_bulk_docs")]
    assert written == [["c"], ["bad"], ["d"]], "once known, it spoils no other one's request"


async def test_writer_when_couchdb_stumbles_over_all_then_not_asked_for_each_at_once() -> None:
    """Somebody's function is broken for all of them: those that are not known to be are tried again."""

    def stumbling(method: str, path: str, body: Any) -> Any:
        if body["docs"]:
            raise Stumbled("500", 500)
        return []

    writer, server = writer_on(stumbling)
    answers = await asyncio.gather(*(writer.write({"_id": str(number)}) for number in range(500)))
    assert {answer.written for answer in answers} == {Written.UNKNOWN}
    assert len(server.requests) < 300


def test_insistence_when_a_document_has_an_error_then_refused_once_another_one_is_stored() -> None:
    """Since the first error: before that the function may have been another one. An outage begins it anew."""
    error = WriteAnswer(Written.UNKNOWN, own_error=True, others_stored_at=99.0)
    insistence = Insistence()
    assert not any(insistence.note(error, now) for now in range(100, 200))
    error = error._replace(others_stored_at=150.0)
    assert insistence.note(error, 200)
    assert not insistence.note(WriteAnswer(Written.UNKNOWN), 201)
    assert not any(insistence.note(error, now) for now in range(210, 300))
    assert not insistence.note(error._replace(alone=True), 100)
    insistence = Insistence()
    insistence.note(error._replace(alone=True), 300)
    assert [insistence.note(error, now) for now in (301, 302, 329, 330)] == [False, False, False, True]
    assert INSIST_FOR_LONG_S > 10 * 15


def test_refusals_when_of_another_revision_then_they_count_anew() -> None:
    """A claim that was taken ends the row; so many are remembered, those that are still asked for first."""
    refusals, error = Refusals(), WriteAnswer(Written.UNKNOWN, own_error=True, others_stored_at=1e9)

    def note(answer: WriteAnswer, now: float, *names: str) -> bool:
        insistence = refusals.of(*names)
        is_refused = insistence.note(answer, now)
        refusals.keep(insistence, *names)
        return is_refused

    for now in (0, 1, 3, 7):
        assert not note(error, now, "job", "1-a")
    assert refusals.times("job", "1-a") == 4
    assert not note(error, 1000, "job", "3-c")
    assert not note(WriteAnswer(Written.UNKNOWN, unasked=True), 1001, "job", "1-a"), "nothing was said of it"
    assert refusals.times("job", "1-a") == 4
    assert note(error, 1002, "job", "1-a")
    assert not note(WriteAnswer(Written.UNKNOWN), 1003, "job", "1-a"), "an outage begins it anew"
    assert refusals.times("job", "1-a") == 0
    for number in range(20_000):
        note(error, 1200, str(number))
    assert [refusals.times(*names) for names in (("job", "3-c"), ("0",), ("19999",))] == [1, 1, 0]
    note(error, 1700, "new")
    assert [refusals.times(*names) for names in (("job", "3-c"), ("0",), ("new",))] == [0, 1, 1], "nobody asked for it"
    refusals.forget("new")
    assert refusals.times("new") == 0


async def test_writer_when_the_request_fails_then_unknown_or_an_error() -> None:
    """No answer: it may have happened. No database: an error for everybody."""

    def unavailable(method: str, path: str, body: Any) -> Any:
        raise Unavailable("lost")

    writer, _ = writer_on(unavailable)
    assert (await writer.write({"_id": "a"})).written is Written.UNKNOWN

    def missing(method: str, path: str, body: Any) -> Any:
        raise NotFound("no database")

    writer, _ = writer_on(missing)
    with pytest.raises(NotFound):
        await writer.write({"_id": "a"})
    with pytest.raises(BadRequest, match="not JSON"):
        await writer.write({"_id": "a", "x": object()})


@pytest.mark.parametrize("error", [TooLarge("413", 413), BadRequest("400", 400)])
async def test_writer_when_one_document_spoils_the_batch_then_it_alone_is_refused(error: Exception) -> None:
    """The request is halved until it stands alone."""

    def answer(method: str, path: str, body: Any) -> Any:
        if any(doc["_id"] == "bad" for doc in body["docs"]):
            raise error
        return all_ok(method, path, body)

    writer, _ = writer_on(answer)
    names = [f"good-{n}" for n in range(20)]
    names.insert(7, "bad")
    answers = await asyncio.gather(*(writer.write({"_id": name}) for name in names))
    refused = [name for name, answer in zip(names, answers, strict=True) if answer.written is not Written.OK]
    assert refused == ["bad"]
    assert (answers[7].written, answers[7].alone) == (Written.UNKNOWN, True), "once is not for good"


async def test_writer_when_a_caller_is_cancelled_then_the_others_get_their_answers() -> None:
    """And the write happens all the same."""
    writer, server = writer_on(all_ok)
    first, second = asyncio.create_task(writer.write({"_id": "a"})), asyncio.create_task(writer.write({"_id": "b"}))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).written is Written.OK
    assert len(server.requests[0][2]["docs"]) == 2


async def test_settle_when_answer_is_lost_then_the_document_decides() -> None:
    """The same content there: stored. Another: a conflict. No server: asked again."""
    stored: dict[str, Any] = {"_id": "a", "_rev": "1-z", "x": 1}
    asked = 0

    def answer(method: str, path: str, body: Any) -> Any:
        nonlocal asked
        asked += 1
        if path.endswith("_bulk_docs"):
            if asked == 1:
                raise Unavailable("lost")
            return [{"id": "a", "error": "conflict", "reason": "r"}]
        if asked == 3:
            raise Unavailable("lost")
        return {"results": [{"id": "a", "docs": [{"ok": stored}]}]}

    writer, _ = writer_on(answer)
    found = await write_surely(writer, {"_id": "a", "x": 1})
    assert (found.written, found.rev) == (Written.OK, "1-z")
    asked = 0
    stored["x"] = 2
    assert (await write_surely(writer, {"_id": "a", "x": 1})).written is Written.CONFLICT


async def test_settle_when_patience_ends_then_unknown() -> None:
    """The caller says how long."""

    def unavailable(method: str, path: str, body: Any) -> Any:
        raise Unavailable("down")

    writer, _ = writer_on(unavailable)
    assert (await write_surely(writer, {"_id": "a"}, patience_s=0.01)).written is Written.UNKNOWN


async def test_submit_when_it_fails_without_an_event_loop_then_later_ones_are_written() -> None:
    """A coroutine that somebody drives by hand, say."""
    writer, _ = writer_on(all_ok)

    def by_hand() -> None:
        with pytest.raises(RuntimeError):
            write_surely(writer, {"_id": "a"}).send(None)

    await asyncio.to_thread(by_hand)
    assert (await write_surely(writer, {"_id": "b"})).written is Written.OK
    await writer.close()


async def test_write_when_given_up_before_it_is_sent_then_never_sent_and_surely_not_stored() -> None:
    """Whoever is told that there is no answer pushes again: what waits behind a request that hangs is not to come."""
    answered = asyncio.Event()

    class Hanging(ScriptedServer):
        async def request(self, method: str, path: str, **more: Any) -> Any:
            answer = await super().request(method, path, **more)
            await answered.wait()
            return answer

    server = Hanging(all_ok)
    writer = GroupWriter(Database(server, "db"))
    out = asyncio.create_task(write_surely(writer, {"_id": "out"}, patience_s=0.0, longest_s=0.2))
    await turns()
    behind = [write_surely(writer, {"_id": str(n)}, patience_s=0.0, longest_s=0.1) for n in range(20)]
    for answer in await asyncio.gather(*behind):
        assert answer.written is Written.UNKNOWN
        assert answer.unsent
    assert not (await out).unsent, "that one is out, and may be stored"
    answered.set()
    assert (await writer.write({"_id": "last"})).written is Written.OK
    await writer.close()
    assert [[doc["_id"] for doc in body["docs"]] for _, _, body in server.requests] == [["out"], ["last"]]


async def test_write_when_its_answer_is_lost_and_it_has_an_attachment_then_known_by_the_rest() -> None:
    """CouchDB gives back a digest where data was written."""
    data = {"original.json": {"content_type": "application/json", "data": "e30="}}
    stub = {"original.json": {"content_type": "application/json", "digest": "md5-x", "length": 2, "stub": True}}
    lost = [True]

    def answer(method: str, path: str, body: Any) -> Any:
        if path.endswith("_bulk_docs"):
            if lost and lost.pop():
                raise Unavailable("lost")
            return [{"id": "a", "error": "conflict", "reason": "r"}]
        return {"results": [{"id": "a", "docs": [{"ok": {"_id": "a", "_rev": "2-z", "x": 1, "_attachments": stub}}]}]}

    writer, _ = writer_on(answer)
    found = await write_surely(writer, {"_id": "a", "x": 1, "_attachments": data})
    assert (found.written, found.rev) == (Written.OK, "2-z")
