"""The command line, as people use it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from daemons import DaemonProcess
from waiting import eventually

from couchjobs.cli.options import with_connection
from couchjobs.couch.connection import Connection
from couchjobs.errors import Unreachable
from couchjobs.prefixer import Prefixer
from couchjobs.settings import Settings
from couchjobs.timestamps import format_time, now

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(program: Path, settings_for: Callable[..., Settings]) -> Run:
    """Run a command on this test's databases."""
    settings = settings_for()
    environment = {
        **os.environ,
        "COUCHJOBS_URL": settings.url,
        "COUCHJOBS_DOMAIN": settings.domain,
        "COUCHJOBS_PREFIX": settings.prefix or "",
        "COUCHJOBS_CONTROL_DB": settings.control_db,
    }

    def command(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "couchjobs", *arguments],
            cwd=program,
            env={**environment, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return command


async def in_thread(run: Run, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command without stopping the event loop."""
    return await asyncio.to_thread(run, *arguments, **more)


async def test_init_when_run_twice_then_everything_is_there(connection: Connection, db: Prefixer, run: Run) -> None:
    """The second time there is nothing to do."""
    await connection.server.delete_database(db.database("jobs"))
    first = await in_thread(run, "init", "--json")
    assert any("created database" in change for change in orjson.loads(first.stdout)["changed"])
    second = await in_thread(run, "init")
    assert (second.returncode, second.stdout) == (0, "everything is there already\n")


async def test_push_when_waited_for_then_prints_the_end(
    connection: Connection, run: Run, daemon: Callable[..., DaemonProcess]
) -> None:
    """Exit code 0 for done, 1 for errored; and who runs them is told."""
    daemon()

    async def there() -> Any:
        return [one for one in orjson.loads((await in_thread(run, "daemons", "--json")).stdout) if one["worker_types"]]

    (told,) = await eventually(there)
    assert "thread" in told["worker_types"]
    assert told["id"] in (await in_thread(run, "daemons")).stdout
    done = await in_thread(run, "push", "thread", "0.01", "--wait", "--json")
    assert done.returncode == 0
    assert orjson.loads(done.stdout)["result"] == "slept"
    failed = await in_thread(run, "push", "thread", '"x"', "--wait")
    assert failed.returncode == 1
    assert "errored" in failed.stdout


async def test_wait_when_its_time_is_over_then_another_exit_code_than_of_a_failure(
    connection: Connection, db: Prefixer, run: Run
) -> None:
    """The job is queued still, and nobody has its worker."""
    pushed = await in_thread(run, "push", "nobody-has-it", "--id", "late", "--wait", "--timeout", "0.5")
    assert pushed.returncode == 3, pushed.stderr
    assert "late" in pushed.stderr
    assert "Traceback" not in pushed.stderr


async def test_push_when_it_has_options_then_the_job_has_them(connection: Connection, db: Prefixer, run: Run) -> None:
    """And what is no option, or for --wait alone, is refused."""
    pushed = await in_thread(run, "push", "w", "--id", "o", "--options", '{"timeout": "5s"}')
    assert pushed.returncode == 0, pushed.stderr
    assert (await connection.database(db.database("jobs")).get("o"))["options"] == {"timeout": 5.0}
    for wrong, told in (
        (("--options", '{"timout": 5}'), "did you mean options.timeout?"),
        (("--options", "5"), "--options"),
        (("--timeout", "5"), "--timeout is for --wait"),
    ):
        refused = await in_thread(run, "push", "w", *wrong)
        assert (refused.returncode, told in refused.stderr) == (2, True), refused.stderr


async def test_list_when_nobody_has_the_worker_then_told_which_may_be_meant(
    connection: Connection, db: Prefixer, run: Run
) -> None:
    """An empty table alone says nothing of a misspelt name."""
    daemon = {"_id": "daemon:one", "domain": db.domain, "prefix": db.db_prefix, "worker_types": ["resize"]}
    await connection.control.put(daemon)
    listed = await in_thread(run, "jobs", "ls", "--worker", "resise")
    assert listed.returncode == 0
    assert "did you mean resize?" in listed.stderr
    assert (await in_thread(run, "jobs", "ls", "--worker", "resize")).stderr == ""


async def test_daemons_when_one_has_died_then_marked(connection: Connection, db: Prefixer, run: Run) -> None:
    """By its own clock and what it says of itself; one that was just heard of is not."""
    dead = {"domain": db.domain, "prefix": db.db_prefix, "worker_types": ["echo"], "dead_after": 30.0}
    await connection.control.put({"_id": "daemon:dead", **dead, "at": "2026-01-01T00:00:00Z"})
    await connection.control.put({"_id": "daemon:alive", **dead, "at": format_time(now())})
    listed = (await in_thread(run, "daemons")).stdout.splitlines()
    assert [line.split()[1] for line in listed if "dead, if its clock is right" in line] == ["dead"]
    assert any("alive" in line for line in listed)


async def test_jobs_when_listed_shown_cancelled_and_tried_again_then_as_documents_say(
    connection: Connection, run: Run
) -> None:
    """A queued job that no daemon can take says so."""
    job_id = (await in_thread(run, "push", "nobody", "{}")).stdout.strip()
    listed = orjson.loads((await in_thread(run, "jobs", "ls", "--json")).stdout)
    assert [(job["_id"], job["note"]) for job in listed] == [(job_id, "no daemon has this worker")]
    assert (
        "no daemon has this worker"
        in (await in_thread(run, "jobs", "ls", "--worker", "nobody", "--state", "queued")).stdout
    )
    assert orjson.loads((await in_thread(run, "jobs", "show", job_id, "--json")).stdout)["worker"] == "nobody"
    assert (await in_thread(run, "jobs", "cancel", job_id)).returncode == 0
    assert orjson.loads((await in_thread(run, "jobs", "show", job_id)).stdout)["cancel_requested"] is True
    again = await in_thread(run, "jobs", "retry", job_id)
    assert again.returncode == 2
    assert "only one that has ended" in again.stderr
    for state in ("cancelled", "errored"):
        ended = await in_thread(run, "jobs", "ls", "--state", state, "--json")
        assert (ended.returncode, orjson.loads(ended.stdout)) == (0, []), ended.stderr


async def test_run_when_worker_init_raises_then_a_line_and_where(run: Run, program: Path) -> None:
    """And not what a fault of couchjobs would look like; no matter what it raises."""
    for error in ("OSError('no gpu')", "couchjobs.errors.NotFound('no gpu')"):
        (program / "bad_init.py").write_text(
            f"import couchjobs\ndef init():\n    raise {error}\n"
            "@couchjobs.worker('w', worker_init=init)\nasync def w(ctx): ...\n"
        )
        done = await in_thread(run, "run", "bad_init")
        assert done.returncode == 2
        assert "couchjobs: worker_init of worker 'w' failed" in done.stderr
        assert "no gpu" in done.stderr
        assert "typer" not in done.stderr


async def test_settings_when_lanes_are_no_json_then_a_line(run: Run) -> None:
    """With a sample."""
    done = await in_thread(run, "jobs", "ls", COUCHJOBS_LANES="import=imports")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "COUCHJOBS_LANES cannot be understood: it is JSON, such as" in done.stderr


async def test_job_when_its_result_could_not_be_stored_then_told_where_jobs_are_looked_at(
    run: Run, daemon: Callable[..., DaemonProcess]
) -> None:
    """In the list, and by `push --wait`: the job is done."""
    daemon()
    done = await in_thread(run, "push", "huge", "--wait")
    assert (done.returncode, "done: the job is done, but its result is not stored" in done.stdout) == (0, True), done
    (listed,) = orjson.loads((await in_thread(run, "jobs", "ls", "--json")).stdout)
    assert "its result is not stored" in listed["note"]


async def test_triggers_when_added_listed_fired_and_removed_then_as_documents_say(
    connection: Connection, db: Prefixer, run: Run
) -> None:
    """A bad one is listed with its reason."""
    await connection.database(db.database("triggers")).put({"_id": "bad", "type": "@nothing", "worker": "w"})
    added = await in_thread(
        run, "triggers", "add", "@every", "1h", "--worker", "append", "--message", '{"a": 1}', "--id", "mine"
    )
    assert (added.returncode, added.stdout) == (0, "mine\n")
    listed = {
        trigger["_id"]: trigger for trigger in orjson.loads((await in_thread(run, "triggers", "ls", "--json")).stdout)
    }
    assert "no type of trigger" in listed["bad"]["bad"]
    assert "bad" not in listed["mine"]
    assert "@nothing" in (await in_thread(run, "triggers", "ls")).stdout
    fired = orjson.loads((await in_thread(run, "triggers", "fire", "mine", "--json")).stdout)
    assert (fired["trigger_id"], fired["message"], fired["manual_execution"]) == ("mine", {"a": 1}, True)
    assert orjson.loads((await in_thread(run, "triggers", "show", "mine")).stdout)["type"] == "@every"
    removed = await in_thread(run, "triggers", "rm", "nosuch", "mine")
    assert (removed.returncode, removed.stdout) == (2, "mine deleted\n")
    assert "no trigger 'nosuch'" in removed.stderr
    assert (await in_thread(run, "triggers", "show", "mine")).returncode == 2


async def test_triggers_when_nobody_has_the_worker_or_there_is_no_database_then_said(
    connection: Connection, db: Prefixer, run: Run
) -> None:
    """Where it is added, and where it is listed; it is stored all the same."""
    taken = {"domain": db.domain, "prefix": db.db_prefix, "worker_types": ["resize"], "beat": 1}
    await connection.control.put({"_id": "daemon:other", **taken})
    await connection.server.create_database(db.database("orders"))
    rules = "orders:CREATED odrers:CREATED userdb-*:CREATED"
    more = ("--once", "--options", '{"max_exec_count": 2}')
    added = await in_thread(run, "triggers", "add", "@event", rules, "--worker", "risize", "--id", "odd", *more)
    assert (added.returncode, added.stdout) == (0, "odd\n")
    (listed,) = orjson.loads((await in_thread(run, "triggers", "ls", "--json")).stdout)
    stored = await connection.database(db.database("triggers")).get("odd")
    assert (stored["once"], stored["options"]) == (True, {"max_exec_count": 2})
    for told in (added.stderr, "; ".join(listed["notes"])):
        assert "no daemon has a worker 'risize' now: did you mean resize?" in told
        assert f"there is no database {db.database('odrers')}" in told
        assert "no database matches userdb-* yet" in told
        assert db.database("orders") not in told


@pytest.mark.usefixtures("connection")
async def test_webhook_when_added_then_its_fields_are_options_and_a_missing_secret_is_told(run: Run) -> None:
    """By `add`, by `ls` and by `doctor`; no more once it is there."""
    signed = ("--verify", '{"hmac": "sha256", "header": "X-S", "secret": "shop"}')
    fields = (*signed, "--headers", "X-A, X-B", "--unique-by", "body:id", "--accept", "json,form")
    added = await in_thread(run, "triggers", "add", "@webhook", "--worker", "w", "--id", "hook", *fields)
    assert (added.returncode, "there is no secret 'shop'" in added.stderr) == (0, True), added.stderr
    document = orjson.loads((await in_thread(run, "triggers", "show", "hook", "--json")).stdout)
    assert [document[name] for name in ("headers", "accept", "unique_by")] == [
        ["X-A", "X-B"],
        ["json", "form"],
        "body:id",
    ]
    for command in (("triggers", "ls", "--json"), ("doctor",)):
        assert "couchjobs secrets set shop" in (await in_thread(run, *command)).stdout
    # a secret is read from standard input, and an empty one is none
    empty = await in_thread(run, "secrets", "set", "shop")
    assert (empty.returncode, "the secret is empty" in empty.stderr) == (2, True)
    removed = await in_thread(run, "triggers", "update", "hook", "--verify", "", "--headers", "", "--json")
    assert {"verify", "headers"} & orjson.loads(removed.stdout).keys() == set()
    assert "secret" not in (await in_thread(run, "triggers", "ls", "--json")).stdout


@pytest.mark.usefixtures("connection")
async def test_next_when_a_trigger_has_a_zone_then_local_times_beside(run: Run) -> None:
    """The first column stays as it was."""
    schedule = ("@cron", "0 30 8 * * *", "--timezone", "Europe/Paris")
    await in_thread(run, "triggers", "add", *schedule, "--worker", "w", "--id", "early")
    told = (await in_thread(run, "triggers", "next", "early", "--after", "2030-06-01T00:00:00Z")).stdout
    assert told.splitlines()[0] == "2030-06-01T06:30:00Z  Sat 2030-06-01 08:30:00 Europe/Paris"


@pytest.mark.parametrize(
    "command",
    [
        ("pause", "w"),
        ("resume", "w"),
        ("retention", "set", '[{"worker": "*", "keep": "1d"}]'),
        ("tokens", "create", "jobs:GET"),
        ("triggers", "add", "@hourly", "--worker", "w"),
        ("push", "w"),
    ],
)
async def test_command_when_it_writes_for_a_tenant_that_is_not_there_then_refused(
    run: Run, name: str, command: tuple[str, ...]
) -> None:
    """A misspelt prefix: nothing is written that would be of nobody."""
    done = await in_thread(run, *command, COUCHJOBS_PREFIX=f"{name}-nobody")
    assert (done.returncode, "made by `couchjobs init`" in done.stderr) == (2, True), done.stderr


async def test_watch_when_a_job_runs_then_prints_its_states(
    connection: Connection, db: Prefixer, run: Run, daemon: Callable[..., DaemonProcess]
) -> None:
    """The feed shows queued, running and done."""
    daemon()
    await connection.writer(db.database("jobs")).write(
        {"_id": "job", "worker": "sleeps", "message": 1, "state": "queued"}
    )
    watched = await in_thread(run, "jobs", "watch", "job")
    states = [line.split()[3] for line in watched.stdout.splitlines()]
    assert states[-1] == "done"
    assert "running" in states


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["run", "nothing_here"], {}, "module 'nothing_here' cannot be imported"),
        (["run", "json"], {}, "there is no @worker function in json"),
        (["run", "program", "--log-level", "loud"], {}, "--log-level"),
        (["run", "./broken.py"], {}, "module './broken.py' fails when it is imported: SyntaxError"),
        (["push", "", "1"], {}, "WORKER must be the name"),
        (["push", "append", "{"], {}, "MESSAGE is not JSON"),
        (["jobs", "show", "nope"], {}, "no job 'nope'"),
        (["jobs", "ls", "--state", "lost"], {}, "lost"),
        (["triggers", "add", "@every", "often", "--worker", "w"], {}, "is not a duration"),
        (["triggers", "add", "@what", "x", "--worker", "w"], {}, "no type of trigger"),
        (["jobs", "ls"], {"COUCHJOBS_URL": "localhost"}, "must look like http://host:5984"),
        (["jobs", "ls"], {"COUCHJOBS_SHUTDWON_TIMEOUT": "3"}, "did you mean COUCHJOBS_SHUTDOWN_TIMEOUT"),
        (["jobs", "ls"], {"COUCHJOBS_REQUEST_TIMEOUT": "soon"}, "request_timeout"),
        (["jobs", "ls"], {"COUCHJOBS_PREFIX": "nobody"}, "couchjobs init"),
        (["jobs", "show", "job"], {"COUCHJOBS_PREFIX": "nobody"}, "couchjobs init"),
        (["jobs", "watch"], {"COUCHJOBS_PREFIX": "nobody"}, "couchjobs init"),
        (["jobs", "retry", "job"], {"COUCHJOBS_PREFIX": "nobody"}, "couchjobs init"),
        (["retention", "show"], {"COUCHJOBS_CONTROL_DB": "nobody"}, "couchjobs init"),
        (["queues"], {"COUCHJOBS_PREFIX": "nobody"}, "couchjobs init"),
        (["triggers", "ls"], {"COUCHJOBS_PREFIX": "nobody"}, "couchjobs init"),
        (["dev", "--data", "x", "--memory"], {}, "exclude each other"),
    ],
)
async def test_mistakes_when_made_then_exit_code_2_and_one_helpful_line(
    connection: Connection, run: Run, program: Path, arguments: list[str], environment: dict[str, str], says: str
) -> None:
    """What, where and how to mend it; never a traceback."""
    (program / "broken.py").write_text("def (")
    failed = await in_thread(run, *arguments, **environment)
    assert failed.returncode == 2, failed.stderr
    assert says in failed.stderr
    assert "Traceback" not in failed.stderr


async def test_unreachable_server_when_asked_then_exit_code_1_without_the_password(run: Run) -> None:
    """Not the user's fault, and no secret in it."""
    failed = await in_thread(run, "jobs", "ls", COUCHJOBS_URL="http://admin:hush@127.0.0.1:9")
    assert failed.returncode == 1
    assert "hush" not in failed.stdout + failed.stderr
    assert "Traceback" not in failed.stderr


def test_unreachable_server_when_nobody_said_where_it_is_then_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is a guess."""
    nowhere = "http://127.0.0.1:1"
    with pytest.raises(Unreachable) as said:
        with_connection(nowhere, None, None, lambda connection: connection.server.welcome())
    assert "COUCHJOBS_URL" not in str(said.value)
    monkeypatch.setattr(Settings.model_fields["url"], "default", nowhere)
    with pytest.raises(Unreachable, match="COUCHJOBS_URL"):
        with_connection(nowhere, None, None, lambda connection: connection.server.welcome())


async def test_dev_when_its_parent_dies_then_ends(tmp_path: Path) -> None:
    """No server is left behind, whatever became of the shell that started it."""
    command = f"{sys.executable} -m couchjobs dev --data {tmp_path}/data --port 0 --json"
    script = f"{command} > {tmp_path}/out & echo $!; exec sleep 1000"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COUCHJOBS_TEST")}
    shell = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert shell.stdout is not None
    dev = int(shell.stdout.readline())
    said = orjson.loads(await eventually(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text(), 30))
    assert said["url"].startswith("http://admin:")
    assert (tmp_path / "data" / "password").read_text() in said["url"]
    assert (tmp_path / "data" / "password").stat().st_mode & 0o777 == 0o600
    shell.send_signal(signal.SIGKILL)
    shell.wait()
    shell.stdout.close()
    await eventually(lambda: not alive(dev) and not alive(said["pid"]))


def alive(pid: int) -> bool:
    """Whether the process runs, a zombie not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_bench_when_compared_with_no_commit_then_exit_2(run: Run) -> None:
    """And the reason that git gives."""
    done = await in_thread(run, "bench", "--compare", "no-such-commit")
    assert done.returncode == 2
    assert "--compare needs a git checkout" in done.stderr


async def test_bench_when_run_small_then_all_keys(connection: Connection, run: Run, server_url: str) -> None:
    """The keys that people compare; databases of its own are gone afterwards."""
    before = set(await connection.server.all_databases())
    done = await in_thread(run, "bench", "--jobs", "200", "--json")
    result: dict[str, Any] = orjson.loads(done.stdout)
    assert result.keys() == {
        "server",
        "jobs",
        "limit_jobs_per_s",
        "drain_jobs_per_s",
        "end_to_end_jobs_per_s",
        "latency_ms",
        "drain_ratio",
        "drain_limit_jobs_per_s",
        "drain_limit_at_100_slots_jobs_per_s",
        "drain_ratio_at_100_slots",
        "latency_limit_ms",
        "drain_at_100_slots_jobs_per_s",
        "drain_at_100_slots_ratio",
        "end_to_end_ratio",
        "latency_at_half_load_ms",
        "enqueue_jobs_per_s",
        "cpu_ms_per_job",
        "server_cpu_ms_per_job",
        "bytes_per_job",
        "memory_mb",
        "scale",
    }
    assert result["latency_ms"].keys() == {"p50", "p99"}
    assert set(await connection.server.all_databases()) <= before


async def test_queues_and_doctor_when_of_many_tenants_then_each_says_whose(
    connection: Connection, db: Prefixer, run: Run, tmp_path: Path
) -> None:
    """One row for each tenant and worker type; what is wrong with one is told with its prefix."""
    await connection.database(db.database("jobs")).put({"_id": "j", "worker": "w", "message": None, "state": "queued"})
    listed = tmp_path / "tenants"
    listed.write_text(f"{db.db_prefix} {db.domain}\n")
    rows = orjson.loads((await in_thread(run, "queues", "--tenants", str(listed), "--json")).stdout)
    assert [(row["tenant"], row["worker"], row["queued"]) for row in rows] == [(db.key, "w", 1)]
    examined = await in_thread(run, "doctor", "--tenants", str(listed))
    assert f"{db.key}: takers: w:" in examined.stdout
    assert examined.returncode == 1
    refused = await in_thread(run, "queues", "--tenants", "nowhere")
    assert "all, documents or a file" in refused.stderr
