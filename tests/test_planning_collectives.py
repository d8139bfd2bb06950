"""Bytes sent, read from the text of a program: kinds, groups, and loops that turn."""

import pytest

from pefx.planning.collectives import traffic

TEXT = """HloModule m, entry_computation_layout={()->f32[]}

%body.1 (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %p = (s32[], bf16[8,4]) parameter(0)
  %g = bf16[8,4]{1,0} all-gather(%x), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %t = (s32[], bf16[8,4]) tuple(%i, %g)
}

%cond.2 (p: (s32[], bf16[8,4])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main.3 (a: f32[16]) -> f32[] {
  %r = f32[16]{0} all-reduce(%a), replica_groups=[2,4]<=[8], to_apply=%sum
  %w = (s32[], bf16[8,4]) while(%init), condition=%cond.2, body=%body.1, backend_config={"known_trip_count":{"n":"5"}}
  %s = f32[4]{0} reduce-scatter(%a), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%sum
  ROOT %o = f32[] constant(0)
}
"""


def test_what_a_loop_sends_counts_as_often_as_it_turns():
    found = traffic(TEXT)
    assert found["all-gather"] == 5 * 64 * 3 / 4
    assert found["all-reduce"] == 2 * 64 * 3 / 4
    assert found["reduce-scatter"] == 16 * 3
    assert set(found) == {"all-gather", "all-reduce", "reduce-scatter"}


@pytest.mark.parametrize("text", ["", "HloModule nothing\n\nENTRY %main (a: f32[1]) -> f32[1] {\n}\n"])
def test_a_program_of_one_device_sends_nothing(text):
    assert traffic(text) == {}
