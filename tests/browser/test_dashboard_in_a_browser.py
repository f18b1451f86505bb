"""The dashboard as people use it: with a mouse, with the keyboard, on a phone, and while jobs run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import axe_core_python
import pytest
from browsing import Browser
from waiting import eventually

from couchjobs.client import Couchjobs
from couchjobs.couch.connection import Connection
from couchjobs.jobs.job import State
from couchjobs.prefixer import Prefixer
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

Start = Callable[..., Any]
AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()
SEVERE = ("serious", "critical")
_gates: dict[str, asyncio.Event] = {}


@worker("slow")
async def slow(ctx: WorkerContext) -> str:
    """Come half of the way, and wait for the test."""
    ctx.progress(0.5, "half of the way")
    await _gates["slow"].wait()
    ctx.progress(0.75, "nearly there")
    await _gates["rest"].wait()
    return "arrived"


@worker("picky", max_exec_count=1)
async def picky(ctx: WorkerContext, message: Any) -> None:
    """Fail, unless the test says otherwise."""
    if not _gates["well"].is_set():
        raise ValueError(f"no: {message} <script>document.title = 'owned'</script>")


@pytest.fixture(autouse=True)
async def gates() -> dict[str, asyncio.Event]:
    """What the functions wait for."""
    _gates.update({name: asyncio.Event() for name in ("slow", "rest", "well")})
    return _gates


async def says(browser: Browser, *words: str, part: str = "main") -> None:
    """Wait until a part of the page says all of that, without having been loaded again."""

    async def all_there() -> bool:
        found = await browser.text(part)
        return all(word in found for word in words)

    await eventually(all_there)


async def test_job_when_watched_then_its_progress_moves_and_its_end_comes_without_loading(
    connection: Connection, browser: Browser, start: Start
) -> None:
    """From queued to done on one page."""
    job = (await Couchjobs.over(connection).push("slow", {"n": 1})).job
    await browser.open(f"/dashboard/jobs/{job.id}")
    await browser.run("window.loadedOnce = true")
    await says(browser, "queued", "Queued", '"n": 1')
    await start(slow)
    await says(browser, "running", "50 %", "half of the way")
    _gates["slow"].set()
    await says(browser, "75 %", "nearly there")
    _gates["rest"].set()
    await says(browser, "done", "Result", '"arrived"')
    assert await browser.run("return window.loadedOnce") is True


async def test_job_when_cancelled_or_retried_then_so(connection: Connection, browser: Browser, start: Start) -> None:
    """One running, one failed; what it says is text, and no script of it runs."""
    await start(slow, picky)
    client = Couchjobs.over(connection)
    job = (await client.push("slow")).job
    await browser.open(f"/dashboard/jobs/{job.id}")
    await says(browser, "running", "Cancel")
    await browser.click("#now form[action$='/cancel'] button")
    await says(browser, "cancelled")
    failed = (await client.push("picky", "<b>x</b>")).job
    await client.wait(failed.id, 10)
    await browser.open(f"/dashboard/jobs/{failed.id}")
    await says(browser, "Failed for good", "no: <b>x</b> <script>document.title = 'owned'</script>")
    assert "owned" not in await browser.do(lambda: browser.driver.title)
    _gates["well"].set()
    await browser.click("#now form[action$='/retry'] button")
    await says(browser, "done")


async def test_jobs_when_ten_failed_ones_are_selected_and_retried_then_done(
    connection: Connection, browser: Browser, start: Start
) -> None:
    """A selection outlives what changes meanwhile."""
    client = Couchjobs.over(connection)
    await start(picky)
    jobs = [(await client.push("picky", number)).job for number in range(12)]
    for job in jobs:
        await client.wait(job.id, 10)
    await browser.open("/dashboard/jobs?state=errored&worker=picky")

    async def listed() -> bool:
        return len(await browser.run("return [...document.querySelectorAll('input[name=job]')]")) == 12

    await eventually(listed)
    for number in range(10):
        await browser.click(f"tbody tr:nth-child({number + 1}) input[name=job]")
    await client.push("picky", "meanwhile")
    await says(browser, "meanwhile")
    assert len(await browser.run("return [...document.querySelectorAll('input[name=job]:checked')]")) == 10
    _gates["well"].set()
    await browser.click("button[value=retry]")
    await says(browser, "10 queued again")

    async def done() -> bool:
        return len(await client.jobs(worker="picky", state=State.DONE, limit=50)) == 10

    await eventually(done)


async def test_trigger_when_disabled_and_tried_then_so(connection: Connection, db: Prefixer, browser: Browser) -> None:
    """The dry run fires nothing."""
    client = Couchjobs.over(connection)
    await client.triggers.add({"_id": "hourly", "type": "@every", "arguments": "1h", "worker": "slow", "message": None})
    rules = {"_id": "paid", "type": "@event", "arguments": "orders:CREATED:paid:status", "worker": "slow"}
    await client.triggers.add({**rules, "message": None})
    await browser.open("/dashboard/triggers")
    await says(browser, "hourly", "paid", "@every")
    await browser.click("a[href$='/triggers/hourly']")
    await browser.click("form[action$='/disable'] button")
    await says(browser, "It is disabled.", "Enable")
    assert (await client.triggers.get("hourly")).disabled
    await browser.open("/dashboard/triggers/paid")
    await browser.click(".try button")
    await says(browser, "matches")
    await browser.do(lambda: browser.driver.find_element("css selector", "textarea").clear())
    await browser.do(lambda: browser.driver.find_element("css selector", "textarea").send_keys('{"status": "new"}'))
    await browser.click(".try button")
    await says(browser, "no orders:CREATED:paid:status", part=".answers")
    assert "matches" not in await browser.text(".answers")
    assert await client.jobs() == []


async def test_queue_when_paused_then_so_and_resumed(connection: Connection, browser: Browser, start: Start) -> None:
    """By the keyboard alone."""
    await start(picky)
    await browser.open("/dashboard/queues")
    await says(browser, "picky", "1 daemon")
    await browser.run("document.querySelector(\"form[action$='/picky/pause'] button\").focus()")
    await browser.do(lambda: browser.driver.switch_to.active_element.send_keys("\n"))
    await says(browser, "paused", "Resume", "picky is paused")
    await browser.click("form[action$='/picky/resume'] button")
    await says(browser, "picky is resumed", "1 daemon")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_when_looked_at_by_axe_then_nothing_serious(
    connection: Connection, browser: Browser, start: Start, scheme: str
) -> None:
    """In both schemes, wide and as narrow as a phone; nothing is wider than the page."""
    client = Couchjobs.over(connection)
    await start(picky)
    failed = (await client.push("picky", "x")).job
    await client.wait(failed.id, 10)
    await client.push("[red]x[/]\x1b[31m", "<script>alert(1)</script>", id="odd")
    await client.push("wide", {f"key-{number}": number for number in range(10_000)}, id="wide")
    await client.push("long", "y" * 1_000_000, id="long")
    await client.triggers.add({"_id": "t", "type": "@event", "arguments": "a:CREATED", "worker": "w", "message": 1})
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    await browser.do(browser.driver.execute_cdp_cmd, "Emulation.setEmulatedMedia", {"features": features})
    paths = ["", "/queues", "/jobs", f"/jobs/{failed.id}", "/jobs/odd", "/jobs/wide", "/jobs/long", "/triggers"]
    for path in [*paths, "/triggers/t", "/trouble", "/api", "/login"]:
        for width in (1280, 390):
            await browser.do(browser.driver.set_window_size, width, 900)
            await browser.open(f"/dashboard{path}")
            await browser.run(AXE)
            found = await browser.do(
                browser.driver.execute_async_script,
                "const done = arguments[0]; axe.run().then((found) => done(found.violations))",
            )
            assert [(path, one["id"]) for one in found if one["impact"] in SEVERE] == []
            assert await browser.run("return document.documentElement.scrollWidth <= innerWidth"), (path, width)
    assert "alert" not in await browser.do(lambda: browser.driver.title)
