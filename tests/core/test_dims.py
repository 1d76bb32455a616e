"""The algebra of widths against torch's own reshape, cat, split and permute: cut before is cut after."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adjoined.core.dims import (
    Atom,
    Mismatch,
    concat,
    fresh,
    leaves,
    plain,
    products,
    regroup,
    size,
    split_parts,
    unify,
)
from adjoined.core.slicing import kept_size, make_slicer

factors = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def cut(tensor, dims, kept):
    slicer = make_slicer(dims, kept)
    return tensor if slicer is None else slicer(tensor)


def draw_kept(data, dims):
    return {a: data.draw(st.integers(1, a.size), label="kept") for d in dims for a in plain(d)}


def coarser(data, sizes):
    """`sizes` with neighbours multiplied together at random."""
    ends = sorted({len(sizes), *data.draw(st.lists(st.integers(1, len(sizes)), max_size=3))})
    return [math.prod(sizes[i:j]) for i, j in zip([0, *ends[:-1]], ends, strict=True)]


@given(st.data(), factors)
def test_regroup_is_reshape(data, sizes):
    have, want = coarser(data, sizes), coarser(data, sizes)
    dims = [fresh(n) for n in have]
    groups = regroup(tuple(a for d in dims for a in d), want)
    assert [size(g) for g in groups] == want
    assert [a for g in groups for a in leaves(g)] == [a for d in dims for a in leaves(d)]
    x = torch.arange(math.prod(sizes)).reshape(have)
    kept = draw_kept(data, dims)
    before = cut(x, dims, kept).reshape([kept_size(g, kept) for g in groups])
    assert torch.equal(before, cut(x.reshape(want), groups, kept))


@given(st.data(), factors)
def test_unify_finds_the_common_refinement(data, sizes):
    a, b = (tuple(atom for n in coarser(data, sizes) for atom in fresh(n)) for _ in range(2))
    unify(a, b)
    assert leaves(a) == leaves(b)
    assert size(a) == math.prod(sizes)
    before = leaves(a)
    unify(b, a)
    assert leaves(a) == before


@given(factors, factors)
def test_unify_never_loses_entries(left, right):
    a, b = (tuple(atom for n in sizes for atom in fresh(n)) for sizes in (left, right))
    try:
        unify(a, b)
    except Mismatch:
        pass
    else:
        assert leaves(a) == leaves(b)
    assert (size(leaves(a)), size(leaves(b))) == (math.prod(left), math.prod(right))


@given(st.data(), st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_concat_is_cat_and_split_parts_is_split(data, sizes):
    parts = [fresh(n) for n in sizes]
    tensors = list(torch.arange(sum(sizes)).split(sizes))
    whole = concat(parts)
    assert size(whole) == sum(sizes)
    kept = draw_kept(data, parts)
    cat = torch.cat([cut(t, [p], kept) for t, p in zip(tensors, parts, strict=True)])
    assert torch.equal(cat, cut(torch.cat(tensors), [whole], kept))
    again = split_parts(whole, sizes)
    assert [leaves(p) for p in again] == [leaves(p) for p in parts]
    assert kept_size(whole, kept) == len(cat)


@given(st.data(), st.lists(st.integers(1, 4), min_size=3, max_size=5))
def test_split_parts_refine_each_other(data, sizes):
    dim = (Atom(sum(sizes)),)
    rough = [sizes[0], sum(sizes[1:])] if data.draw(st.booleans()) else [sum(sizes[:-1]), sizes[-1]]
    split_parts(dim, rough)
    fine = split_parts(dim, sizes)
    assert [size(p) for p in fine] == sizes
    x = torch.arange(sum(sizes))
    kept = draw_kept(data, fine)
    pieces = [cut(t, [p], kept) for t, p in zip(x.split(sizes), fine, strict=True)]
    assert torch.equal(torch.cat(pieces), cut(x, [dim], kept))


@given(st.data(), st.lists(st.integers(1, 4), min_size=2, max_size=4))
def test_unified_concatenations_share_their_parts(data, sizes):
    one, other = (split_parts((Atom(sum(sizes)),), sizes) for _ in range(2))
    a, b = concat(one), concat(other)
    if len(sizes) > 1:
        unify(a, b)
        assert [plain(p) for p in one] == [plain(p) for p in other]
    kept = draw_kept(data, [a])
    assert kept_size(a, kept) == kept_size(b, kept)


@given(st.lists(st.integers(2, 4), min_size=2, max_size=3), st.integers(2, 4))
def test_products_add_up(sizes, inner):
    dim = (*concat([fresh(n) for n in sizes]), *fresh(inner))
    assert sum(size(p) for p in products(dim)) == size(dim) == sum(sizes) * inner


@pytest.mark.parametrize(("have", "want"), [([6], [4, 2]), ([2, 3], [3, 2]), ([5], [2, 3]), ([4, 9], [6, 6])])
def test_what_has_no_factor_is_refused(have, want):
    with pytest.raises(Mismatch):
        regroup(tuple(a for n in have for a in fresh(n)), want)


def test_unlike_sizes_are_refused():
    with pytest.raises(Mismatch, match="sizes 6 and 4"):
        unify(fresh(6), fresh(4))


def test_a_product_is_no_list_of_parts():
    with pytest.raises(Mismatch):
        split_parts((Atom(2), Atom(3)), [2, 4])


def test_size_one_has_no_axis():
    assert fresh(1) == ()
    assert regroup((), [1, 1]) == [(), ()]
