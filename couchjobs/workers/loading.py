"""The workers of a program: what the modules that it names declare."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from couchjobs.errors import ConfigurationError
from couchjobs.log import own_configuration
from couchjobs.workers.config import WorkersList
from couchjobs.workers.registry import declared, get_workers_list, workers_of

_folder: list[str] = []


def folder() -> str:
    """Return the working directory as it was when modules were imported: they may have changed it."""
    return _folder[0] if _folder else str(Path.cwd())


def load_workers(names: Iterable[str]) -> WorkersList:
    """Return the workers of these modules; the working directory is importable.

    Raises:
        ConfigurationError: a module cannot be imported, or there is no worker in them.
    """
    _folder[:] = [str(Path.cwd())]
    _make_importable(folder())
    before = len(declared())
    with own_configuration():
        modules = [_load(name) for name in names]
    here = {module.__name__ for module in modules}
    besides = [config for config in declared() if getattr(config.worker_func, "__module__", None) in here]
    workers = workers_of(*modules, besides=[*besides, *declared()[before:]])
    for config in get_workers_list():
        workers.add(config)
    if not len(workers):
        raise ConfigurationError(f"there is no @worker function in {', '.join(names)}")
    return workers


def _make_importable(folder: str) -> None:
    """Put a folder before what is installed, and behind the standard library, which a `queue.py` must not shadow."""
    installed = [number for number, path in enumerate(sys.path) if path.endswith(("site-packages", "dist-packages"))]
    sys.path.insert(installed[0] if installed else len(sys.path), folder)


def _load(name: str) -> ModuleType:
    try:
        return importlib.import_module(name.removeprefix("./").removesuffix(".py").replace("/", "."))
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"module {name!r} cannot be imported: {error} (looked in {Path.cwd()} and the Python path)"
        ) from error
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        line = getattr(error, "lineno", None) or where.lineno
        file = getattr(error, "filename", None) or where.filename
        raise ConfigurationError(
            f"module {name!r} fails when it is imported: {type(error).__name__}: {error} ({file}, line {line})"
        ) from error
