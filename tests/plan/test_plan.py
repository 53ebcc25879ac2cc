"""BudgetPlan: invariants, files, printing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squeezeattention.errors import PlanError
from squeezeattention.plan import BudgetPlan

PLAN = BudgetPlan(
    budgets=(26, 7, 7),
    groups=(1, 2, 2),
    signal_values=(0.3, 0.98, 0.99),
    base_budget=20,
    caps=(30, 7, None),
    floor=5,
    allocator="squeeze",
    signal="cosine",
    policy="streaming",
    p=0.35,
    prompt_tokens=30,
    model="llama-3x2x64",
    exact_total=40,
    warnings=("outliers took the groups [G1]",),
)
PLAIN = BudgetPlan(budgets=(3, 4), groups=(1, 1), base_budget=4, caps=(3, 4), allocator="uniform")


def test_properties() -> None:
    assert (PLAN.total, PLAN.n_layers, PLAN.group_sizes) == (40, 3, {1: 1, 2: 2})
    assert PLAN.check() is PLAN
    assert PLAIN.check() is PLAIN
    assert isinstance(hash(PLAN), int)


def test_lists_become_tuples() -> None:
    lists: dict[str, Any] = {"budgets": [3, 4], "groups": [1, 1], "caps": [3, 4]}
    assert BudgetPlan(**lists, base_budget=4, allocator="uniform") == PLAIN


@pytest.mark.parametrize("field", ["budgets", "groups", "caps", "signal_values", "warnings"])
@pytest.mark.parametrize("value", [7, "12"])
def test_sequences_only(field: str, value: Any) -> None:
    with pytest.raises(PlanError, match=field):
        replace(PLAN, **{field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": ()}, "no budgets"),
        ({"groups": (1, 2)}, "3 budgets, 2 groups"),
        ({"caps": (30,)}, "1 caps"),
        ({"signal_values": (0.1,)}, "1 signal values"),
        ({"budgets": (26, 7, 0)}, "budget of layer 2 is 0"),
        ({"budgets": (26, 7, 7.0)}, "budget of layer 2 is 7.0"),
        ({"budgets": (26, 7, True)}, "budget of layer 2 is True"),
        ({"groups": (1, 2, 0)}, "group of layer 2 is 0"),
        ({"caps": (30, 7, 0)}, "cap of layer 2 is 0"),
        ({"base_budget": 0}, "base_budget is 0"),
        ({"floor": 0}, "floor is 0"),
        ({"prompt_tokens": 0}, "prompt_tokens is 0"),
        ({"signal_values": (0.3, 0.9, float("nan"))}, "the signal of layer 2 is nan"),
        ({"signal_values": (0.3, 0.9, "x")}, "the signal of layer 2 is 'x'"),
        ({"p": 0.0}, "p is 0.0"),
        ({"p": float("nan")}, "p is nan"),
        ({"p": True}, "p is True"),
        ({"allocator": None}, "allocator is None"),
        ({"warnings": (1,)}, "warning is 1"),
        ({"floor": 8}, "layer 2 has budget 7, floor 8, cap unlimited"),
        ({"caps": (25, 7, None)}, "layer 0 has budget 26, floor 5, cap 25"),
        ({"exact_total": 41}, r"26 \+ 7 \+ 7 = 40, but exact_total = 41"),
        ({"exact_total": None}, r"= 40, but .* = min\(3 \* 20, 30 \+ 7 \+ unlimited\) = 60"),
    ],
)
def test_check_names_the_broken_invariant(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        replace(PLAN, **change).check()


def test_the_sum_is_bounded_by_the_caps() -> None:
    with pytest.raises(PlanError, match=r"min\(2 \* 3, 3 \+ 4\) = 6"):
        replace(PLAIN, base_budget=3).check()


def test_check_model() -> None:
    assert PLAN.check_model("llama-3x2x64", 3) is PLAN
    assert PLAN.check_model(None, 3) is PLAN
    assert PLAIN.check_model("anything", 2) is PLAIN
    with pytest.raises(PlanError, match="3 layers, but the model has 4"):
        PLAN.check_model("llama-3x2x64", 4)
    with pytest.raises(PlanError, match="gpt-3x2x64"):
        PLAN.check_model("gpt-3x2x64", 3)


def test_from_budgets() -> None:
    plan = BudgetPlan.from_budgets([5, 6, 9])
    assert (plan.total, plan.exact_total, plan.base_budget) == (20, 20, 7)
    assert plan.groups == (1, 1, 1)
    assert plan.caps == (None, None, None)


@pytest.mark.parametrize("budgets", [[], [0], [1.5], [3, True], ["a"]])
def test_from_budgets_refuses(budgets: list[Any]) -> None:
    with pytest.raises(PlanError):
        BudgetPlan.from_budgets(budgets)


@pytest.mark.parametrize("plan", [PLAN, PLAIN], ids=["full", "plain"])
def test_round_trip(plan: BudgetPlan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("an older file")
    plan.save(path)
    assert BudgetPlan.load(path) == plan == BudgetPlan.load(str(path))
    assert BudgetPlan.from_dict(plan.to_dict()) == plan
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("name", ["missing/plan.json", ".", "x" * 300, "nul\0"])
def test_save_reports_a_path_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot write"):
        PLAN.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PLAIN.save(tmp_path / "plan.json")

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(PlanError, match="no space left"):
        PLAN.save(tmp_path / "plan.json")
    assert BudgetPlan.load(tmp_path / "plan.json") == PLAIN
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_save_refuses_a_broken_plan(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="invariant"):
        replace(PLAN, exact_total=1).save(tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == []


def changed(**fields: Any) -> str:
    return json.dumps({**PLAN.to_dict(), **fields})


def without(name: str) -> str:
    return json.dumps({key: value for key, value in PLAN.to_dict().items() if key != name})


CORRUPT = {
    "empty": "",
    "text": "hello",
    "cut off": json.dumps(PLAN.to_dict())[:-20],
    "not UTF-8": b"\xff\xfe{}",
    "nested too deep": "[" * 100_000,
    "a list": "[1, 2]",
    "null": "null",
    "another format": changed(format="other"),
    "no format": without("format"),
    "newer version": changed(version=4),
    "another direction": changed(signal_direction="high values mark the layers that matter more"),
    "the older name": changed(importance=[0.3, 0.98, 0.99]),
    "bool version": changed(version=True),
    "no version": without("version"),
    "missing budgets": without("budgets"),
    "missing p": without("p"),
    "unknown field": changed(color="red"),
    "bool budget": changed(budgets=[26, 7, True]),
    "float budget": changed(budgets=[26, 7, 7.0]),
    "text budget": changed(budgets=[26, 7, "7"]),
    "budgets not a list": changed(budgets=26),
    "budgets null": changed(budgets=None),
    "float group": changed(groups=[1, 2, 2.5]),
    "float base": changed(base_budget=20.0),
    "bool cap": changed(caps=[True, 7, None]),
    "bool p": changed(p=True),
    "p too large": changed(p=1.5),
    "NaN p": changed(p=float("nan")),
    "NaN signal": changed(signal_values=[0.1, 0.2, float("nan")]),
    "infinite signal": json.dumps(PLAN.to_dict()).replace("0.99", "1e999"),
    "huge signal": changed(signal_values=[0.1, 0.2, 10**400]),
    "huge budget": json.dumps(PLAN.to_dict()).replace("[26", "[" + "9" * 5000),
    "text signal": changed(signal_values=[0.1, 0.2, "0.3"]),
    "number as name": changed(allocator=3),
    "number as policy": changed(policy=3),
    "warning not text": changed(warnings=[1]),
    "wrong sum": changed(budgets=[26, 7, 8]),
    "wrong length": changed(groups=[1, 2]),
    "heads of other layers": changed(head_budgets=[[26], [7]]),
    "no heads": changed(head_budgets=[[26], [7], []]),
    "heads of another mean": changed(head_budgets=[[26, 26], [7, 7], [7, 9]]),
    "a head above the cap": changed(head_budgets=[[26, 26], [7, 7], [1, 13]], caps=[None, None, 12]),
    "half a head": changed(head_budgets=[[26], [7], [7.0]]),
    "heads not nested": changed(head_budgets=[26, 7, 7]),
}


@pytest.mark.parametrize("content", CORRUPT.values(), ids=CORRUPT.keys())
def test_load_reports_a_corrupt_file_with_its_path(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PlanError, match=r"bad\.json: .{10,}"):
        BudgetPlan.load(path)


@pytest.mark.parametrize("name", ["absent.json", ".", "x" * 300, "nul\0"])
def test_load_reports_a_path_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot read"):
        BudgetPlan.load(tmp_path / name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(sorted(PLAN.to_dict())), JSON)
def test_any_damage_is_a_plan_error(field: str, value: Any) -> None:
    try:
        plan = BudgetPlan.from_dict({**PLAN.to_dict(), field: value})
    except PlanError:
        return
    assert plan.check()
    assert str(plan)


def test_text() -> None:
    assert str(PLAN).splitlines() == [
        "squeeze plan | policy streaming | signal cosine | p 0.35 | base budget 20 | prompt 30 | "
        "total 40 tokens in 3 layers",
        "layer  cosine (low: matters more)  group  budget",
        "    0                      0.3000     G1      26  ########################",
        "    1                      0.9800     G2       7  ######",
        "    2                      0.9900     G2       7  ######",
        "groups: G1 1 layer, G2 2 layers",
        "warning: outliers took the groups [G1]",
    ]
    assert str(PLAIN).splitlines()[1:3] == [
        "layer  signal  budget",  # one group says nothing
        "    0       -       3  ##################",
    ]


@pytest.mark.parametrize(
    ("signal", "title"),
    [
        ("streaming_mass", "streaming_mass (low: matters more)"),
        ("span", "1 - span (low: matters more)"),  # else: such layers would seem to matter less
        ("somebody_else's", "somebody_else's (low: matters more)"),
        (None, "signal (low: matters more)"),
    ],
)
def test_tables_say_what_the_values_of_a_signal_are(signal: str | None, title: str) -> None:
    assert str(replace(PLAN, signal=signal)).splitlines()[1] == f"layer  {title}  group  budget"


def test_json_says_how_to_read_the_signal() -> None:
    data = PLAN.to_dict()
    assert data["signal_values"] == [0.3, 0.98, 0.99]
    assert "low values" in data["signal_direction"]
    assert "importance" not in data


def test_plans_of_the_first_format_are_read(tmp_path: Path) -> None:
    """It called the signal's values importance and did not say which way they point."""
    old = {("importance" if name == "signal_values" else name): value for name, value in PLAN.to_dict().items()}
    del old["signal_direction"], old["head_budgets"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**old, "version": 1}))
    assert BudgetPlan.load(path) == PLAN
    path.write_text(json.dumps({**old, "version": 2}))
    with pytest.raises(PlanError, match="signal_values"):
        BudgetPlan.load(path)


