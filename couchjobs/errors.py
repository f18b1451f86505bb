"""Every error that couchjobs raises.

CouchjobsError
├── ConfigurationError        what the user typed cannot be used
├── CouchError                an answer of CouchDB that is not the one hoped for
│   ├── BadRequest            400, 405, 406, 412 and other refusals of the request itself
│   ├── Unauthorized          401: the request, whatever it was
│   ├── Forbidden             403: the request, whatever it was
│   │   └── Refused           CouchDB says of one document that it never takes it
│   ├── NotFound              404: no such database, or no such view of it
│   ├── Conflict              CouchDB says of one document that it has another revision
│   ├── PositionRefused       the server has no such position in the feed of a database
│   ├── TooLarge              413: the request, whatever it was
│   ├── Unreadable            an answer that is larger than is read, or nested too deep
│   └── Unavailable           429, 5xx, no answer, half of one, or one that is not CouchDB's, whatever its status
│       ├── Unreachable       no connection: the request was surely not taken
│       ├── Locked            it takes no password of this user for some minutes
│       ├── Stumbled          it broke off, perhaps for what a function has done about a document
│       └── NotCouchDB        something else has answered
│           └── Redirected    3xx: the server is somewhere else
├── ClosedError               use of a closed system, or start of a started one
├── QueueClosedError          push to a closed queue
├── JobNotFoundError          no job with that id
├── UnknownWorkerError        no worker of that type
├── AdminOnlyError            that worker takes only requests of administrators
├── HookError                 a `before_hook` refuses a job by raising
├── MessageNilError           an absent message, event or payload was read
├── MessageUnmarshalError     it does not fit the model asked for
├── BadDocumentError          a document that somebody wrote cannot be understood
├── JobFailedError            what `on_failed` is told: a job has failed for good
├── AbortJob                  raised by a worker: stop now, the job is done
├── UnknownTriggerError       trigger type not known
├── TriggerNotFoundError      no trigger with that id
├── MalformedTriggerError     the arguments of a trigger cannot be parsed
└── BadTriggerError           raised by a worker: the job's trigger is bad, delete it
"""

from __future__ import annotations


class CouchjobsError(Exception):
    """Root of all errors of couchjobs."""


class ConfigurationError(CouchjobsError):
    """A setting, an argument or a name that the user gave cannot be used."""


class CouchError(CouchjobsError):
    """CouchDB answered with an error; `status` is the HTTP status, 0 where there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class BadRequest(CouchError):
    """CouchDB refused the request as such."""


class Unauthorized(CouchError):
    """CouchDB does not accept the credentials."""


class Forbidden(CouchError):
    """The user may not do this."""


class NotFound(CouchError):
    """No such database or view."""


class Refused(Forbidden):
    """CouchDB does not take this document, and never will as it is: a validator forbids it, or it is too large."""


class Conflict(CouchError):
    """The document has another revision than the one written to."""


class PositionRefused(CouchError):
    """The server cannot go on in a feed from this position: it is another server's, or no longer what it was."""


class TooLarge(CouchError):
    """The request is larger than the server, or what stands before it, takes."""


class Unreadable(CouchError):
    """The answer is there, and is larger than is read, or holds something that is nested too deep."""


class Unavailable(CouchError):
    """CouchDB did not answer, not in time, not to the end, or that it cannot now; or it was not CouchDB that did.

    `retry_after_s` is how long the server asks to be left alone.
    """

    def __init__(self, message: str, status: int = 0, retry_after_s: float = 0.0) -> None:
        super().__init__(message, status)
        self.retry_after_s = retry_after_s


class Unreachable(Unavailable):
    """There was no connection, so that the request was surely not taken."""


class Locked(Unavailable):
    """The server takes no password of this user for some minutes, after several wrong ones."""


class Stumbled(Unavailable):
    """CouchDB broke off the request, perhaps for what somebody's function has done about one of its documents."""


class NotCouchDB(Unavailable):
    """What has answered was not CouchDB, or not to the end."""


class Redirected(NotCouchDB):
    """The server says that it is somewhere else; credentials are not sent there."""


class ClosedError(CouchjobsError):
    """Use of a system that is closed, or start of one that is started."""


class QueueClosedError(CouchjobsError):
    """Push to a queue that is closed."""


class JobNotFoundError(CouchjobsError):
    """No job with that id."""


class UnknownWorkerError(CouchjobsError):
    """No worker of that type is registered."""


class AdminOnlyError(CouchjobsError):
    """The worker takes only requests with admin=True."""


class HookError(CouchjobsError):
    """A `before_hook` refuses a job; `raised` is what it raised, which says nothing about CouchDB, whatever it is."""

    def __init__(self, text: str, raised: Exception) -> None:
        super().__init__(text)
        self.raised = raised


class MessageNilError(CouchjobsError):
    """A message, event or payload that is absent was read. Never retried."""


class MessageUnmarshalError(CouchjobsError):
    """A message, event or payload does not fit the model asked for. Never retried."""


class BadDocumentError(CouchjobsError):
    """A job or trigger document cannot be understood; the message says what is wrong and how to mend it."""


class JobFailedError(CouchjobsError):
    """A job has failed for good; what it says is the job's `error`.

    `cause` is "tries" (the last one failed, or an error that is never tried again), "worker lost" (who ran the last one
    has died), or "refused" (it was never run: it cannot be understood or stored, or its worker does not take it).
    `traceback` is that of the last try, empty where there is none.
    """

    def __init__(self, error: str, cause: str, traceback: str = "") -> None:
        super().__init__(error)
        self.cause = cause
        self.traceback = traceback


class AbortJob(CouchjobsError):
    """Raised by a worker: stop now, without error. The job is done, what it says is its result; never retried."""


class UnknownTriggerError(CouchjobsError):
    """The type of the trigger is not known."""


class TriggerNotFoundError(CouchjobsError):
    """No trigger with that id."""


class MalformedTriggerError(CouchjobsError):
    """The arguments of a trigger cannot be parsed. As an HTTP answer: status 400."""

    status = 400


class BadTriggerError(CouchjobsError):
    """Raised by a worker: no retry, the job is errored, its trigger is deleted."""

    def __init__(self, cause: BaseException | str) -> None:
        super().__init__(str(cause))
        self.cause = cause
