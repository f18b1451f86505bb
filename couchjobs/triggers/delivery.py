"""How a @webhook trigger takes what is sent to it: whose it must be, what of it reaches the job, and what is one job.

Fields of the trigger, none of which needs to be there:

- `verify`: `{"hmac": "sha256", "header": "X-Hub-Signature-256", "secret": "github", "prefix": "sha256="}`, and
  `"encoding": "base64"` where it is not hexadecimal; or `{"stripe": "<secret>", "tolerance": 300}`. Secrets are named,
  and lie in the control database. The bytes that were sent are checked, in constant time.
- `headers`: those that reach the job, as `payload_headers`.
- `unique_by`: `header:X-GitHub-Delivery` or `body:data.id`: one job for each value, for services deliver again.
- `accept`: `json` (by default), `form`, `text`, `raw` (an attachment of the job).

Sources: docs.github.com "Validating webhook deliveries"; docs.stripe.com/webhooks/signature.
"""

from __future__ import annotations

import base64
import codecs
import difflib
import hashlib
import hmac
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any, Literal
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from couchjobs.couch.codec import decode
from couchjobs.errors import CouchjobsError, MalformedTriggerError
from couchjobs.triggers.infos import TriggerInfos

Kind = Literal["json", "form", "text", "raw"]
_TOLERANCE_S = 300.0
_MOST_UNKNOWN = 1000
"""Fields of a trigger that are none: each is compared with those that there are."""
_LONGEST_SLIP = 20
"""Characters of a name that may be a slip of one of these."""
_MOST_SIGNATURES = 10
_MOST_FIELDS = 10_000
_CHARSETS = re.compile(
    r"utf-8|utf-16(-[bl]e)?|utf-32(-[bl]e)?|ascii|iso8859-\d+|cp(125\d|437|850|852|866|874|932|936|949|950)|shift_jis"
    r"|euc_(jp|kr)|iso2022_jp|gb2312|gbk|gb18030|big5|koi8-[ru]|mac-(roman|cyrillic)"
)
"""By Python's names, those that people and services write in."""
_STRIPE = "Stripe-Signature"
_ALIKE = 0.8
"""So like a field is one that is nearly that: a signature that nobody checks would be the worst to overlook."""
_HOW = {
    "verify": 'write {"hmac": "sha1, sha256 or sha512", "header": ..., "secret": <name>, "prefix": ..., "encoding": '
    '"hex or base64"}, or {"stripe": <name>, "tolerance": <seconds>}',
    "headers": "write a list of names",
    "unique_by": "write header:NAME or body:PATH",
    "accept": "write json, form, text, raw, or a list of them",
}


class RefusedDelivery(CouchjobsError):
    """What was sent is not taken; why is for the log, and not for who has sent it. As an HTTP answer: `status`."""

    def __init__(self, reason: str, status: int = 403) -> None:
        super().__init__(reason)
        self.status = status


class _Hmac(BaseModel):
    model_config = ConfigDict(extra="forbid")
    hmac: Literal["sha1", "sha256", "sha512"]
    header: str = Field(min_length=1)
    secret: str = Field(min_length=1)
    prefix: str = ""
    encoding: Literal["hex", "base64"] = "hex"


class _Stripe(BaseModel):
    model_config = ConfigDict(extra="forbid")
    stripe: str = Field(min_length=1)
    tolerance: float = Field(default=_TOLERANCE_S, gt=0)


class _Fields(BaseModel):
    verify: _Hmac | _Stripe | None = None
    headers: list[str] = Field(default_factory=list)
    unique_by: str | None = Field(default=None, pattern=r"^(header|body):.+$")
    accept: list[Kind] | Kind = "json"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a trigger says of that."""

    fields: _Fields

    @property
    def secret(self) -> str | None:
        """Return the name of the secret that signatures are made with; None where nothing is signed."""
        match self.fields.verify:
            case None:
                return None
            case _Stripe(stripe=name):
                return name
            case signed:
                return signed.secret

    def check(self, raw: bytes, headers: Mapping[str, str], secret: str, now: float) -> None:
        """Check that who has sent this knows the secret. `now`: seconds since 1970.

        Raises:
            RefusedDelivery: he does not, or it was too long ago.
        """
        match self.fields.verify:
            case None:
                return
            case _Stripe(tolerance=tolerance):
                _check_stripe(raw, headers.get(_STRIPE, ""), secret, now, tolerance)
            case signed:
                shown = headers.get(signed.header, "")
                digest = hmac.digest(secret.encode(), raw, signed.hmac)
                wanted = digest.hex() if signed.encoding == "hex" else base64.b64encode(digest).decode()
                if not hmac.compare_digest(_as_bytes(shown.strip()), _as_bytes(f"{signed.prefix}{wanted}")):
                    raise RefusedDelivery(f"its signature in {signed.header} is not the secret's")

    def kind_of(self, content_type: str, *, is_empty: bool = False) -> Kind:
        """Return as what a body of that media type is taken; an empty one has none, and is what is expected.

        Raises:
            RefusedDelivery: it is not.
        """
        accept = self.fields.accept
        taken = [accept] if isinstance(accept, str) else accept
        kind: Kind = "raw"
        if is_empty:
            return taken[0]
        if content_type == "application/json" or content_type.endswith("+json"):
            kind = "json"
        elif content_type == "application/x-www-form-urlencoded":
            kind = "form"
        elif content_type.startswith("text/"):
            kind = "text"
        if kind in taken:
            return kind
        if "raw" in taken:
            return "raw"
        raise RefusedDelivery(f"a body of {content_type} is not accepted here: {', '.join(taken)}", 415)

    def kept(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers that reach the job."""
        found = {name: headers[name] for name in self.fields.headers if name in headers}
        return {
            name: value.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name, value in found.items()
        }

    def key(self, headers: Mapping[str, str], payload: Any) -> str | None:
        """Return what tells this delivery from others; None where each is one of its own.

        Raises:
            RefusedDelivery: it does not hold that.
        """
        if self.fields.unique_by is None:
            return None
        where, _, path = self.fields.unique_by.partition(":")
        found: Any = headers.get(path) if where == "header" else payload
        for part in path.split(".") if where == "body" else ():
            found = found.get(part) if isinstance(found, dict) else None
        if not isinstance(found, str | int) or found == "":
            raise RefusedDelivery(f"it has no {self.fields.unique_by}, by which deliveries are told apart")
        return str(found)


