"""Weights and denominators against plain loops: any lengths, rejected tokens and rollouts, pairs, missing routes."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.losses.rows import Aggregation
from pefx.rl.weighing import routed, routes_missing, weigh
from pefx.serving.routes import MISSING

LONGEST = 16
weights = st.one_of(st.just(0.0), st.just(1.0), st.floats(2.0**-20, 8, width=32))
batches = st.lists(st.lists(weights, max_size=8), max_size=6)


def arrays(batch) -> list[np.ndarray]:
    return [np.asarray(own, np.float32) for own in batch]


def mean_by_hand(batch, values, aggregation) -> float:
    """The aggregate of `values` of all tokens as the table words it, weights multiplied in."""
    sequences = [[(w, v) for w, v in zip(ws, vs, strict=True) if w] for ws, vs in zip(batch, values, strict=True)]
    sequences = [tokens for tokens in sequences if tokens]
    if not sequences:
        return 0.0
    sums = [sum(w * v for w, v in tokens) for tokens in sequences]
    if aggregation == "token_mean":
        return sum(sums) / sum(len(tokens) for tokens in sequences)
    if aggregation == "sequence_mean":
        return sum(s / len(tokens) for s, tokens in zip(sums, sequences, strict=True)) / len(sequences)
    return sum(sums) / (len(sequences) * LONGEST)


@given(batch=batches, aggregation=st.sampled_from(get_args(Aggregation)), data=st.data())
def test_as_by_hand(batch, aggregation, data):
    values = [data.draw(st.lists(st.floats(-9, 9), min_size=len(own), max_size=len(own))) for own in batch]
    scaled, denominator = weigh(arrays(batch), aggregation, LONGEST)
    total = sum(float(w) * v for ws, vs in zip(scaled, values, strict=True) for w, v in zip(ws, vs, strict=True))
    nothing = not any(any(own) for own in batch)
    assert (denominator == 0) == nothing
    expected = mean_by_hand(batch, values, aggregation)
    np.testing.assert_allclose(0 if nothing else total / denominator, expected, rtol=1e-5, atol=1e-5)
    for own, given_weights in zip(scaled, batch, strict=True):
        np.testing.assert_array_equal(own != 0, np.asarray(given_weights) != 0)


@given(batch=batches, aggregation=st.sampled_from(get_args(Aggregation)))
def test_what_is_rejected_is_as_if_it_was_not_there(batch, aggregation):
    scaled, denominator = weigh(arrays(batch), aggregation, LONGEST)
    left = [[w for w in own if w] for own in batch if any(own)]
    alone, same = weigh(arrays(left), aggregation, LONGEST)
    assert denominator == same
    assert [own[own != 0].tobytes() for own in scaled if own.any()] == [own.tobytes() for own in alone]


def test_denominators_by_numbers():
    batch = arrays([[0, 1, 2, 0], [1], [0, 0], []])
    assert weigh(batch, "token_mean", LONGEST)[1] == 3
    assert weigh(batch, "sequence_mean", LONGEST)[1] == 2
    assert weigh(batch, "constant", LONGEST)[1] == 32
    assert [own.tolist() for own in weigh(batch, "sequence_mean", LONGEST)[0]] == [[0, 0.5, 1, 0], [1], [0, 0], []]


@pytest.mark.parametrize("aggregation", get_args(Aggregation))
def test_who_has_lost_its_partner_goes(aggregation):
    batch = arrays([[1, 1], [1, 1, 1], [0, 0], [1], [1], [2, 0]])
    scaled, denominator = weigh(batch, aggregation, LONGEST, np.array([1, 0, 3, 2, -1, -1], np.int32))
    alone, same = weigh([own for i, own in enumerate(batch) if i not in (2, 3)], aggregation, LONGEST)
    assert denominator == same
    assert [own.tolist() for own in scaled] == [
        own.tolist() for own in (*alone[:2], np.zeros(2), np.zeros(1), *alone[2:])
    ]


def test_weights_of_a_pair_sum_to_one_for_each_sequence():
    scaled, denominator = weigh(arrays([[1, 1, 1], [1]]), "sequence_mean", LONGEST, np.array([1, 0], np.int32))
    np.testing.assert_allclose([own.sum() for own in scaled], 1, rtol=1e-6)
    assert denominator == 2


@given(data=st.data())
def test_routes_are_missing_where_any_layer_of_the_token_before_lacks_them(data):
    size = data.draw(st.integers(0, 8))
    layers = data.draw(st.integers(1, 3))
    ids = st.lists(st.sampled_from([0, 3, MISSING]), min_size=size * layers * 2, max_size=size * layers * 2)
    routes = np.asarray(data.draw(ids), np.uint16).reshape(size, layers, 2)
    sampled = np.asarray(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), np.bool_)
    expected = [
        bool(sampled[i]) and i > 0 and any(routes[i - 1, x, y] == MISSING for x in range(layers) for y in range(2))
        for i in range(size)
    ]
    assert routes_missing(routes, sampled).tolist() == expected
    np.testing.assert_array_equal(routes_missing(None, sampled), sampled)


def test_tokens_with_missing_routes_are_rejected_or_kept():
    own, missing = np.array([0, 0.5, 2], np.float32), np.array([False, True, False])
    assert routed(own, missing, "mask").tolist() == [0, 0, 2]
    assert routed(own, missing, "fallback").tolist() == [0, 0.5, 2]
    assert routed(own, missing, "mask").dtype == np.float32
