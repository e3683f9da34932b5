"""The cycle collector rests while a model is loaded, and only then."""

from __future__ import annotations

import gc

import pytest

import behavegpt
from behavegpt import loading
from behavegpt.cli import main
from behavegpt.collector import paused_collector


@pytest.mark.parametrize("freeze", [False, True])
def test_the_collector_is_left_as_it_was(freeze):
    frozen = gc.get_freeze_count()
    with pytest.raises(KeyError), paused_collector(freeze=freeze):
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    assert (gc.get_freeze_count() > frozen) is freeze
    gc.unfreeze()

    gc.disable()
    try:
        with paused_collector():
            pass
        assert not gc.isenabled(), "it was off before"
    finally:
        gc.enable()


def test_a_model_is_loaded_without_it(monkeypatch):
    states = []
    monkeypatch.setattr(loading, "load_zero_shot", lambda name: states.append(gc.isenabled()))
    behavegpt.load("universal")
    assert states == [False]
    assert gc.isenabled()


def test_a_command_called_from_python_leaves_nothing_frozen(monkeypatch, tmp_path):
    counts, ended = [], gc.unfreeze
    monkeypatch.setattr(gc, "unfreeze", lambda: (counts.append(gc.get_freeze_count()), ended())[0])
    log = tmp_path / "log.csv"
    rows = [f"{i % 3},2024-05-0{1 + i % 7} 08:10,{'news' if i % 2 else 'mail'}" for i in range(10)]
    log.write_text("\n".join(["user_id,timestamp,app", *rows]))
    assert main(["predict", "universal", str(log)]) == 0
    assert counts[-1] > 0, "what was loaded is not looked at again"
    assert gc.get_freeze_count() == 0
