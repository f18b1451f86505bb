"""What the log is told of requests that fail."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from couchjobs.errors import Unavailable
from couchjobs.http import jsonapi


@pytest.mark.parametrize(
    "path",
    ["/jobs/webhooks/{}", "/tenants/alice/jobs/webhooks/{}", "/jobs/triggers/{}/launch", "/dashboard/triggers/{}"],
)
def test_told_when_a_delivery_fails_then_the_secret_of_the_webhook_is_not_in_the_log(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id is all that somebody needs to fire it; what CouchDB was asked for names it, too."""
    told: list[Any] = []
    monkeypatch.setattr(jsonapi._logger, "warning", lambda *_, **given: told.append(given))
    request = make_mocked_request("POST", path.format("s3cret%20id"))
    assert jsonapi.told(Unavailable("GET /db/s3cret%20id: 503, of 's3cret id'"), request)[0] == 503
    assert "cret" not in str(told).replace("s3cr...", "")
    told.clear()
    request = make_mocked_request("POST", "/jobs/queue/mail")
    jsonapi.told(Unavailable("GET /db/x: 503"), request)
    assert told == [{"path": "/jobs/queue/mail", "reason": "GET /db/x: 503"}]
