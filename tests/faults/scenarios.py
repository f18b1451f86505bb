"""Ten ways to break couchjobs. Each breaks something while jobs are done; the ground counts afterwards."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable

from fault_proxy import Answer, Refusal
from ground import FULL, Ground

Scenario = Callable[[Ground], Awaitable[None]]
_CHANCE = random.Random(20261124)  # noqa: S311  the same faults in each run


async def kill_9_again_and_again(ground: Ground) -> None:
    """One of three daemons dies, again and again; another one takes its place."""
    for _ in range(3):
        ground.start()
    await ground.push(ground.size.jobs)
    for number in range(ground.size.rounds):
        await ground.until_begun((number + 1) * ground.size.jobs // (ground.size.rounds + 2))
        await ground.kill(ground.daemons[number])


async def stopped_and_continued(ground: Ground) -> None:
    """A daemon stands still for twice the time after which it counts as dead, and goes on."""
    for _ in range(3):
        ground.start()
    await ground.push(ground.size.jobs // 2)
    await ground.until_begun(ground.size.jobs // 4)
    victim = ground.daemons[0]
    victim.signal(signal.SIGSTOP)
    ground.died(victim.process.pid)
    orphans = ground.orphans(victim.process.pid)
    began = asyncio.get_running_loop().time()
    await ground.push(ground.size.jobs // 2)
    await ground.until_ended(orphans)
    await asyncio.sleep(max(0.0, began + 2 * ground.size.dead_after - asyncio.get_running_loop().time()))
    victim.signal(signal.SIGCONT)


async def server_restarted(ground: Ground) -> None:
    """The server is killed and started again; one that is not ours is out of reach for a while instead.

    It is away for less than a daemon may be still: one that cannot beat for longer stops its jobs, to be run again.
    """
    for _ in range(3):
        ground.start(dead_after=FULL.dead_after)
    await ground.push(ground.size.jobs)
    for number in range(ground.size.rounds):
        await ground.until_begun((number + 1) * ground.size.jobs // (ground.size.rounds + 2))
        if ground.server is not None:
            ground.server.kill()
            await asyncio.sleep(0.5)
            await asyncio.to_thread(ground.server.start)
        else:
            ground.proxy.before = _refuse
            await asyncio.sleep(2)
            ground.proxy.before = lambda method, path, body: None


def _refuse(method: str, path: str, body: bytes) -> None:
    raise Refusal(503)


async def connections_cut(ground: Ground) -> None:
    """Answers are lost after the write happened, or cut in the middle."""

    def cut(answer: Answer) -> None:
        kind = _CHANCE.random()
        if kind < 0.04:
            answer.lose = True
        elif kind < 0.08:
            answer.cut_at = len(answer.body) // 2

    ground.proxy.after = cut
    for _ in range(3):
        ground.start()
    await ground.push(ground.size.jobs)


async def feed_replayed(ground: Ground) -> None:
    """Now and then the feed begins anew, from zero, and its rows come in any order."""
    asked = 0

    def rewind(path: str) -> str:
        nonlocal asked
        if "/_changes" in path and "since=" in path:
            asked += 1
            if asked % 10 == 0:
                head, _, tail = path.partition("since=")
                return f"{head}since=0{tail[len(tail.split('&')[0]) :]}"
        return path

    def shuffle(answer: Answer) -> None:
        if "/_changes" in answer.path and answer.status == 200:
            page = answer.json
            _CHANCE.shuffle(page["results"])
            answer.json = page

    ground.proxy.path_of = rewind
    ground.proxy.after = shuffle
    for _ in range(3):
        ground.start()
    await ground.push(ground.size.jobs)


async def accepted_only(ground: Ground) -> None:
    """Of writes, one in ten is answered as a cluster does that is not sure."""

    def accept(answer: Answer) -> None:
        if answer.path.endswith("/_bulk_docs") and answer.status == 201:
            answer.json = [{**row, "accepted": True} if _CHANCE.random() < 0.1 else row for row in answer.json]

    ground.proxy.after = accept
    for _ in range(3):
        ground.start()
    await ground.push(ground.size.jobs)


async def clock_an_hour_off(ground: Ground) -> None:
    """One daemon's clock is an hour ahead, another's an hour behind."""
    for off in (0, 3600, -3600):
        ground.start(clock_off=off)
    await ground.push(ground.size.jobs)


async def bad_workers(ground: Ground) -> None:
    """Worker functions that exit the process, block the loop, never end, or take all memory, among good ones."""
    ground.start()
    ground.start()
    exiting = await ground.push(1, "exits", expected="errored")
    await ground.push(2, "never", expected="errored")
    await ground.push(2, "eats", expected="errored")
    blocking = await ground.push(1, "blocks", message=ground.size.dead_after * 1.5, expected="ended")
    await ground.push(ground.size.jobs)
    everything = asyncio.create_task(ground.until_ended([*ground.expected]))
    while not everything.done():
        for daemon in [*ground.daemons]:
            if daemon.process.poll() is not None:
                ground.died(daemon.process.pid)
                ground.daemons.remove(daemon)
                ground.start()
        for line in ground.lines():
            if line.job_id in (*exiting, *blocking):
                ground.died(line.pid, line.at)
        await asyncio.wait([everything], timeout=0.2)


async def disk_full(ground: Ground) -> None:
    """Writes are refused: 507, then 500."""
    asked = 0

    def full(method: str, path: str, body: bytes) -> None:
        nonlocal asked
        if method == "GET" or path.endswith("_bulk_get"):
            return
        asked += 1
        if asked % 60 >= 40:
            raise Refusal(507 if asked % 2 else 500)

    ground.proxy.before = full
    for _ in range(3):
        ground.start()
    await ground.push(ground.size.jobs)


async def deployed_under_load(ground: Ground) -> None:
    """All daemons are replaced, one after another."""
    for _ in range(3):
        ground.start()
    await ground.push(ground.size.jobs)
    for number in range(3):
        await ground.until_begun((number + 1) * ground.size.jobs // 5)
        ground.start()
        old = ground.daemons[number]
        old.signal(signal.SIGTERM)
        if await asyncio.to_thread(old.wait, 60) != 0:
            raise AssertionError(f"a daemon that was asked to stop did not do so in peace: {old.log.read_text()}")


SCENARIOS: dict[str, Scenario] = {
    "1 kill -9, again and again": kill_9_again_and_again,
    "2 stopped, then continued": stopped_and_continued,
    "3 server restarted": server_restarted,
    "4 connections cut, answers lost": connections_cut,
    "5 feed replayed from zero": feed_replayed,
    "6 accepted only": accepted_only,
    "7 clocks an hour off": clock_an_hour_off,
    "8 workers that exit, block, never end, eat": bad_workers,
    "9 disk full": disk_full,
    "10 deploy under load": deployed_under_load,
}


async def node_stopped_and_started(ground: Ground, command: str) -> None:
    """A node of the cluster goes away and comes back: `<command> stop`, then `<command> start`."""
    for _ in range(3):
        ground.start()
    await ground.push(ground.size.jobs)
    for number in range(ground.size.rounds):
        await ground.until_begun((number + 1) * ground.size.jobs // (ground.size.rounds + 2))
        for what in ("stop", "start"):
            process = await asyncio.create_subprocess_shell(f"{command} {what}")
            await process.wait()
            await asyncio.sleep(3)
