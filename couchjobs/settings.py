"""The settings of a couchjobs process: environment variables COUCHJOBS_<NAME>, or keyword arguments."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from couchjobs.durations import Seconds
from couchjobs.errors import ConfigurationError
from couchjobs.log import redact
from couchjobs.prefixer import USERS, Prefixer
from couchjobs.reasons import reasons

_PREFIX = "COUCHJOBS_"
_ELSEWHERE = {
    "AUTH_",
    "TEST_",
    "CACHE_DIR",
    "USERNAME",
    "PASSWORD",
    "KEYRING",
    "NEW_PASSWORD",
    "APIKEY",
    "BEARER_TOKEN",
    "IAM_",
}


class Settings(BaseSettings):
    """What a process is told from outside. Durations: seconds, or text such as 1m30s."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="forbid", frozen=True)

    url: str = "http://127.0.0.1:5984"
    """The CouchDB server, or several nodes of one cluster with commas between: the first is asked where it answers,
    else the next one. Credentials in it are used and never shown. Defaults to http://127.0.0.1:5984."""
    credentials_file: str | None = None
    """A file of lines COUCHJOBS_AUTH_TYPE=..., COUCHJOBS_USERNAME=... Defaults to none."""
    proxy: str | None = None
    """The URL of a proxy for all requests, logins included; HTTP_PROXY is not looked at. Defaults to none."""
    domain: str = ""
    """The tenant's domain, written into its jobs. Defaults to the empty one."""
    prefix: str | None = None
    """The tenant's database prefix. Defaults to none."""
    jobs_doctype: str = "jobs"
    """The doctype, hence the database, of jobs. Defaults to jobs."""
    triggers_doctype: str = "triggers"
    """The doctype, hence the database, of triggers. Defaults to triggers."""
    lanes: dict[str, str] = {}
    """Worker types whose jobs have a database of their own, as JSON: {"<worker type>": "<doctype>"}. All daemons and
    producers must be told the same. Defaults to none."""
    control_db: str = "couchjobs"
    """The database of daemons, checkpoints and schedules. Defaults to couchjobs."""
    shards: int | None = Field(default=None, ge=1)
    """How many shards (CouchDB's q) a database has that couchjobs makes. Defaults to what the server is set to."""

    request_timeout: Seconds = 60.0
    """The longest that one request to CouchDB may take. Defaults to 60 s."""
    push_timeout: Seconds = Field(default=5.0, gt=0)
    """How long somebody who pushes a job waits for CouchDB to take it. Defaults to 5 s."""
    feed_heartbeat: Seconds = Field(default=1.0, ge=0.1)
    """How often CouchDB looks again for changes at a feed that waits, and shows that it lives. Defaults to 1 s."""
    beat_interval: Seconds = Field(default=10.0, ge=0.05)
    """How often a daemon shows that it lives; `dead_after` must be 1.5 times that at least. Defaults to 10 s."""
    dead_after: Seconds = Field(default=30.0, ge=0.1)
    """How long a daemon may be still before the others take it for dead: `beat_interval` and a half at least. Defaults
    to 30 s."""
    sweep_interval: Seconds = Field(default=60.0, ge=0.05)
    """How often the view of due jobs is read, beside the feed. Defaults to 60 s."""
    first_right_delay: Seconds = 0.25
    """How long a daemon leaves a job to the one that has the first right to it. Defaults to 0.25 s."""
    shutdown_timeout: Seconds = 30.0
    """How long running jobs may go on after SIGTERM. Defaults to 30 s."""
    audit_grace: Seconds = 30.0
    """How old a claim of one's own must be before one that does not run is put back. Defaults to 30 s."""

    max_jobs: int | None = Field(default=None, ge=1)
    """How many jobs of all worker types together one daemon runs at once. Defaults to no such limit."""
    max_source_databases: int = Field(default=100, ge=1)
    """How many databases the events of a tenant's triggers may come from. Defaults to 100."""
    most_feeds: int = Field(default=100, ge=1)
    """How many feeds of a daemon of many tenants wait at CouchDB at once; the databases of the others are read when
    they are said to have changed. Fewer where CouchDB opens few shards. Defaults to 100."""
    max_seen_documents: int = Field(default=1_000_000, ge=0)
    """The largest database of which a daemon remembers what has fired, in documents, deleted ones included: 16 bytes
    each. In a larger one, changes that a feed shows again may fire again once their jobs are removed. Defaults to
    1,000,000."""
    max_retry_delay: Seconds = Field(default=86_400.0, ge=0)
    """The longest wait before a retry, however many there were before it. Defaults to a day."""
    go_durations: bool = False
    """Whether numbers in the options of stored jobs are Go's nanoseconds, not seconds. Defaults to no."""
    max_message_bytes: int = Field(default=1_048_576, ge=1)
    """The largest message of a job, as JSON. Defaults to 1 MiB."""
    max_candidates: int = Field(default=1000, ge=1)
    """How many queued jobs of one worker type a daemon holds ready. Defaults to 1000."""

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Show no credentials, neither in a repr nor where a traceback prints its locals."""
        return [(name, redact(value) if isinstance(value, str) else value) for name, value in super().__repr_args__()]

    @model_validator(mode="after")
    def _lanes_are_apart(self) -> Self:
        if USERS in (self.jobs_doctype, self.triggers_doctype, self.control_db, *self.lanes.values()):
            raise ValueError(f"{USERS} is CouchDB's own database")
        taken = {self.triggers_doctype, self.control_db} & {self.jobs_doctype, *self.lanes.values()}
        if taken:
            raise ValueError(f"jobs need a database of their own, and {taken.pop()!r} is something else's")
        return self

    def lane_of(self, worker_type: str) -> str:
        """Return the doctype, hence the database, of the jobs of a worker type."""
        return self.lanes.get(worker_type, self.jobs_doctype)

    @property
    def all_lanes(self) -> list[str]:
        """Return the doctypes of all jobs, that of most worker types first."""
        return [*dict.fromkeys((self.jobs_doctype, *sorted(self.lanes.values())))]

    def check_tenant(self, db: Prefixer) -> None:
        """Check that CouchDB allows the names of all databases that a tenant must have.

        Raises:
            ConfigurationError: it does not.
        """
        for doctype in (*self.all_lanes, self.triggers_doctype):
            db.database(doctype)

    @property
    def look_interval(self) -> float:
        """Return how often a daemon looks at its own beats and at those of the others, in seconds."""
        return self.dead_after / 30

    @model_validator(mode="after")
    def _beats_are_in_time(self) -> Self:
        if self.dead_after < 1.5 * self.beat_interval:
            told = f"dead_after is {self.dead_after:g} s, and beats come each {self.beat_interval:g} s"
            raise ValueError(f"{told}: it must be half as much again at least, better three times (beat_interval)")
        return self

    @property
    def tenant(self) -> Prefixer:
        """Return the tenant that this process works for."""
        return Prefixer(self.domain, self.prefix)


def load_settings(**given: Any) -> Settings:
    """Return the settings of the environment, overruled by the ones given (None: not given).

    Raises:
        ConfigurationError: a value cannot be used, or a COUCHJOBS_ variable is no setting.
    """
    known = {_PREFIX + name.upper() for name in Settings.model_fields}
    for name in os.environ:
        if (
            name.startswith(_PREFIX)
            and name not in known
            and not name.removeprefix(_PREFIX).startswith(tuple(_ELSEWHERE))
        ):
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigurationError(f"the environment variable {name} is no setting of couchjobs{hint}")
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise ConfigurationError(f"settings: {reasons(error)}") from None
    except SettingsError as error:
        name = next((one for one in Settings.model_fields if f'"{one}"' in str(error)), "")
        form = ': it is JSON, such as {"resize": "images"}' if name == "lanes" else ""
        raise ConfigurationError(f"{_PREFIX}{name.upper()} cannot be understood{form}") from None
