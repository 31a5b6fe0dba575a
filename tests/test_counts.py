"""The counts that CI compares with a baseline: what is counted, and what counts as a difference."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks are no part of the installation

from benchmarks import counts, step_cases, step_times
from benchmarks.collectives import collectives
from benchmarks.step_linear import line


def test_a_dearer_step_is_seen():
    small = {"batch": 4, "size": 8, **counts.TINY}
    one, two = (counts.operations(step_cases.Case("sat", steps=steps, **small)) for steps in (1, 2))
    rows = counts.differences({"sat": one}, {"sat": two}, every=False)
    assert [row[1] for row in rows] == ["FLOPs", "FLOPs of the attack"]
    # One attack step more costs all of it in the attack.
    assert two["FLOPs"] - one["FLOPs"] == one["FLOPs of the attack"] > 0
    assert two["FLOPs of the attack"] == 2 * one["FLOPs of the attack"]
    assert not counts.differences({"sat": one}, {"sat": dict(one)})


def test_lost_and_new_counts_are_differences_but_not_what_another_jax_may_change():
    before, now = {"traces": {"a": 1, "b": 1}}, {"traces": {"b": 2, "c": 1}}
    rows = counts.differences(before, now, every=False)
    assert rows == [("traces", "a", 1, None), ("traces", "b", 1, 2), ("traces", "c", None, 1)]
    before = {"sat": {"bytes read and written": 1, "FLOPs": 1000}}
    now = {"sat": {"bytes read and written": 2, "FLOPs": 1020}}
    assert len(counts.differences(before, now)) == 2
    assert not counts.differences(before, now, every=False)
    rows = counts.differences(before, {"sat": {"FLOPs": 1021}}, every=False)
    assert rows == [("sat", "FLOPs", 1000, 1021)]


def test_the_baseline_traces_every_program_once_and_holds_all_cases():
    found = json.loads(counts.BASELINE.read_text())["counts"]
    assert set(found["traces"].values()) == {1}
    assert {"student train_step", "robust teacher train_step"} <= set(found["traces"])
    assert set(found) == {*counts.cases(), "ciard, 2 devices", "traces"}
    # AdaAD asks its teacher in every attack step, SAAD in none; gradient matching changes no attack.
    attack = {
        name: counted["FLOPs of the attack"]
        for name, counted in found.items()
        if name in counts.cases()
    }
    assert attack["saad"] < 1.02 * attack["rslad"] < 0.5 * attack["adaad"]
    assert attack["adaad, igdm"] == attack["adaad"]
    # Memory does not grow with attack steps.
    memory = "temporary, compiled, bytes"
    assert found["ciard"][memory] == found["ciard, 10 attack steps"][memory]


def test_collectives_of_a_program_text():
    text = """%body (p: f32[4]) -> f32[4] {
      %r = f32[4]{0} all-reduce(%x), to_apply=%add
    }
    ENTRY %main (p: f32[4]) -> f32[4] {
      %g = (f32[8,8]{1,0}, bf16[3]{0}) all-reduce-start(%a, %b), to_apply=%add
      %d = (f32[8,8]{1,0}, bf16[3]{0}) all-reduce-done(%g)
    }"""
    found = {"count": 2, "small": 1, "bytes": 8 * 8 * 4 + 3 * 2 + 16}
    assert collectives(text) == {"all-reduce": found}


def test_convolutions_are_found_in_loops_and_library_calls():
    text = """%body (p: f32[8]) -> f32[8] {
      %c.1 = f32[8,16,16,4]{3,2,1,0} convolution(%a, %b), window={size=3x3}
    }
    ENTRY %main {
      ROOT %c.2 = f32[8,4]{1,0} convolution(%a, %b), metadata={op_name="convolution(x)"}
      %d = (f32[8], u8[0]) custom-call(%a), custom_call_target="__cudnn$convForward"
    }"""
    assert counts.convolutions(text) == 3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"method": "ard"}, "choose among natural"),
        ({"student": "resnet19"}, "unknown model"),
        ({"student": "resnet18/4-8"}, "only small_resnet"),
        ({"student": "small_resnet/a"}, "give widths as"),
        ({"batch": 1}, "at least 2"),
        ({"precision": "float16"}, "float32 or bf16"),
    ],
)
def test_bad_cases_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        step_cases.Case(**{"method": "ciard"} | change)


def test_contenders_take_turns_and_ratios_are_of_rounds():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    found = step_times.in_turns(calls, 2, warm=1)
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert turns == list("ababab") and all(len(v) == 2 for v in found.values())
    assert step_times.ratio([1.0, 2.0, 4.0], [3.0, 4.0, 4.0]) == (2.0, 1.0, 3.0)


def test_least_squares_line():
    assert line([1, 2, 5], [3.0, 5.0, 11.0]) == pytest.approx((1.0, 2.0))
