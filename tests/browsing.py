"""A real browser for tests whose server runs in the same loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from selenium import webdriver

T = TypeVar("T")


class Browser:
    """The browser, for a test whose server runs in the same loop: it is asked in a thread."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.url = url

    async def do(self, step: Callable[..., T], *given: Any) -> T:
        """Do something with the browser."""
        return await asyncio.to_thread(partial(step, *given))

    async def open(self, path: str) -> None:
        """Load a page."""
        await self.do(self.driver.get, self.url + path)

    async def text(self, selector: str = "main") -> str:
        """What a part of the page says."""
        return await self.do(
            lambda: self.driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        )

    async def click(self, selector: str) -> None:
        """Click what is found first."""
        await self.do(lambda: self.driver.find_element("css selector", selector).click())

    async def run(self, script: str, *given: Any) -> Any:
        """Run a script, and return what it returns."""
        return await self.do(self.driver.execute_script, script, *given)

    async def complaints(self) -> list[str]:
        """What the browser has written to its console since the last time, but for answers that were asked for."""
        entries = await self.do(self.driver.get_log, "browser")
        return [entry["message"] for entry in entries]
