"""What a line of the log must not hold."""

from __future__ import annotations

import pytest

from couchjobs.log import plain, redact


@pytest.mark.parametrize("password", ["secret", "pa@ssword", "a:b@c@d", "/Secret1", "p/w@x", "%40x"])
def test_redact_when_a_url_holds_a_password_then_nothing_of_it_is_shown(password: str) -> None:
    """Whatever characters it is made of."""
    text = redact(f"cannot reach http://admin:{password}@db.example:5984/jobs now")
    assert text == "cannot reach http://***@db.example:5984/jobs now"


def test_plain_when_text_steers_a_terminal_then_it_is_seen() -> None:
    """Escapes, changes of direction, carriage returns; lines and tabs stay."""
    assert plain("a\x1b[31mb\x9bc\u202ed\re\tf\n") == "a\\u001b[31mb\\u009bc\\u202ed\\u000de\tf\n"
