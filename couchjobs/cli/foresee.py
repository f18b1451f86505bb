"""`triggers next`, `match` and `test`: what triggers would do, without doing it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from couchjobs.cli.options import Domain, Json, Prefix, Url, print_json, read_json, say, with_connection
from couchjobs.cli.trigger_edit import tell_of, zone_of
from couchjobs.couch.connection import Connection
from couchjobs.errors import BadDocumentError, ConfigurationError, MalformedTriggerError, UnknownTriggerError
from couchjobs.scheduler.states import life_in
from couchjobs.scheduler.store import TriggerStore
from couchjobs.timestamps import now, parse_time
from couchjobs.triggers.effort import TakesTooLongError
from couchjobs.triggers.event import VERBS, EventRules, parse_event
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger
from couchjobs.triggers.life import Life
from couchjobs.triggers.on_demand import OnDemand
from couchjobs.triggers.periodic import PERIODIC
from couchjobs.triggers.prospects import coming_times, life_of, notes_on

_BAD = (BadDocumentError, MalformedTriggerError, TakesTooLongError, UnknownTriggerError, ValueError)
_MOST = 1000
After = Annotated[str | None, typer.Option("--after", help="An RFC 3339 time; now, where absent.")]
Lines = Annotated[bool, typer.Option("--jsonl", help="Read rows of JSON from stdin and answer each with one.")]


def next_times(
    trigger_id: Annotated[str | None, typer.Argument(help="A stored trigger; or give --type and --arguments.")] = None,
    kind: Annotated[str, typer.Option("--type", help="Such as @cron, @every, @weekly.")] = "@cron",
    arguments: Annotated[str | None, typer.Option("--arguments", help="Such as '0 0 8 * * mon'.")] = None,
    timezone: Annotated[str | None, typer.Option("--timezone", help="Such as Europe/Paris.")] = None,
    after: After = None,
    count: Annotated[int, typer.Option("--count", min=1, max=_MOST, help="How many.")] = 4,
    jsonl: Lines = False,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Print the coming times of a trigger; with --jsonl, of many."""
    if jsonl:
        _answer_lines(_answer_next)
        return
    if trigger_id is not None:
        answer = _answer_stored(trigger_id, {"timezone": timezone}, after, count, url, domain, prefix)
    elif arguments is not None or kind != "@cron":
        row = {"type": kind, "arguments": arguments or "", "timezone": timezone, "after": after, "count": count}
        answer = _answer_next(row)
    else:
        raise ConfigurationError("give the id of a trigger, or --type and --arguments, or --jsonl")
    if as_json:
        print_json(answer)
    elif answer["error"]:
        raise ConfigurationError(answer["reason"])
    else:
        for tick, local in zip_longest(answer["next"], answer.get("local", ()), fillvalue=""):
            print(f"{tick}  {local}".rstrip())
        if not answer["next"]:
            print(answer.get("note", "never"))
        if trigger_id is None and kind in PERIODIC:
            print("note: an example: each stored trigger has a moment of its own in that window", file=sys.stderr)


def _answer_stored(
    trigger_id: str,
    changes: dict[str, Any],
    after: str | None,
    count: int,
    url: str | None,
    domain: str | None,
    prefix: str | None,
) -> dict[str, Any]:
    """Return the coming times of a stored trigger, counted as its daemon counts them."""

    async def work(connection: Connection) -> tuple[Life | None, bool]:
        store = TriggerStore(connection, connection.settings.tenant)
        infos = await store.get(trigger_id)
        given = {name: value for name, value in changes.items() if value is not None}
        changed = store.read({**infos.document(), **given})
        return await life_in(connection, connection.settings.tenant, changed), changed.disabled

    try:
        life, is_disabled = with_connection(url, domain, prefix, work)
        if life is None:
            raise MalformedTriggerError(f"trigger {trigger_id!r} does not fire by the clock")
        start = (parse_time(after) if after else None) or now()
        ticks = coming_times(life, start, count)
        zone = zone_of(life)
        local = (
            {}
            if zone.key == "UTC"
            else {"local": [f"{tick.astimezone(zone):%a %Y-%m-%d %H:%M:%S} {zone.key}" for tick in ticks]}
        )
        note = {"note": "it is disabled"} if is_disabled else {}
        return {"next": [_as_text(tick) for tick in ticks], **local, **note, "error": False}
    except _BAD as error:
        return {"next": [], "error": True, "reason": str(error)}


def _as_text(tick: datetime) -> str:
    return tick.isoformat().replace("+00:00", "Z")


