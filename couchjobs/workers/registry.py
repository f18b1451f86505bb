"""The `@worker` decorator, and the workers that the modules of a program declare with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import ModuleType
from typing import Any, Protocol, TypeVar, cast, get_type_hints, overload

from couchjobs.errors import ConfigurationError
from couchjobs.jobs.names import meant_by
from couchjobs.workers.config import WorkerConfig, WorkersList
from couchjobs.workers.context import MARK, WorkerContext
from couchjobs.workers.handles import WorkerWithMessage, WorkerWithout, add_handles

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M")
R = TypeVar("R")
_added = WorkersList()
_declared: list[WorkerConfig] = []
"""All that `@worker` has declared in this process, in that order."""
_latest = WorkersList()
"""Of each type, what was declared last."""


class Declare(Protocol):
    """What `worker(...)` returns: a decorator."""

    @overload
    def __call__(self, function: Callable[[WorkerContext], R]) -> WorkerWithout[R]: ...

    @overload
    def __call__(self, function: Callable[[WorkerContext, M], R]) -> WorkerWithMessage[M, R]: ...


def worker(worker_type: str, **options: Any) -> Declare:
    """Declare the decorated function to be the worker of that type; the options are those of WorkerConfig.

    The function stays what it is, and gets `push` and `sync_push`. It takes the context, and the message if it wants
    it: read into the model by which the second parameter is annotated, as it is where there is no annotation. What it
    returns is the job's `result`.

    Raises:
        ConfigurationError: an option that does not exist, or a function that takes something else.
    """
    if callable(worker_type):
        raise ConfigurationError('@worker needs the type that jobs name: @worker("name")')

    def declare(function: F) -> F:
        model, takes_message = _message_parameter(worker_type, function)
        try:
            config = WorkerConfig(
                worker_type=worker_type,
                worker_func=function,
                message_model=model,
                takes_message=takes_message,
                **options,
            )
        except TypeError as error:
            unknown = options.keys() - WorkerConfig.__dataclass_fields__.keys()
            close = meant_by(min(unknown), WorkerConfig.__dataclass_fields__) if unknown else ""
            told = f"there is no option {min(unknown)!r}" if unknown else str(error)
            meant = f": did you mean {close}?" if close else ""
            raise ConfigurationError(f"@worker({worker_type!r}): {told}{meant}") from None
        setattr(function, MARK, config)
        _declared.append(config)
        _latest.put(config)
        with suppress(AttributeError, TypeError):  # an object that takes no attributes has no handles
            add_handles(function, worker_type)
        return function

    return cast("Declare", declare)


def _message_parameter(worker_type: str, function: Callable[..., Any]) -> tuple[Any, bool]:
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if not 1 <= len(parameters) <= 2:
        raise ConfigurationError(f"@worker({worker_type!r}): {function.__name__} must take (ctx) or (ctx, message)")
    if len(parameters) == 1:
        return None, False
    try:
        hints = get_type_hints(function)
    except NameError as error:
        raise ConfigurationError(f"@worker({worker_type!r}): {function.__name__}: {error}") from None
    model = hints.get(parameters[1].name)
    return (None if model in (Any, WorkerContext) else model), True


def config_of(function: Callable[..., Any]) -> WorkerConfig:
    """Return what `@worker` declared of the function.

    Raises:
        ConfigurationError: it is no worker.
    """
    config = getattr(function, MARK, None)
    if not isinstance(config, WorkerConfig):
        raise ConfigurationError(f"{function!r} is not decorated with @worker")
    return config


def declared() -> list[WorkerConfig]:
    """Return all workers that have been declared in this process so far, also by factories and in loops."""
    return [*_declared]


def latest_declared() -> WorkersList:
    """Return the workers that have been declared in this process, of each type the latest."""
    return _latest


def workers_of(*modules: ModuleType, besides: Iterable[WorkerConfig] = ()) -> WorkersList:
    """Return the workers that these modules hold, and those `besides`, each once, however often it is imported.

    Raises:
        ConfigurationError: two of them have the same type.
    """
    held = [getattr(value, MARK, None) for module in modules for value in vars(module).values()]
    found = {id(config): config for config in held if isinstance(config, WorkerConfig)}
    known = {_place_of(config) for config in found.values()}
    more = {
        _place_of(config): config for config in besides if _place_of(config) not in known
    }  # the latest, if reloaded
    return WorkersList((*found.values(), *more.values()))


def _place_of(config: WorkerConfig) -> tuple[str, Any, Any]:
    """Return what tells a declaration from others, and not from itself when its module is loaded again."""
    function = config.worker_func
    return config.worker_type, getattr(function, "__module__", None), getattr(function, "__qualname__", id(function))


def add_worker(config: WorkerConfig) -> None:
    """Add a worker to those of this process, for programs that declare theirs without a decorator.

    Raises:
        ConfigurationError: it has no type, or there is one of that type.
    """
    _added.add(config)


def get_workers_list() -> WorkersList:
    """Return the workers that `add_worker` was given."""
    return WorkersList(_added)


def get_workers_names_list() -> list[str]:
    """Return the names of the workers that `add_worker` was given, sorted."""
    return _added.names()
