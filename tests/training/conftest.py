"""What all tests of trainings share."""

import pytest

from training import run_record


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """To draw the curves takes half of the time of so small a run; runs that several tests share have them."""
    monkeypatch.setattr(run_record, "draw_curves", lambda *_, **__: None)
