"""Figures that tests of the landscape programs do not look at."""

import pytest


@pytest.fixture
def unrendered(request, monkeypatch):
    """Save empty files in place of figures, unless a test wants them."""
    if "rendered" not in request.fixturenames:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: file.write_bytes(b""))


@pytest.fixture
def rendered():
    """Save figures as they are."""
