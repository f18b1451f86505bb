"""Which finished jobs are kept."""

from __future__ import annotations

from typing import Any

import pytest

from couchjobs.errors import ConfigurationError
from couchjobs.jobs.retention import Retention, read_rules

RULES = [
    {"worker": "*", "state": "done", "keep": "2w"},
    {"worker": "import", "keep": "1d", "at_most": 1000},
    {"worker": "import", "state": "errored", "keep": None},
    {"worker": "*", "at_most": 5},
]


def test_of_when_several_rules_fit_then_the_most_special_one() -> None:
    """The worker before the state; nothing for what has not ended."""
    rules = read_rules(RULES)

    def kept(worker: str, state: str) -> Any:
        rule = rules.of(worker, state)
        return None if rule is None else (rule.keep, rule.at_most)

    assert kept("mail", "done") == (14 * 86_400, None)
    assert kept("mail", "errored") == (None, 5)
    assert kept("import", "done") == (86_400, 1000)
    assert kept("import", "errored") == (None, None)
    assert kept("mail", "queued") is None
    assert kept("mail", "running") is None
    assert Retention().of("mail", "done") is None


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({}, "a list"),
        ([5], r"rules\[0\]"),
        ([{"worker": "w", "keep": "soon"}], r"rules\[0\].keep: .*duration"),
        ([{"keep": "2"}], r"rules\[0\].keep: '2' has no unit: is it '2s', '2h' or '2d'"),
        ([{"state": "running", "keep": "1d"}], r"rules\[0\].state: .*done, errored"),
        ([{"keep": "-1d"}], r"rules\[0\].keep"),
        ([{"at_most": -1}], r"rules\[0\].at_most"),
        ([{"worker": "imp*", "keep": "1d"}], r"rules\[0\].worker: .*no other patterns"),
        ([{"worker": "", "keep": "1d"}], r"rules\[0\].worker"),
        ([{"kep": "1d"}], r"rules\[0\].kep"),
        ([{"keep": "1d"}, {"at_most": 3}], "two rules"),
    ],
)
def test_read_when_a_rule_cannot_be_understood_then_said_which_and_why(rules: Any, says: str) -> None:
    """Nothing is guessed: what it would remove is gone."""
    with pytest.raises(ConfigurationError, match=says):
        read_rules(rules)
