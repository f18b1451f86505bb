"""A job engine for people whose data lives in CouchDB: jobs and triggers are documents."""

from couchjobs import sync as _sync  # noqa: F401  which gives worker functions their sync_push
from couchjobs.broker.couch import CouchBroker
from couchjobs.broker.protocol import Broker
from couchjobs.client import Couchjobs
from couchjobs.couch.connection import Connection, connect
from couchjobs.errors import (
    AbortJob,
    AdminOnlyError,
    BadDocumentError,
    BadTriggerError,
    ClosedError,
    ConfigurationError,
    CouchjobsError,
    JobFailedError,
    JobNotFoundError,
    MalformedTriggerError,
    MessageNilError,
    MessageUnmarshalError,
    QueueClosedError,
    TriggerNotFoundError,
    UnknownTriggerError,
    UnknownWorkerError,
)
from couchjobs.jobs.job import WORKER_TYPE, Event, Job, JobOptions, State
from couchjobs.jobs.message import Message, new_message, unmarshal
from couchjobs.jobs.queries import (
    get_job,
    get_jobs,
    get_jobs_before_date,
    get_lasts_jobs,
    get_queued_jobs,
    iter_jobs_before_date,
    iter_queued_jobs,
)
from couchjobs.jobs.request import JobRequest, PushResult, new_job
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.trigger_state import TriggerState, get_trigger_state
from couchjobs.jobs.waiting import wait
from couchjobs.memory.broker import MemBroker
from couchjobs.memory.scheduler import MemScheduler
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.scheduler.protocol import Scheduler
from couchjobs.scheduler.trigger import EventTrigger, Trigger, new_trigger
from couchjobs.settings import Settings, load_settings
from couchjobs.system import JobSystem, system_start
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.workers.config import WorkerConfig, WorkersList
from couchjobs.workers.context import Resources, WorkerContext, current_context, current_job
from couchjobs.workers.failure import on_failed
from couchjobs.workers.registry import add_worker, get_workers_list, get_workers_names_list, worker
from couchjobs.workers.worker import Worker

__all__ = [
    "WORKER_TYPE",
    "AbortJob",
    "AdminOnlyError",
    "BadDocumentError",
    "BadTriggerError",
    "Broker",
    "ClosedError",
    "ConfigurationError",
    "Connection",
    "CouchBroker",
    "CouchScheduler",
    "Couchjobs",
    "CouchjobsError",
    "Event",
    "EventTrigger",
    "Job",
    "JobFailedError",
    "JobNotFoundError",
    "JobOptions",
    "JobRequest",
    "JobStore",
    "JobSystem",
    "MalformedTriggerError",
    "MemBroker",
    "MemScheduler",
    "Message",
    "MessageNilError",
    "MessageUnmarshalError",
    "Prefixer",
    "PushResult",
    "QueueClosedError",
    "Resources",
    "Scheduler",
    "Settings",
    "State",
    "Trigger",
    "TriggerInfos",
    "TriggerNotFoundError",
    "TriggerState",
    "UnknownTriggerError",
    "UnknownWorkerError",
    "Worker",
    "WorkerConfig",
    "WorkerContext",
    "WorkersList",
    "add_worker",
    "connect",
    "current_context",
    "current_job",
    "get_job",
    "get_jobs",
    "get_jobs_before_date",
    "get_lasts_jobs",
    "get_queued_jobs",
    "get_trigger_state",
    "get_workers_list",
    "get_workers_names_list",
    "iter_jobs_before_date",
    "iter_queued_jobs",
    "load_settings",
    "new_job",
    "new_message",
    "new_trigger",
    "on_failed",
    "system_start",
    "unmarshal",
    "wait",
    "worker",
]
