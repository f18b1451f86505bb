"""Callers that want the same thing at the same time go together: one of them asks for all that wait meanwhile.

Each gets the answer of what he brought. Who gives up takes nobody along, also where he asks for others: they wait on,
and the next one asks. What is not taken together is tried alone, so that the fault of one is nobody else's.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from couchjobs.log import get_logger

_logger = get_logger(__name__)
Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(eq=False)
class _Caller(Generic[Item, Answer]):
    item: Item
    answer: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class _Group(Generic[Item, Answer]):
    """Those who want one thing: the one who asks now, and all that wait for him."""

    def __init__(self) -> None:
        self.members = 0
        self.waiting: list[_Caller[Item, Answer]] = []
        self.turn = asyncio.Lock()


class Together(Generic[Item, Answer]):
    """Groups of callers.

    Args:
        alone_after: the errors after which those who went together are tried alone.
    """

    def __init__(self, *alone_after: type[Exception]) -> None:
        self._alone_after = alone_after
        self._groups: defaultdict[str, _Group[Item, Answer]] = defaultdict(_Group)

    async def ask(self, name: str, item: Item, asks: Callable[[Sequence[Item]], Awaitable[Answer]]) -> Answer:
        """Return the answer to this item, for which whoever of that name asks first asks, together with others.

        `asks`: what this caller asks with, where it is him; what it raises, he and those who go alone with him get.
        """
        group, caller = self._groups[name], _Caller[Item, Answer](item)
        group.members += 1
        group.waiting.append(caller)
        try:
            async with group.turn:
                if not caller.answer.done():
                    await self._ask_for_all(group, caller, asks)
            return await caller.answer
        finally:
            caller.answer.cancel()
            if caller in group.waiting:
                group.waiting.remove(caller)
            group.members -= 1
            if not group.members:
                del self._groups[name]

    async def _ask_for_all(
        self,
        group: _Group[Item, Answer],
        caller: _Caller[Item, Answer],
        asks: Callable[[Sequence[Item]], Awaitable[Answer]],
    ) -> None:
        together, group.waiting = group.waiting, []
        try:
            if not await self._is_answered(together, asks):
                for one in together:
                    await _ask_alone(one, asks)
        except BaseException:
            group.waiting[:0] = [one for one in together if one is not caller and not one.answer.done()]
            raise

    async def _is_answered(
        self, together: Sequence[_Caller[Item, Answer]], asks: Callable[[Sequence[Item]], Awaitable[Answer]]
    ) -> bool:
        """Ask for several at once; return False where each is to be asked for alone."""
        if len(together) == 1:
            return False
        try:
            answer = await asks([one.item for one in together])
        except self._alone_after as error:
            _logger.warning("not taken together, and tried alone", callers=len(together), reason=str(error))
            return False
        for one in together:
            if not one.answer.done():
                one.answer.set_result(answer)
        return True


async def _ask_alone(one: _Caller[Item, Answer], asks: Callable[[Sequence[Item]], Awaitable[Answer]]) -> None:
    if one.answer.done():  # he has given up
        return
    try:
        answer = await asks([one.item])
    except Exception as error:  # noqa: BLE001  his own answer, and nobody else's
        if not one.answer.done():
            one.answer.set_exception(error)
    else:
        if not one.answer.done():
            one.answer.set_result(answer)