def test_plans_without_heads_are_read(tmp_path: Path) -> None:
    """Version 2 knew layers only."""
    old = {name: value for name, value in PLAN.to_dict().items() if name != "head_budgets"}
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**old, "version": 2}))
    assert BudgetPlan.load(path) == PLAN
    path.write_text(json.dumps({**old, "version": 3}))
    with pytest.raises(PlanError, match="head_budgets"):
        BudgetPlan.load(path)


def test_plans_of_heads(tmp_path: Path) -> None:
    plan = BudgetPlan.from_budgets([[40, 5, 9], [12, 12, 12], [8, 9, 9]])
    assert plan.budgets == (18, 12, 9)  # means, rounded up
    assert plan.heads(2, 3) == (8, 9, 9)
    plan.save(tmp_path / "plan.json")
    assert BudgetPlan.load(tmp_path / "plan.json") == plan
    lines = str(plan).splitlines()
    assert lines[1].endswith("KV heads")
    assert lines[2].endswith("40  5  9")
    with pytest.raises(PlanError, match=r"3 KV heads in layer 0.*2"):
        plan.heads(0, 2)
    assert BudgetPlan.from_budgets([7, 8]).heads(1, 3) == (8, 8, 8)
    many = BudgetPlan.from_budgets([list(range(1, 17))])
    assert str(many).splitlines()[2].endswith("1 to 16")
    console = pytest.importorskip("rich.console").Console(width=120)
    with console.capture() as capture:
        console.print(plan)
    assert "40  5  9" in capture.get()


def test_rich() -> None:
    console = pytest.importorskip("rich.console").Console(width=120)
    with console.capture() as capture:
        console.print(PLAN)
    text = capture.get()
    for part in ("squeeze plan", "0.9800", "26", "G1 1 layer, G2 2 layers", "groups [G1]"):
        assert part in text
