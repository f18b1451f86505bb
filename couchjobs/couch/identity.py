"""Whether a database is still the one that a position in its feed is of: not made anew, not an older copy of it.

Rows that were read before the position vouch for it: an older copy may have seen more changes by now than the position
says, but it has not seen the same. That one of them is unknown proves that only where nothing else explains it:

- a purge takes documents as though they had never been there; a database counts its purges (`purge_seq`);
- of a document that has changed often, CouchDB forgets the oldest revisions (`_revs_limit`), so that it is known only
  of the revisions that its newest one still lists;
- `_revs_diff` is answered by the first copy of a cluster, perhaps one that has been away: leaves are read from most.

Sequences of the copies of a cluster differ for good once one of them has been away: there, a smaller one proves
nothing.

Source: CouchDB docs, api/database/misc (`_purge`, `_revs_limit`), and what 3.5 answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from couchjobs.couch.database import Database, Document, Witness, generation, sequence_number
from couchjobs.errors import NotFound, Unavailable, Unreadable

_LOOKS = 5
"""Times that a cluster is asked again how many purges there were: each time other copies answer, perhaps."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a database that has come as far as a position.

    Args:
        position: in its feed.
        instance: its `instance_start_time`; empty where that is not known.
        witnesses: documents and their revisions, of rows before the position.
    """

    position: str
    instance: str = ""
    witnesses: Sequence[Witness] = ()


def instance_of(info: Document) -> str:
    """Return when a database was made, in seconds by what it says of itself: it is another one where that changes."""
    return str(info.get("instance_start_time", ""))


def purges_of(info: Document) -> int:
    """Return how many purges a database has seen, by what it says of itself."""
    return sequence_number(str(info.get("purge_seq", "")))


def copies_of(info: Document) -> int:
    """Return how many copies of each document there are, by what a database says of itself."""
    cluster = info.get("cluster")
    copies = cluster.get("n") if isinstance(cluster, dict) else None
    return copies if isinstance(copies, int) else 1


async def is_another_than(database: Database, known: Known) -> bool:
    """Return whether a database is another one than what is known: made anew, or an older copy of it.

    Raises:
        NotFound: it does not exist.
        Unavailable: CouchDB does not say.
    """
    info = await database.info()
    if known.instance and instance_of(info) != known.instance:
        return True
    is_alone = copies_of(info) == 1
    is_behind = is_alone and sequence_number(str(info.get("update_seq", ""))) < sequence_number(known.position)
    if not known.witnesses:
        return is_behind
    missing = await database.missing_revisions(known.witnesses)
    if not missing:
        return False
    purges = purges_of(info)
    for _ in range(0 if is_alone else _LOOKS):  # one of them may not know of the last purge yet
        purges = max(purges, purges_of(await database.info()))
    if any(one.purges < purges for one in missing):
        return is_behind
    return any([await _was_never_there(database, one) for one in missing])


async def _was_never_there(database: Database, one: Witness) -> bool:
    """Return whether the leaves of a document list no such revision, and would if it had been there.

    Raises:
        Unavailable: CouchDB does not say.
    """
    doc_id = one.doc_id
    quoted = quote(doc_id, safe="/" if doc_id.startswith("_design/") else "")
    path, params = f"{database.path}/{quoted}", {"open_revs": "all", "revs": True}
    try:
        answer = await database.server.request("GET", path, params=params, has=list)
        listed = [leaf["ok"]["_revisions"] for leaf in answer]
        starts = [(int(each["start"]), each["ids"]) for each in listed]
        if any(f"{start - back}-{digest}" == one.rev for start, ids in starts for back, digest in enumerate(ids)):
            return False
        return generation(one.rev) >= max((start - len(ids) + 1 for start, ids in starts), default=0)
    except NotFound:
        return True
    except Unreadable:  # it is there, and nothing more is to be had
        return False
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unavailable(f"{doc_id} in database {database.name}: its revisions are not told: {error!r}") from error


def rows_of(info: Document) -> int:
    """Return how many rows the feed of a database has, by what CouchDB tells of it: deleted documents have theirs."""
    return int(info.get("doc_count", 0)) + int(info.get("doc_del_count", 0))
