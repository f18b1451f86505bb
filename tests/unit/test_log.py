"""What a line of the log must not hold."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import orjson
import pytest

from couchjobs.errors import ConfigurationError
from couchjobs.log import configure_logging, get_logger, plain, redact


@pytest.mark.parametrize("password", ["secret", "pa@ssword", "a:b@c@d", "/Secret1", "p/w@x", "%40x"])
def test_redact_when_a_url_holds_a_password_then_nothing_of_it_is_shown(password: str) -> None:
    """Whatever characters it is made of."""
    text = redact(f"cannot reach http://admin:{password}@db.example:5984/jobs now")
    assert text == "cannot reach http://***@db.example:5984/jobs now"


def test_log_when_there_is_no_such_level_then_told() -> None:
    """Each command may be given one."""
    with pytest.raises(ConfigurationError, match="debug, info, warning or error"):
        configure_logging("foo")


def test_plain_when_text_steers_a_terminal_then_it_is_seen() -> None:
    """Escapes, changes of direction, carriage returns; lines and tabs stay."""
    assert plain("a\x1b[31mb\x9bc\u202ed\re\tf\n") == "a\\u001b[31mb\\u009bc\\u202ed\\u000de\tf\n"


def test_log_when_nobody_watches_a_terminal_then_each_line_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of other libraries, too, whatever they log."""
    written = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", written)
        handlers = [*logging.getLogger().handlers]
        try:
            logging.getLogger().handlers.clear()
            configure_logging("info")
            other = logging.getLogger("other.library")
            other.warning("%d of %s at http://ann:s3cret@db/", "12")
            other.error('cookie "AuthSession=abc" sent, Authorization: Bearer\tcj_secretsecretsecret')
            other.error("x" * 30_000 + " http://u:p4ss@h/")
            try:
                int("why")
            except ValueError:
                other.exception("failed")
            get_logger("own").info("said", by="couchjobs")
        finally:
            logging.getLogger().handlers[:] = handlers
    configure_logging("debug")
    lines = [orjson.loads(line) for line in written.getvalue().splitlines()]
    assert [(line["name"], line["level"]) for line in lines] == [
        ("other.library", "warning"),
        *[("other.library", "error")] * 3,
        ("own", "info"),
    ]
    assert not any(secret in written.getvalue() for secret in ("s3cret", "abc", "secretsecret", "p4ss"))
    assert "ValueError: invalid literal" in lines[3]["exception"]


_PROGRAM = """
import logging, sys
from couchjobs.log import get_logger
if "configured" in sys.argv:
    logging.basicConfig(level=logging.INFO, format="%(name)s|%(levelname)s|%(message)s")
logger = get_logger("couchjobs.somewhere").bind(job="50%d")
logger.info("seen where wanted")
logger.warning("said %s", url="http://ann:s3cret@db/", name="Ann")
logger.warning("took %d s", "x")
try:
    int("why")
except ValueError:
    logger.exception("failed")
"""


def test_log_when_a_program_configures_nothing_then_warnings_are_on_stderr_alone() -> None:
    """By the logging module, as those of any library: stdout is the program's."""
    ran = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert ran.stdout == ""
    lines = [
        "said %s job=50%d name=Ann url=http://***@db/",
        "took %d s ('x',) job=50%d",
        "failed job=50%d",
        "Traceback",
    ]
    assert ran.stderr.startswith("\n".join(lines))
    assert "seen where wanted" not in ran.stderr


def test_log_when_a_program_configures_the_logging_module_then_that_writes_the_lines() -> None:
    """With the module's name and the level."""
    ran = subprocess.run([sys.executable, "-c", _PROGRAM, "configured"], capture_output=True, text=True, check=True)
    lines = ran.stderr.splitlines()
    assert lines[0] == "couchjobs.somewhere|INFO|seen where wanted job=50%d"
    assert lines[1].startswith("couchjobs.somewhere|WARNING|said %s")
    assert lines[2] == "couchjobs.somewhere|WARNING|took %d s ('x',) job=50%d"
    assert lines[3].startswith("couchjobs.somewhere|ERROR|failed")


def test_log_when_arguments_do_not_fit_the_text_then_both_are_written() -> None:
    """A line of the log decides about nothing, and least of all about a job."""
    configured = _PROGRAM.replace(
        "logger = get", "from couchjobs.log import configure_logging\nconfigure_logging()\nlogger = get"
    )
    ran = subprocess.run([sys.executable, "-c", configured], capture_output=True, text=True, check=True)
    assert [orjson.loads(line)["event"] for line in ran.stderr.splitlines()] == [
        "seen where wanted",
        "said %s",
        "took %d s ('x',)",
        "failed",
    ]