def read_delivery(infos: TriggerInfos) -> Delivery:
    """Return what a trigger says.

    Raises:
        MalformedTriggerError: it cannot be understood, or says it of a trigger that nothing is sent to.
    """
    given = {name: getattr(infos, name) for name in _Fields.model_fields if getattr(infos, name) is not None}
    extra = (infos.model_extra or {}) if infos.type == "@webhook" else {}
    if len(extra) > _MOST_UNKNOWN:
        raise MalformedTriggerError(f"there are {len(extra):,} fields that are none; {_MOST_UNKNOWN} may be")
    for name in (name for name in extra if len(name) <= _LONGEST_SLIP):
        if close := difflib.get_close_matches(name, _Fields.model_fields, 1, _ALIKE):
            raise MalformedTriggerError(
                f"{name} is no field: did you mean {close[0]}? Nothing is taken until that is clear"
            )
    if given and infos.type != "@webhook":
        raise MalformedTriggerError(f"{', '.join(sorted(given))}: for a @webhook, and this is {infos.type}")
    if infos.unique_by is not None and infos.debounce:
        raise MalformedTriggerError("unique_by and debounce exclude each other")
    if infos.debounce and "raw" in (infos.accept if isinstance(infos.accept, list) else [infos.accept]):
        raise MalformedTriggerError("accept: raw and debounce exclude each other: a job has one body as its attachment")
    try:
        return Delivery(_Fields.model_validate(given))
    except ValidationError as error:
        wrong = sorted({str(one["loc"][0]) for one in error.errors()})
        raise MalformedTriggerError("; ".join(f"{name} is not understood: {_HOW[name]}" for name in wrong)) from None


def payload_of(kind: Kind, raw: bytes, content_type: str, charset: str = "") -> Any:
    """Return the payload that a body is. `charset`: that of text and forms, as it is named; empty: UTF-8, or nearly.

    Raises:
        RefusedDelivery: it is none of that kind.
    """
    try:
        match kind:
            case "json":
                return decode(raw) if raw else None
            case "form":
                return _form(raw.decode(_codec(charset)), charset)
            case "text":
                return raw.decode(_codec(charset))
            case "raw":
                return {"attachment": "payload", "content_type": content_type, "length": len(raw)}
    except (ValueError, RecursionError) as error:
        raise RefusedDelivery(f"the body is no {kind}: {error}", 400) from None


def charset_of(headers: Mapping[str, str]) -> str:
    """Return the charset that the Content-Type names; empty where it names none."""
    told = Message()
    told["Content-Type"] = headers.get("Content-Type", "")
    return told.get_content_charset("")


def _codec(charset: str) -> str:
    """Return what Python calls a charset.

    Raises:
        RefusedDelivery: 415: it is none of those that people write in. Others that Python knows take minutes a body.
    """
    try:
        name = codecs.lookup(charset or "utf-8").name
    except (LookupError, ValueError):
        name = ""
    if not _CHARSETS.fullmatch(name):
        raise RefusedDelivery(f"the charset {charset[:40]!r} is not taken", 415)
    return name


def delivery_id(trigger_id: str, key: str) -> str:
    """Return the id of the job of a delivery that is told apart by this."""
    told = f"{trigger_id}\0{key}".encode("utf-8", "surrogatepass")
    return f"delivery-{hashlib.sha256(told).hexdigest()[:40]}"


def _form(text: str, charset: str) -> dict[str, Any]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    how = "strict" if charset else "replace"
    codec = _codec(charset)
    for name, value in parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS, encoding=codec, errors=how):
        found[name].append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _check_stripe(raw: bytes, shown: str, secret: str, now: float, tolerance: float) -> None:
    parts = [part.strip().partition("=") for part in shown.split(",")]
    at = next((value for name, _, value in parts if name == "t"), "")
    signatures = [value for name, _, value in parts if name == "v1"][:_MOST_SIGNATURES]
    wanted = hmac.digest(secret.encode(), _as_bytes(at) + b"." + raw, "sha256").hex()
    if not any(hmac.compare_digest(_as_bytes(one), wanted.encode()) for one in signatures):
        raise RefusedDelivery(f"its {_STRIPE} is not the secret's")
    if not at.isascii() or not at.isdigit() or abs(now - int(at)) > tolerance:
        raise RefusedDelivery(f"its {_STRIPE} is of {at[:20]}, more than {tolerance:.0f} s from now")
