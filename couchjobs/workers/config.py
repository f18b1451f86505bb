"""What couchjobs knows of one type of worker, and the list of all of them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from couchjobs.durations import read_seconds
from couchjobs.errors import ConfigurationError, JobFailedError, MalformedTriggerError, UnknownWorkerError
from couchjobs.jobs.job import CLIENT_WORKER, MAX_NAME, Job
from couchjobs.triggers.cron import parse_cron
from couchjobs.triggers.every import parse_every
from couchjobs.workers.boundary import is_coroutine, name_of, why_not_called
from couchjobs.workers.context import MARK, WorkerContext

WorkerInitFunc = Callable[..., Any]
Middleware = Callable[[WorkerContext], Any]
WorkerStartFunc = Callable[[WorkerContext], Awaitable[WorkerContext] | WorkerContext]
WorkerFunc = Callable[..., Any]
WorkerCommit = Callable[[WorkerContext, BaseException | None], Awaitable[None] | None]
WorkerBeforeHook = Callable[[Job], Awaitable[bool] | bool]
JobErrorCheckerHook = Callable[[BaseException], bool]
OnFailed = Callable[[WorkerContext, JobFailedError], Awaitable[None] | None]


_HOOKS = ("worker_init", "worker_stop", "worker_start", "worker_commit", "before_hook", "error_hook", "on_failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """One type of worker. Durations in seconds, or as text such as "5m".

    Args:
        worker_type: the name that jobs give.
        worker_func: the work: `f(ctx)` or `f(ctx, message)`; a coroutine function, or a plain one, for a thread.
        message_model: what the message is read into before it is given to `worker_func`; None: as it is.
        takes_message: whether `worker_func` takes the message as its second argument.
        worker_init: `f()` or `f(resources)`, called once in each process, before the first claim; if it raises, the
            start fails. It gets the Resources of the type.
        worker_stop: called once in each process, at an orderly end, when no job of the type runs there any more; as
            `worker_init`.
        worker_start: `f(ctx)`, called once for each claim, before its try; returns the context to go on with.
        worker_commit: `f(ctx, error)`, called once, after the last try, with the error or None, for at most `timeout`.
        middleware: what is around each try: functions of the context that return a context manager, the outermost
            first; an async one is entered in the event loop, a plain one where the function runs.
        before_hook: `f(job)`, asked before a job is stored, by programs that push through couchjobs and have declared
            the worker, firing daemons included; not of documents that others write, nor by `couchjobs push`: check
            messages in the function. False skips the job, an exception refuses it.
        error_hook: `f(error)`, asked with the last error before a retry; False stops the retries.
        on_failed: `f(ctx, error)`, called with a JobFailedError once a job has failed for good, whatever the cause,
            before that is stored; in the daemon, at least once.
        concurrency: how many jobs of this type one daemon runs at once. Defaults to 4.
        max_exec_count: how many tries a job has; its `options` may say fewer, never more. Defaults to 3.
        max_exec_time: how long all tries may take together, waits included; None: no limit.
        timeout: how long one try may take, or less where the job's `options` say so; None: no limit. Defaults to 60 s.
        retry_delay: the wait before the first retry, doubled for each further one, +-10 %. Defaults to 1 s.
        admin_only: only requests with admin=True are taken.
        strict_priority: jobs of lower priority wait for all those of higher; without it one of three that are taken is
            the oldest, whatever its priority, so that none waits for ever.
        every: the interval of a schedule of its own, such as "1h", which daemons write as a trigger with the id
            `code:<worker_type>`.
        cron: likewise, the arguments of a @cron trigger: "0 3 * * *".
        timezone: of `cron`, such as Europe/Paris; None: UTC.
    """

    worker_type: str
    worker_func: WorkerFunc
    message_model: Any = None
    takes_message: bool = False
    worker_init: WorkerInitFunc | None = None
    worker_stop: WorkerInitFunc | None = None
    middleware: tuple[Middleware, ...] = ()
    worker_start: WorkerStartFunc | None = None
    worker_commit: WorkerCommit | None = None
    before_hook: WorkerBeforeHook | None = None
    error_hook: JobErrorCheckerHook | None = None
    on_failed: OnFailed | None = None
    concurrency: int = 4
    max_exec_count: int = 3
    max_exec_time: float | None = None
    timeout: float | None = 60.0
    retry_delay: float = 1.0
    admin_only: bool = False
    strict_priority: bool = False
    every: str | None = None
    cron: str | None = None
    timezone: str | None = None

    def __post_init__(self) -> None:
        self._read_durations()
        if reason := why_not_called(self.worker_func):
            raise ConfigurationError(f"worker {self.worker_type!r}: {name_of(self.worker_func)}: {reason}")
        if not isinstance(self.worker_type, str) or len(self.worker_type) > MAX_NAME:
            raise ConfigurationError(f"worker type {self.worker_type!r} is no text of at most {MAX_NAME} characters")
        self._check_schedule()
        if self.worker_type == CLIENT_WORKER:
            raise ConfigurationError(
                f"jobs of worker {CLIENT_WORKER!r} are done by clients; give your worker another name"
            )
        self._check_hooks()
        for name, least in (("concurrency", 1), ("max_exec_count", 1), ("retry_delay", 0)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"worker {self.worker_type!r}: {name} must be at least {least}")
        for name in ("timeout", "max_exec_time"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigurationError(
                    f"worker {self.worker_type!r}: {name} must be more than 0, or None for no limit"
                )

    def _check_schedule(self) -> None:
        if self.every is not None and self.cron is not None:
            raise ConfigurationError(f"worker {self.worker_type!r} has `every` or `cron`, not both")
        if self.timezone is not None and self.cron is None:
            raise ConfigurationError(f"worker {self.worker_type!r}: timezone: is of `cron`, and there is none")
        for name in ("every", "cron", "timezone"):
            if not isinstance(value := getattr(self, name), str | None):
                raise ConfigurationError(f"worker {self.worker_type!r}: {name}: text is wanted, not {value!r:.80}")
        try:
            if self.every is not None:
                parse_every(self.every)
            if self.cron is not None:
                parse_cron(self.cron, self.timezone)
        except MalformedTriggerError as error:
            raise ConfigurationError(f"worker {self.worker_type!r}: {error}") from None

    def _read_durations(self) -> None:
        for name in ("timeout", "max_exec_time", "retry_delay"):
            if isinstance(given := getattr(self, name), str):
                try:
                    object.__setattr__(self, name, read_seconds(given))
                except ValueError as error:
                    raise ConfigurationError(f"worker {self.worker_type!r}: {name}: {error}") from None

    def _check_hooks(self) -> None:
        for name in _HOOKS:
            if (hook := getattr(self, name)) is not None and not callable(hook):
                raise ConfigurationError(f"worker {self.worker_type!r}: {name} is no function, but {hook!r:.80}")
        for name in ("admin_only", "strict_priority"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"worker {self.worker_type!r}: {name} is True or False")

    def clone(self) -> WorkerConfig:
        """Return a copy."""
        return dataclasses.replace(self)

    @property
    def is_coroutine(self) -> bool:
        """Return whether the work runs in the event loop; else it runs in a thread."""
        return is_coroutine(self.worker_func)

    @staticmethod
    def takes_resources(hook: Callable[..., Any]) -> bool:
        """Return whether a `worker_init` or `worker_stop` takes the Resources of its type."""
        try:
            parameters = inspect.signature(hook).parameters.values()
        except (ValueError, TypeError):
            return False
        return any(one.default is one.empty and one.kind is not one.VAR_KEYWORD for one in parameters)


class WorkersList:
    """The types of workers of a process, each once."""

    def __init__(self, workers: Iterable[WorkerConfig | Callable[..., Any]] = ()) -> None:
        """Take configurations, or functions that are decorated with @worker."""
        self._configs: dict[str, WorkerConfig] = {}
        for worker in workers:
            self.add(worker)

    def __iter__(self) -> Iterator[WorkerConfig]:
        return iter(self._configs.values())

    def __len__(self) -> int:
        return len(self._configs)

    def __contains__(self, worker_type: object) -> bool:
        return worker_type in self._configs

    def add(self, worker: WorkerConfig | Callable[..., Any]) -> None:
        """Add one type: its configuration, or a function that is decorated with @worker.

        Raises:
            ConfigurationError: it has no name, or there is one of that name.
        """
        config = worker if isinstance(worker, WorkerConfig) else getattr(worker, MARK, None)
        if not isinstance(config, WorkerConfig):
            raise ConfigurationError(f"{worker!r} is neither a WorkerConfig nor decorated with @worker")
        if not config.worker_type:
            raise ConfigurationError("a worker needs a type: a name that jobs give")
        if config.worker_type in self._configs:
            raise ConfigurationError(
                f"there are two workers of type {config.worker_type!r}; give one of them another name"
            )
        self._configs[config.worker_type] = config

    def put(self, config: WorkerConfig) -> None:
        """Have this one be that of its type, whichever was before."""
        self._configs[config.worker_type] = config

    def get(self, worker_type: str) -> WorkerConfig:
        """Return the worker of that type.

        Raises:
            UnknownWorkerError: there is none.
        """
        try:
            return self._configs[worker_type]
        except KeyError:
            raise UnknownWorkerError(
                f"no worker of type {worker_type!r}: {', '.join(self.names()) or 'there are none'}"
            ) from None

    def names(self) -> list[str]:
        """Return the names of the types, sorted."""
        return sorted(self._configs)