def _answer_lines(answer: Callable[[Any], dict[str, Any]]) -> None:
    for line in sys.stdin.buffer:
        if line.strip():
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                row = error
            sys.stdout.buffer.write(orjson.dumps(answer(row)) + b"\n")
    sys.stdout.buffer.flush()


def _answer_next(row: Any) -> dict[str, Any]:
    try:
        return {"next": _coming_times(row), "error": False}
    except _BAD as error:
        return {"next": [], "error": True, "reason": str(error)}


def _coming_times(row: Any) -> list[str]:
    if not isinstance(row, dict):
        raise BadDocumentError(f"a row must be an object: {row}")
    arguments = row.get("arguments", row.get("spec", ""))
    trigger = {"type": "@cron", "worker": "none", **row, "arguments": arguments}
    parsed = parse_trigger(TriggerInfos.from_document(trigger))
    if isinstance(parsed, EventRules | OnDemand):
        raise MalformedTriggerError(f"{trigger['type']} does not fire by the clock")
    start = (parse_time(str(row["after"])) if row.get("after") else None) or now()
    life = life_of(parsed, TriggerInfos.from_document(trigger), None, start)
    count = row.get("count", 4)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise BadDocumentError(f"count: {count!r:.100} is no number from 1 on")
    return [_as_text(tick) for tick in coming_times(life, start, min(_MOST, count))]


def match(jsonl: Lines = False) -> None:
    """Answer for each row `{"arguments", "event": {"verb", "type", "doc", "old"?}}` whether an @event trigger fires."""
    if not jsonl:
        raise ConfigurationError("`triggers match` reads rows of JSON from stdin: give --jsonl")
    _answer_lines(_answer_match)


def _answer_match(row: Any) -> dict[str, Any]:
    try:
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("event"), dict)
            or not isinstance(row.get("arguments"), str)
        ):
            raise BadDocumentError('a row must hold "arguments", a text, and "event", an object')
        rules = parse_event(row["arguments"])
        event = row["event"]
        for name in ("doc", "old"):
            if not isinstance(event.get(name), dict | None):
                raise BadDocumentError(f"event.{name}: a document is an object")
        found = rules.matches(str(event.get("type")), str(event.get("verb")), event.get("doc") or {}, event.get("old"))
    except _BAD as error:
        return {"match": False, "error": True, "reason": str(error)}
    return {"match": found, "error": False}


def explain(
    trigger_id: Annotated[str, typer.Argument(help="A stored trigger.")],
    doc: Annotated[
        Path | None, typer.Option("--doc", help="For @event: a file with the document.", exists=True, dir_okay=False)
    ] = None,
    old: Annotated[Path | None, typer.Option("--old", help="A file with the document before.", exists=True)] = None,
    verb: Annotated[str, typer.Option("--verb", help="CREATED, UPDATED or DELETED.")] = "CREATED",
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Say which rules of a trigger match a document, and why the others do not; of a schedule, its next times."""

    async def work(connection: Connection) -> tuple[TriggerInfos, Life | None]:
        infos = await TriggerStore(connection, connection.settings.tenant).get(trigger_id)
        return infos, await life_in(connection, connection.settings.tenant, infos)

    infos, life = with_connection(url, domain, prefix, work)
    rules = parse_trigger(infos)
    if life is not None:
        if as_json:
            present = now()
            times = [_as_text(tick) for tick in coming_times(life, present, 3)]
            print_json({"next": times, "notes": notes_on(life, present)})
        else:
            tell_of(life, file=sys.stdout)
        return
    if not isinstance(rules, EventRules):
        raise ConfigurationError(f"trigger {trigger_id} is of type {infos.type}: it fires when it is asked to")
    if doc is None:
        raise ConfigurationError("an @event trigger is tested against a document: give --doc FILE")
    document = _document_in("--doc", doc)
    before = _document_in("--old", old) if old else None
    if verb not in VERBS:
        raise ConfigurationError(f"--verb {verb!r}: CREATED, UPDATED or DELETED")
    answers = [{"rule": text, "why_not": why} for text, why in rules.explain(verb, document, before)]
    if as_json:
        print_json(answers)
        return
    for answer in answers:
        say(f"{answer['rule']}: {answer['why_not'] or 'matches'}")


def _document_in(option: str, path: Path) -> dict[str, Any]:
    document = read_json(f"{option} {path}", path.read_bytes().decode("utf-8", "replace"))
    if not isinstance(document, dict):
        raise ConfigurationError(f"{option} {path}: a document is a JSON object")
    return document
