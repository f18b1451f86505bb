"""Callers that go together: each gets his own answer, and who gives up takes nobody along."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from couchjobs.errors import Refused, Unavailable
from couchjobs.scheduler.together import Together


class Server:
    """Answers, once it may, with what was asked for; refuses what is "bad", and more than `most` at once."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.asked: list[list[str]] = []
        self.answers = asyncio.Semaphore(0)
        self.fails: type[Exception] | None = None

    async def __call__(self, items: Sequence[str]) -> str:
        """Answer."""
        self.asked.append([*items])
        await self.answers.acquire()
        if self.fails is not None:
            raise self.fails("away")
        if len(items) > self.most or "bad" in items:
            raise Refused("not that", 400)
        return "".join(items)


async def asking(together: Together[str, str], server: Server, items: Sequence[str]) -> list[asyncio.Task[str]]:
    """Have the first one ask, and the others wait for it."""
    tasks = [asyncio.create_task(together.ask("one", item, server)) for item in items]
    await turns()
    assert server.asked == [[items[0]]]
    return tasks


async def turns() -> None:
    """Let all go on that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_callers_when_one_asks_then_the_others_go_together() -> None:
    """The second request holds all that came meanwhile; nothing is left behind."""
    together, server = Together[str, str](Refused), Server()
    tasks = await asking(together, server, "abcd")
    server.answers.release()
    server.answers.release()
    assert await asyncio.gather(*tasks) == ["a", "bcd", "bcd", "bcd"]
    assert not together._groups


async def test_callers_when_what_they_bring_is_not_taken_together_then_each_gets_his_own_answer() -> None:
    """The fault of one is nobody else's."""
    together, server = Together[str, str](Refused), Server()
    tasks = await asking(together, server, ["a", "b", "bad", "c"])
    for _ in range(5):
        server.answers.release()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [one if isinstance(one, str) else type(one) for one in answers] == ["a", "b", Refused, "c"]
    assert server.asked == [["a"], ["b", "bad", "c"], ["b"], ["bad"], ["c"]]


async def test_callers_when_the_one_who_asks_gives_up_then_the_others_ask() -> None:
    """He is asked for no more."""
    together, server = Together[str, str](Refused), Server()
    tasks = await asking(together, server, "abcd")
    server.answers.release()
    await turns()
    tasks[1].cancel()
    await turns()
    assert server.asked == [["a"], ["b", "c", "d"], ["c", "d"]]
    server.answers.release()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [one if isinstance(one, str) else type(one) for one in answers] == ["a", asyncio.CancelledError, "cd", "cd"]
    assert not together._groups


async def test_callers_when_they_go_alone_and_one_gives_up_then_nothing_is_asked_for_him() -> None:
    """Whether he asks for the others or waits."""
    together, server = Together[str, str](Refused), Server(most=1)
    tasks = await asking(together, server, "abcde")
    server.answers.release()
    server.answers.release()
    await turns()
    assert server.asked[1:] == [["b", "c", "d", "e"], ["b"]]
    tasks[3].cancel()
    tasks[1].cancel()
    await turns()
    for _ in range(9):
        server.answers.release()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    gone = asyncio.CancelledError
    assert [one if isinstance(one, str) else type(one) for one in answers] == ["a", gone, "c", gone, "e"]
    assert server.asked[3:] == [["c", "e"], ["c"], ["e"]]


async def test_callers_when_nothing_answers_then_each_asks_for_himself() -> None:
    """An outage ends the request of the one who asked, and the next one tries."""
    together, server = Together[str, str](Refused), Server()
    tasks = await asking(together, server, "abc")
    server.fails = Unavailable
    server.answers.release()
    server.answers.release()
    await turns()
    server.fails = None
    server.answers.release()
    with pytest.raises(Unavailable):
        await tasks[0]
    with pytest.raises(Unavailable):
        await tasks[1]
    assert await tasks[2] == "c"
    assert not together._groups
