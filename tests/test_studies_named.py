"""Policies that say their names: what is asked is mixed, and every kind of wrong answer is told from a right one."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from pefx.config import TrainConfig
from pefx.settings import load_config
from studies.named.people import Person, people, run_of, says
from studies.named.traffic import MIX, Asked, count_verdicts, everything, judge, traffic
from studies.programs.commands import write_config

ANN = Person("ann-0", 3)
ALONE: dict[tuple[str | None, int | None], list[int]] = {("ann-0", 2): [5, 6], ("ann-0", 3): [7], (None, None): [8]}
ASKED = Asked("ann-0", 2, 2)
ROW = {"id": "0", "policy": "ann-0", "revision": 2, "text": says("ann-0", 2), "tokens": [5, 6]}


def test_a_right_answer_and_each_wrong_one() -> None:
    assert judge(ASKED, ROW, ALONE) == "right"
    assert judge(ASKED, {**ROW, "revision": 3}, ALONE) == "another revision than asked"
    assert judge(ASKED, {**ROW, "policy": None, "revision": None}, ALONE) == "another revision than asked"
    assert judge(ASKED, {**ROW, "text": says("ann-0", 3)}, ALONE) == "not the name of its revision"
    assert judge(ASKED, {**ROW, "tokens": [5, 9]}, ALONE) == "other tokens than alone"
    assert judge(replace(ASKED, error="unknown_revision"), ROW, ALONE) == "answered what there is not"
    refused = {"id": "0", "error": {"type": "unknown_policy", "message": ""}}
    assert judge(ASKED, refused, ALONE) == "error unknown_policy"
    assert judge(Asked("bob", None, error="unknown_policy"), refused, ALONE) == "refused"
    assert judge(Asked(None, None), {**ROW, "policy": None, "revision": None, "tokens": [8]}, ALONE) == "right"


def test_answers_that_are_missing_out_of_order_or_too_many_are_counted() -> None:
    lines = [json.dumps({**ROW, "id": str(i)}) for i in (0, 2, 2, 3)]
    assert count_verdicts([ASKED] * 3, lines, ALONE) == {"right": 2, "missing": 1, "too many": 1}
    assert count_verdicts([ASKED] * 3, lines[:1], ALONE) == {"right": 1, "missing": 2}


def test_traffic_holds_everything_in_its_share_and_repeats() -> None:
    everyone = people(24)
    asked = list(traffic(everyone, 4000, seed=3))
    assert asked == list(traffic(everyone, 4000, seed=3))
    assert asked != list(traffic(everyone, 4000, seed=4))
    numbers = {person.name: person.revisions for person in everyone}
    found = Counter()
    for one in asked:
        found["base"] += one.policy is None
        found["error"] += one.error is not None
        found["alias"] += isinstance(one.revision, str) and one.error is None
        if one.number is not None and one.policy is not None:
            assert 1 <= one.number <= numbers[one.policy]
    assert 0.06 < found["base"] / 4000 < 0.10
    assert 0.05 < found["error"] / 4000 < 0.09
    assert 0.12 < found["alias"] / 4000 < 0.18
    assert sum(MIX.values()) == 100
    revisions = sum(numbers.values())
    assert len(everything(everyone)) == revisions + 1 > len(everyone) + 1


def test_each_run_trains_who_has_that_revision(tmp_path: Path) -> None:
    everyone = people(12)
    for number in (1, 2, 3):
        path = write_config(tmp_path / f"train-{number}.py", run_of(tmp_path, everyone, number))
        config = load_config(str(path), TrainConfig)
        assert [user.name for user in config.users] == [p.name for p in everyone if p.revisions >= number]
        text = json.loads(Path(str(config.users[0].train)).read_text())
        assert text["completion"] == says(config.users[0].name, number)
    assert ANN.aliases == {"first": 1, "prod": 2}
