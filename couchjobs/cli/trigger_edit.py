"""`triggers update`, `enable` and `disable`; and what is told of a schedule when it is written."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from couchjobs.cli.options import Domain, Json, Prefix, Url, print_json, read_json, say, with_connection
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.errors import Conflict
from couchjobs.log import plain
from couchjobs.remarks import Remarks
from couchjobs.scheduler.declared import FIELDS, MARK
from couchjobs.scheduler.states import life_in
from couchjobs.scheduler.store import TriggerStore
from couchjobs.timestamps import format_time, now
from couchjobs.triggers.cron import CronTrigger
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.life import Life
from couchjobs.triggers.prospects import coming_times, notes_on
from couchjobs.triggers.zones import parse_zone

TriggerId = Annotated[str, typer.Argument(help="The trigger's id.")]
Timezone = Annotated[str | None, typer.Option("--timezone", help="For @cron and the like, such as Europe/Paris.")]
Debounce = Annotated[str | None, typer.Option("--debounce", help="One job for all that fires within this time.")]
Misfire = Annotated[
    str | None, typer.Option("--misfire", help="once: missed ticks make one late job; skip: none; all: each one.")
]
Grace = Annotated[str | None, typer.Option("--grace", help="How late a tick may still fire, such as 1h.")]
Starts = Annotated[str | None, typer.Option("--starts", help="No tick before this RFC 3339 time.")]
Ends = Annotated[str | None, typer.Option("--ends", help="No tick after this RFC 3339 time.")]
Anchor = Annotated[str | None, typer.Option("--anchor", help="For @every: one of its ticks, as an RFC 3339 time.")]
Verify = Annotated[
    str | None, typer.Option("--verify", help='For @webhook: how it is signed, as JSON: {"stripe": "<secret name>"}.')
]
Headers = Annotated[
    str | None, typer.Option("--headers", help="For @webhook: those that reach the job, parted by commas.")
]
UniqueBy = Annotated[
    str | None, typer.Option("--unique-by", help="For @webhook: one job for each header:NAME or body:PATH.")
]
Accept = Annotated[
    str | None, typer.Option("--accept", help="For @webhook: json, form, text or raw; several with commas between.")
]
_TOLD = 3


def webhook_fields(
    verify: str | None, headers: str | None, unique_by: str | None, accept: str | None
) -> dict[str, Any]:
    """Return the fields of a @webhook that options give; None for one that an empty text removes."""
    given = {
        "verify": verify and read_json("--verify", verify),
        "headers": headers and [name.strip() for name in headers.split(",")],
        "unique_by": unique_by,
        "accept": accept and [kind.strip() for kind in accept.split(",")],
    }
    return {name: value or None for name, value in given.items() if value is not None}


def tell_of(life: Life | None, *, file: Any = sys.stderr) -> None:
    """Print the next times of a schedule in its zone, and what is odd about it."""
    if life is None:
        return
    present = now()
    for tick in coming_times(life, present, _TOLD) if not life.infos.disabled else []:
        print(plain(f"next: {_local(tick, life)}"), file=file)
    for note in notes_on(life, present, is_stored=False):
        print(plain(f"note: {note}"), file=file)


def zone_of(life: Life) -> ZoneInfo:
    """Return the time zone in which people think of a schedule; UTC where it names none."""
    schedule = life.schedule
    return schedule.zone if isinstance(schedule, CronTrigger) else parse_zone(life.infos.timezone)


def _local(tick: datetime, life: Life) -> str:
    in_utc = f"{tick:%a} {format_time(tick).replace('.000000Z', 'Z')}"
    zone = zone_of(life)
    if zone.key == "UTC":
        return in_utc
    return f"{tick.astimezone(zone):%a %Y-%m-%d %H:%M:%S} {zone.key} ({in_utc[4:]})"


def _edit(
    trigger_id: str,
    changes: Document,
    url: str | None,
    domain: str | None,
    prefix: str | None,
    *,
    as_json: bool,
) -> None:
    async def work(connection: Connection) -> tuple[TriggerInfos, Life | None, list[str]]:
        store = TriggerStore(connection, connection.settings.tenant)
        while True:
            try:
                infos = await store.replace(trigger_id, changes)
            except Conflict:
                continue  # somebody else has edited it meanwhile: on top of that
            db = connection.settings.tenant
            odd = (await Remarks.of(connection, db, [infos])).notes(infos, changes)
            return infos, await life_in(connection, db, infos), odd

    infos, life, odd = with_connection(url, domain, prefix, work)
    if as_json:
        print_json(infos.document())
    else:
        say(infos.id)
        if (infos.model_extra or {}).get(MARK) is True and FIELDS.intersection(changes):
            print(
                "couchjobs: it is declared in code, which a daemon that starts puts back: change it there",
                file=sys.stderr,
            )
        for note in odd:
            print(plain(f"note: {note}"), file=sys.stderr)
        tell_of(life)


def update(
    trigger_id: TriggerId,
    *,
    arguments: Annotated[str | None, typer.Option("--arguments", help="Such as '0 30 8 * * mon-fri'.")] = None,
    worker: Annotated[str | None, typer.Option("--worker", help="The type of worker.")] = None,
    message: Annotated[str | None, typer.Option("--message", help="The message of its jobs, as JSON.")] = None,
    rules: Annotated[str | None, typer.Option("--rules", help="For @event: structured rules, as JSON.")] = None,
    timezone: Timezone = None,
    debounce: Debounce = None,
    misfire: Misfire = None,
    grace: Grace = None,
    starts: Starts = None,
    ends: Ends = None,
    anchor: Anchor = None,
    verify: Verify = None,
    headers: Headers = None,
    unique_by: UniqueBy = None,
    accept: Accept = None,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Change fields of a trigger; an empty text removes one. Prints the next times of a schedule."""
    given = {
        "arguments": arguments,
        "worker": worker,
        "timezone": timezone,
        "debounce": debounce,
        "misfire": misfire,
        "grace": grace,
        "starts": starts,
        "ends": ends,
        "anchor": anchor,
    }
    changes: Document = {name: value or None for name, value in given.items() if value is not None}
    changes |= webhook_fields(verify, headers, unique_by, accept)
    if arguments == "":
        changes["arguments"] = ""
    if message is not None:
        changes["message"] = read_json("--message", message)
    if rules is not None:
        changes["rules"] = read_json("--rules", rules)
    _edit(trigger_id, changes, url, domain, prefix, as_json=as_json)


def enable(
    trigger_id: TriggerId, url: Url = None, domain: Domain = None, prefix: Prefix = None, as_json: Json = False
) -> None:
    """Let a trigger fire again: from now on, in its old rhythm."""
    _edit(trigger_id, {"disabled": False, "ended": None}, url, domain, prefix, as_json=as_json)


def disable(
    trigger_id: TriggerId, url: Url = None, domain: Domain = None, prefix: Prefix = None, as_json: Json = False
) -> None:
    """Keep a trigger from firing; what comes meanwhile is not made up for."""
    _edit(trigger_id, {"disabled": True}, url, domain, prefix, as_json=as_json)
