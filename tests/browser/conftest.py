"""A real browser, without a window, and a server of pages for it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp.test_utils import TestServer
from browsing import Browser
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from couchjobs.couch.connection import Connection
from couchjobs.http.server import make_app

_SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900")


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    """One for all tests."""
    options = Options()
    for switch in _SWITCHES:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    binary, own = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and own):
        pytest.fail("the tests of the dashboard need chromium and its driver: apt-get install chromium-driver")
    options.binary_location = binary
    driver = webdriver.Chrome(options=options, service=Service(own))
    driver.set_page_load_timeout(30)
    yield driver
    driver.quit()


@pytest.fixture
async def browser(connection: Connection, chromium: webdriver.Chrome) -> AsyncIterator[Browser]:
    """A browser in front of a server for the tenant of this test; nobody has a token."""
    server = TestServer(make_app(connection))
    await server.start_server()
    found = Browser(chromium, str(server.make_url("")).rstrip("/"))
    try:
        yield found
        assert await found.complaints() == []
    finally:
        await found.do(chromium.get, "about:blank")
        await found.do(chromium.delete_all_cookies)
        await server.close()
