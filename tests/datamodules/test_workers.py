"""The processes that load images."""

import multiprocessing

from datamodules import datamodule
from datamodules.datamodule import WorkerLoader


def test_freed_memory_is_released_before_workers_are_forked(monkeypatch):
    """Each would keep a copy of what the first training steps have freed, as soon as the next step writes there."""
    before = len(multiprocessing.active_children())
    forked = []
    monkeypatch.setattr(
        datamodule, "release_freed_memory", lambda: forked.append(len(multiprocessing.active_children()) - before)
    )
    list(WorkerLoader([1, 2, 3], num_workers=0))
    assert forked == []
    loader = WorkerLoader([1, 2, 3], num_workers=1, persistent_workers=True)
    assert [list(map(int, loader)) for _ in range(2)] == [[1, 2, 3]] * 2
    loader.close()
    assert forked == [0]
