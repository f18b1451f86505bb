"""Settings from the environment."""

from __future__ import annotations

import os

import pytest

from couchjobs.errors import ConfigurationError
from couchjobs.settings import load_settings


def test_settings_when_misspelt_or_senseless_then_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is dropped in silence."""
    monkeypatch.setenv("COUCHJOBS_SHUTDOWN_TIMEOUT", "1m30s")
    assert load_settings().shutdown_timeout == 90
    assert load_settings(shutdown_timeout=5).shutdown_timeout == 5
    monkeypatch.setenv("COUCHJOBS_SHUTDOWN_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match="shutdown_timeout"):
        load_settings()
    monkeypatch.setenv("COUCHJOBS_SHUTDOWN_TIMEOUT", "5")
    monkeypatch.setenv("COUCHJOBS_BEAT_INTERVALL", "5")
    with pytest.raises(ConfigurationError, match="did you mean COUCHJOBS_BEAT_INTERVAL"):
        load_settings()
    monkeypatch.delenv("COUCHJOBS_BEAT_INTERVALL")
    with pytest.raises(ConfigurationError, match="colour"):
        load_settings(colour="red")
    assert "COUCHJOBS_URL" not in os.environ


def test_settings_when_a_daemon_would_be_dead_between_two_beats_then_refused() -> None:
    """It would stop its jobs again and again, and the others take them over, for ever."""
    for wrong in ({"dead_after": 5}, {"beat_interval": 21}, {"dead_after": 1, "beat_interval": 0.7}):
        with pytest.raises(ConfigurationError, match="half as much again"):
            load_settings(**wrong)
    assert load_settings(dead_after=5, beat_interval=1).dead_after == 5
