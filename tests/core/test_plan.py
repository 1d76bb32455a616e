"""Plans: factors, budgets, counts, rounding, JSON, and what is said when one cannot be."""

import warnings
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adjoined import AdjoinedError, Plan
from adjoined.core.plan import SCHEMA, Width
from zoo import specimen


@pytest.fixture(scope="module")
def axes():
    return specimen("vit").axes  # 2 blocks, 4 heads of 12, hidden 192, stream 48


def kept(plan: Plan, role: str) -> set[int]:
    return {w.kept for w in plan.widths if w.role == role}


def test_a_factor_divides_what_is_in_scope(axes):
    inner, full = axes.plan(alpha=4), axes.plan(alpha=4, scope="full")
    assert (kept(inner, "heads"), kept(inner, "head_dim")) == ({1}, {12})
    assert kept(inner, "stream") == {48}
    assert kept(full, "stream") == {12}
    assert {w.kept for w in full.widths if w.name.endswith("mlp.hidden")} == {48}


def test_factors_by_role_and_by_block(axes):
    by_role = axes.plan(heads=4, hidden=2, stream=1)
    assert (kept(by_role, "heads"), kept(by_role, "stream")) == ({1}, {48})
    assert {w.kept for w in by_role.widths if w.name.endswith("mlp.hidden")} == {96}
    by_block = axes.plan(alpha={"blocks.1": 2})
    assert [by_block[f"blocks.{i}.attn.heads"] for i in (0, 1)] == [4, 2]
    assert axes.plan(alpha=4, heads=1)["blocks.0.attn.heads"] == 4


def test_what_a_factor_does_not_divide_is_rounded_up_and_said_once(axes):
    with pytest.warns(UserWarning, match=r"alpha 3 does not divide blocks.0.attn.heads \(4\)") as said:
        plan = axes.plan(alpha=3)
    assert len(said) == 1
    assert kept(plan, "heads") == {2}
    with pytest.raises(AdjoinedError, match="factors that fit: 1, 2, 4"):
        axes.plan(alpha=3, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert kept(axes.plan(alpha=1000), "heads") == {1}


@settings(max_examples=25, deadline=None)
@given(fraction=st.floats(0.3, 1), what=st.sampled_from(["macs", "params"]))
def test_a_budget_is_kept_and_used(fraction, what):
    axes = specimen("vit").axes
    full = getattr(axes.cost(), what)
    least = getattr(
        axes.cost(
            axes.plan(kept={a.name: 1 for a in axes if a.role in ("heads", "hidden") and not a.pinned})
        ),
        what,
    )
    if fraction * full < least:
        with pytest.raises(AdjoinedError, match=f"the smallest has {least:,}"):
            axes.plan(**{what: fraction})
        return
    plan = axes.plan(**{what: fraction})
    spent = getattr(axes.cost(plan), what)
    assert spent <= fraction * full
    for w in plan.widths:  # no entry can be given back
        if w.kept < w.size and w.role in ("heads", "hidden"):
            more = axes.plan(
                kept={
                    v.name: v.kept + (v.name == w.name)
                    for v in plan.widths
                    if v.kept != v.size or v.name == w.name
                }
            )
            assert getattr(axes.cost(more), what) > fraction * full


def test_an_absolute_budget_is_the_fraction_of_it(axes):
    macs = axes.cost().macs
    assert axes.plan(macs=macs // 2).widths == axes.plan(macs=0.5).widths
    assert all(w.kept == w.size for w in axes.plan(params=1.0).widths)


def test_cost_falls_with_every_entry(axes):
    costs = [axes.cost(axes.plan(kept={"blocks.0.mlp.hidden": k})) for k in (1, 50, 192)]
    assert all(a.params < b.params and a.macs < b.macs for a, b in pairwise(costs))


def test_json_round_trip(axes, tmp_path):
    plan = axes.plan(alpha=2)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "new.json").write_text(text.replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}'))
    with pytest.raises(AdjoinedError, match="upgrade adjoined"):
        Plan.load(tmp_path / "new.json")


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"alpha": 0.5}, "a factor of 0.5 .* at least 1"),
        ({"alpha": float("nan")}, "a factor of nan"),
        ({"alpha": 2, "scope": "iner"}, "scope 'iner' is unknown; legal are inner, full; did you mean inner"),
        ({}, "give one of alpha, factors by role, macs, params or kept; got none"),
        ({"alpha": 2, "macs": 0.5}, "got alpha, macs"),
        ({"alpha": {"blocks.7": 2}}, "no block 'blocks.7' to cut; did you mean blocks"),
        ({"macs": 0.0001}, r"no plan of scope inner has macs ≤ .*: the smallest has .*scope='full'"),
        ({"macs": -1}, "a budget of -1 macs"),
        (
            {"kept": {"blocks.0.attn.head": 1}},
            "no axis 'blocks.0.attn.head' to cut; did you mean blocks.0.attn.heads",
        ),
        ({"kept": {"blocks.0.attn.heads": 5}}, "cannot keep 5 of 4 entries; 1 to 4 are possible"),
        ({"kept": {"head.hidden": 1}}, "no axis 'head.hidden' to cut"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_in_one_line(axes, request_, said):
    with pytest.raises(AdjoinedError, match=said) as error:
        axes.plan(**request_)
    assert "\n" not in str(error.value)


def test_a_plan_of_another_model_is_refused(axes):
    other = specimen("cait").axes.plan(alpha=2)
    with pytest.raises(
        AdjoinedError,
        match=r"made for another model; not in this model: .*; make one with axes\.plan",
    ):
        axes.cost(other)
    with pytest.raises(AdjoinedError, match=r"there is no plan at nowhere\.json"):
        Plan.load("nowhere.json")


def test_a_file_that_holds_no_plan(tmp_path):
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(AdjoinedError, match=r"holds no plan \(\w+: .*\); give what"):
        Plan.load(tmp_path / "plan.json")


def test_the_start_of_a_name_stands_for_all_blocks_under_it(axes):
    every = axes.plan(alpha={"blocks": 2})
    assert kept(every, "heads") == {2}
    assert {w.kept for w in every.widths if w.name.endswith("mlp.hidden")} == {96}
    but_one = axes.plan(alpha={"blocks": 2, "blocks.1": 4})
    assert [but_one[f"blocks.{i}.attn.heads"] for i in (0, 1)] == [2, 1]
    with pytest.raises(AdjoinedError, match="no block 'block' to cut; did you mean blocks"):
        axes.plan(alpha={"block": 2})


@pytest.mark.parametrize("kept", [1.5, True, "2", None])
def test_counts_are_whole_numbers(kept):
    with pytest.raises(AdjoinedError, match="both must be whole numbers"):
        Plan((Width("a", "hidden", "b", 4, kept),))
