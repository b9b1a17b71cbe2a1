"""Progress bars in a log file: a line every interval, none for short work."""

import time

from utils import progress


def test_a_log_file_gets_whole_lines_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_FILE_INTERVAL", 0.2)
    for _ in progress.progress_bar(range(40), description="reading", unit=" photos"):
        time.sleep(0.01)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) < 40
    assert all(line.startswith("reading:") and "\r" not in line for line in lines)


def test_what_is_quick_leaves_no_line(capsys):
    assert list(progress.progress_bar(range(8), description="reading", unit=" photos")) == list(range(8))
    with progress.progress_bar(description="extracting", unit="B", total=10, unit_scale=True) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""
