"""What commands share: a line of progress on the error stream, and the tale of a bulk command."""

import pytest

from pefx.commands.shown import progress, tell


def test_progress_is_no_output(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pefx.progress.LINE_SECONDS", 0.0)
    with progress("audit", "revisions", 8) as step:
        step(3)
        step(5)
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["audit  3/8 revisions", "audit  8/8 revisions"]
    assert lines[-1].endswith("0:00 left")


def test_a_long_tale_is_cut_and_refusals_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert tell([f"u{i}@1" for i in range(25)], [], "written") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "... 25 in all"
    assert tell(["ann@1"], ["bob: why\n  not"], "written") == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("written ann@1\n", "error: refused: bob: why not\n")
