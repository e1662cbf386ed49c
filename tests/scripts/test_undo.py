"""What was registered is undone once, last first, whatever a step meets."""

from __future__ import annotations

import pytest

from scripts.faults.undo import Undo


def test_last_in_first_out_and_once():
    done: list[str] = []
    undo = Undo()
    for name in ("mount", "host", "node"):
        undo.register(name, lambda name=name: done.append(name))
    undo.now("host")
    undo.now("host")
    assert undo.all() == []
    assert done == ["host", "node", "mount"]
    assert undo.all() == []


def test_a_step_that_fails_is_told_and_keeps_no_other_from_running():
    done: list[str] = []

    def fail() -> None:
        raise OSError("busy")

    undo = Undo()
    undo.register("image", lambda: done.append("image"))
    undo.register("mount", fail)
    assert undo.all() == ["mount: OSError: busy"]
    assert done == ["image"]


def test_a_name_is_registered_once():
    undo = Undo()
    undo.register("mount", lambda: None)
    with pytest.raises(AssertionError):
        undo.register("mount", lambda: None)
