"""pefx.serving.journal: what is answered stays answered, wherever the run is cut."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pefx.errors import PefxError
from pefx.serving import journal as journal_module
from pefx.serving.journal import Journal, Resolved
from pefx.serving.summary import Cost

RUN = {"requests": {"sha256": "r"}, "config": {"seed": 0, "targets": ("q_proj",)}, "base": "b"}


def row(line: int) -> dict[str, Any]:
    return {"id": f"{line}", "text": f'é,]"\n{line}'}


def started(out: Path, run: dict[str, Any] = RUN) -> Journal:
    journal = Journal(out, run)
    journal.start()
    return journal


def filled(out: Path) -> bytes:
    """A log of two names and three answers, unfinished. Returns its bytes."""
    with started(out) as journal:
        journal.resolve("p", None, Resolved(4, "sha256:4"))
        journal.answer(3, row(3))
        journal.resolve("q", 2, Resolved(error=PefxError("no such", "unknown_policy")))
        journal.answer(5, {"id": None, "error": {"type": "e"}})
        journal.answer(1, row(1))
        journal.flush()
    return Path(f"{out}.partial").read_bytes()


def test_out_appears_whole_and_in_order(tmp_path: Path):
    out = tmp_path / "out.jsonl"
    with started(out) as journal:
        for line in (3, 1, 4):
            journal.answer(line, row(line))
            journal.flush()
            assert not out.exists()
        journal.finish()
    assert [json.loads(line) for line in out.read_bytes().splitlines()] == [row(1), row(3), row(4)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.run.json"]
    with started(out) as again:
        assert again.complete


def test_every_cut_continues_to_the_same_bytes(tmp_path: Path):
    whole = filled(tmp_path / "whole")
    with started(tmp_path / "whole") as journal:
        journal.answer(2, row(2))
        journal.finish()
    wanted = (tmp_path / "whole").read_bytes()
    out = tmp_path / "out"
    for cut in range(len(whole) + 1):
        started(out).close()
        Path(f"{out}.partial").write_bytes(whole[:cut])
        with started(out) as journal:
            kept = whole[:cut].count(b'["answer"')
            assert journal.answered in (kept, kept - 1)
            if ("p", None) in journal.resolved:
                assert journal.resolved["p", None] == Resolved(4, "sha256:4")
            for line in (5, 3, 2, 1):
                if not journal.has(line):
                    journal.answer(line, {"id": None, "error": {"type": "e"}} if line == 5 else row(line))
            assert (journal.answered, journal.totals.errors) == (4, {"e": 1})
            journal.finish()
        assert out.read_bytes() == wanted
        out.unlink()


def test_garbage_in_the_tail_is_cut_off(tmp_path: Path):
    out = tmp_path / "out"
    whole = filled(out)
    Path(f"{out}.partial").write_bytes(whole + b"\0" * 100 + b"]\n" + b'["answer",9,{}]\n')
    with started(out) as journal:
        assert journal.answered == 3
        assert not journal.has(9)
    assert Path(f"{out}.partial").read_bytes() == whole


def test_names_stand_for_the_same_after_a_restart(tmp_path: Path):
    filled(tmp_path / "out")
    with started(tmp_path / "out") as journal:
        assert journal.resolved["p", None] == Resolved(4, "sha256:4")
        refused = journal.resolved["q", 2].error
        assert refused is not None
        assert (str(refused), refused.kind) == ("no such", "unknown_policy")
        journal.finish()
    assert json.loads((tmp_path / "out.run.json").read_text())["revisions"] == [["p", None, 4, "sha256:4"]]


def test_an_answer_twice_is_a_bug(tmp_path: Path):
    with started(tmp_path / "out") as journal:
        journal.answer(1, row(1))
        with pytest.raises(RuntimeError, match="answered twice"):
            journal.answer(1, row(1))


def snapshot(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"base": "other"}, "base was 'b', now 'other'"),
        ({"config": {"seed": 1, "targets": ("q_proj",)}}, "config.seed was 0, now 1"),
        ({"requests": {"sha256": "s"}}, "requests.sha256"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_output_of_another_run_is_refused_untouched(tmp_path: Path, change: dict, part: str, finished: bool):
    out = tmp_path / "out"
    filled(out)
    if finished:
        with started(out) as journal:
            journal.finish()
    before = snapshot(tmp_path)
    with pytest.raises(PefxError, match="another run") as caught:
        started(out, {**RUN, **change})
    assert part in str(caught.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["out", "out.partial"])
def test_file_that_is_no_runs_is_refused_untouched(tmp_path: Path, name: str):
    (tmp_path / name).write_text("mine")
    with pytest.raises(PefxError, match="not from this run"):
        started(tmp_path / "out")
    assert snapshot(tmp_path) == {name: b"mine"}


def test_broken_header_and_places_that_cannot_be(tmp_path: Path):
    (tmp_path / "out.run.json").write_text("{")
    with pytest.raises(PefxError, match="record of a run"):
        started(tmp_path / "out")
    with pytest.raises(PefxError, match="does not exist"):
        started(tmp_path / "nowhere" / "out")
    with pytest.raises(PefxError, match="is a directory"):
        started(tmp_path)


def test_second_process_on_the_same_output_is_refused(tmp_path: Path):
    with started(tmp_path / "out"), pytest.raises(PefxError, match="another process"):
        started(tmp_path / "out")


def test_cut_between_the_answers_and_the_log(tmp_path: Path):
    """OUT is there, the log not yet gone: the run is complete."""
    out = tmp_path / "out"
    log = filled(out)
    with started(out) as journal:
        journal.finish()
    Path(f"{out}.partial").write_bytes(log)
    with started(out) as journal:
        assert journal.complete
    assert not Path(f"{out}.partial").exists()


def test_full_disk_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    filled(out)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with started(out) as journal:
        monkeypatch.setattr(journal_module.os, "fdatasync", full)
        journal.answer(2, row(2))
        with pytest.raises(PefxError, match="No space left on device; what is answered is kept"):
            journal.flush()
    with started(out) as journal:
        assert journal.answered >= 3


def test_memory_does_not_hold_the_log(tmp_path: Path):
    with started(tmp_path / "out") as journal:
        journal.answer(1, {"id": "1", "text": "x" * journal_module.PENDING_BYTES})
        assert os.path.getsize(tmp_path / "out.partial") > journal_module.PENDING_BYTES


def test_a_summary_comes_before_the_answers_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    filled(out)

    def cut(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with started(out) as journal:
        monkeypatch.setattr(journal_module, "write_answers", cut)
        with pytest.raises(KeyboardInterrupt):
            journal.finish({"requests": 3})
    monkeypatch.undo()
    assert not out.exists()
    with started(out) as journal:
        journal.finish({"requests": 4})
    assert json.loads((tmp_path / "out.summary.json").read_text()) == {"requests": 4}


def test_totals_are_of_all_starts(tmp_path: Path):
    out = tmp_path / "out"
    for start in range(3):
        with started(out) as journal:
            journal.answer(
                start + 1,
                row(start + 1),
                Cost(at=2.0, prompt_tokens=5, cached_tokens=1, tokens=3, waited=0.5, seconds=1.0),
            )
            journal.answer(start + 11, {"id": None, "error": {"type": "prompt_too_long", "message": ""}})
            journal.flush()
    totals = journal.totals
    assert (totals.starts, totals.answers, totals.prompt_tokens, totals.tokens, totals.seconds) == (3, 6, 15, 9, 6.0)
    assert totals.errors == {"prompt_too_long": 3}


def test_one_that_does_not_write_follows_one_that_does(tmp_path: Path):
    log, out = filled(tmp_path / "out"), tmp_path / "out"
    Path(f"{out}.partial").write_bytes(log + b'["answer",7,{"id":"torn')
    before = sorted((path, path.read_bytes()) for path in tmp_path.iterdir())
    with Journal(out, RUN, write=False) as follower:
        follower.start()
        assert (follower.answered, follower.totals.errors, follower.has(7)) == (3, {"e": 1}, False)
        assert follower.resolved["p", None].number == 4
        follower.answer(7, row(7))
        follower.resolve("r", None, Resolved(1, "sha256:1"))
        follower.flush()
        follower.finish()
        assert follower.has(7)
    assert sorted((path, path.read_bytes()) for path in tmp_path.iterdir()) == before
