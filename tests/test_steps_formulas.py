"""The seam: training, scoring and serving steps of a tiny base against plain numpy and against one another."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from pefx.adapters.bank import Bank, bank_spec, empty_bank, load_adapter
from pefx.batch import KVPool, TokenBatch
from pefx.config import AdapterSpec
from pefx.optim import Hyper, init_opt
from pefx.packing import Sizes, Span, pack, whole_pages
from pefx.sampling import Sampling, Shaping, greedy
from pefx.steps import ServePlan, ServeState, TrainHyper, init_pretrain, pretrain_step, score, serve_step, train_step
from tests.model_small import (
    MODEL,
    PAGE,
    SPEC,
    TILE,
    TOKENS,
    Plain,
    make_base,
    random_adapter,
    random_tokens,
    split_rows,
    train_batch,
)

TO_THE_BIT = True

SLOTS, ACTIVE = 4, 2
SPECS = [AdapterSpec(rank=r, alpha=6.0, targets=SPEC.targets) for r in (3, 5, 2, 8)]
ADAPTERS = [random_adapter(MODEL, spec, seed) for seed, spec in enumerate(SPECS)]
BASE = cache(make_base)


def make_bank() -> Bank:
    bank = empty_bank(MODEL, bank_spec(SPECS), SLOTS)
    for slot, (adapter, spec) in enumerate(zip(ADAPTERS, SPECS, strict=True)):
        bank = load_adapter(bank, slot, adapter, spec)
    return bank


def hyper_of(slots, apply=True, rate=1e-2) -> TrainHyper:
    def each(x):
        return np.full(ACTIVE, x, np.float32)

    rate, decay, clip, beta1, beta2, epsilon = (each(x) for x in (rate, 0.0, 1e9, 0.9, 0.99, 1e-8))
    slots = np.array(slots, np.int32)
    return TrainHyper(slots, rate, decay, clip, beta1, beta2, epsilon, np.full(ACTIVE, apply))


def host(tree):
    """A copy that outlives donation."""
    return jax.tree.map(np.array, tree)


def of_slot(tree, slot: int) -> list[np.ndarray]:
    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    return [x[:, slot] if x.ndim > 1 else x[slot] for x in leaves]


def same_bits(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))


SEQUENCES = random_tokens([19, 2, 11])


def test_a_step_trains_its_active_slots_and_no_other():
    bank = make_bank()
    opt, before = init_opt(bank), host(bank)
    batch = train_batch(SEQUENCES, [0, 0, 1])
    after, opt, metrics = train_step(BASE(), bank, opt, batch, hyper_of([2, 0]))
    np.testing.assert_array_equal(opt.count, [1, 0, 1, 0])
    np.testing.assert_array_equal(after.scales, before.scales)
    for slot in (0, 2):
        pairs = zip(of_slot(before.factors, slot), of_slot(after.factors, slot), strict=True)
        assert all(a.tobytes() != b.tobytes() for a, b in pairs), slot
    for slot in (1, 3):
        assert same_bits(of_slot(before.factors, slot), of_slot(after.factors, slot))
        assert not any(x.any() for x in of_slot((opt.mu, opt.nu, opt.gradient, opt.weight), slot))
    # Zero padding of lower ranks stays zero.
    for pair in after.factors.values():
        for x in pair.values():
            assert not np.asarray(x)[:, 2, ..., SPECS[2].rank :, :].any()

    # What it says of the loss is what plain numpy finds: adapters 2, 2, 0.
    plain = [Plain(BASE(), ADAPTERS[slot], SPECS[slot]) for slot in (2, 2, 0)]
    wanted = [model.logprobs(tokens) for model, tokens in zip(plain, SEQUENCES, strict=True)]
    for rows, want in zip(split_rows(SEQUENCES, metrics.logprobs), wanted, strict=True):
        np.testing.assert_allclose(rows[:-1], want, rtol=1e-4, atol=2e-5)
        assert rows[-1] == 0
    np.testing.assert_array_equal(metrics.tokens, [18 + 1, 10])
    loss = [-np.concatenate(wanted[:2]).mean(), -wanted[2].mean()]
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-4)


def test_the_step_goes_down_the_gradient_of_the_mean_loss():
    def loss_at(adapter):
        return -Plain(BASE(), adapter, SPECS[1]).logprobs(SEQUENCES[0]).mean()

    bank = make_bank()
    _, opt, metrics = train_step(
        BASE(), bank, init_opt(bank), train_batch(SEQUENCES[:1], [0]), hyper_of([1, SLOTS], apply=False)
    )
    gradient = {
        site: {name: np.asarray(x)[:, 1, ..., : SPECS[1].rank, :] / 18 for name, x in pair.items()}
        for site, pair in opt.gradient.items()
    }
    np.testing.assert_allclose(
        metrics.gradient_norm[0], np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(gradient))), rtol=1e-4
    )
    rng, size = np.random.default_rng(0), 1e-5
    for site, pair in gradient.items():
        way = {n: rng.normal(size=x.shape) for n, x in pair.items()}

        def moved(by, site=site, way=way):
            pair = {n: x.astype(np.float64) + by * way[n] for n, x in ADAPTERS[1][site].items()}
            return {**ADAPTERS[1], site: pair}

        slope = (loss_at(moved(size)) - loss_at(moved(-size))) / (2 * size)
        want = sum((pair[n] * way[n]).sum() for n in pair)
        np.testing.assert_allclose(want, slope, rtol=2e-3, atol=2e-5, err_msg=site)


def test_accumulating_twice_is_the_mean_over_both_batches():
    halves = [train_batch(SEQUENCES[:1], [0]), train_batch(SEQUENCES[2:], [0], weight=3.0)]
    bank = make_bank()
    before, opt = host(bank), init_opt(bank)
    bank, opt, _ = train_step(BASE(), bank, opt, halves[0], hyper_of([1, SLOTS], apply=False))
    assert same_bits(of_slot(bank.factors, 1), of_slot(before.factors, 1))
    np.testing.assert_array_equal(opt.count, 0)
    np.testing.assert_array_equal(opt.weight, [0, 18, 0, 0])
    bank, opt, metrics = train_step(BASE(), bank, opt, halves[1], hyper_of([1, SLOTS], apply=True))
    np.testing.assert_array_equal(opt.count, [0, 1, 0, 0])
    assert not any(x.any() for x in of_slot((opt.gradient, opt.weight), 1))
    np.testing.assert_array_equal(metrics.tokens, [30, 0])

    both = train_batch([SEQUENCES[0], SEQUENCES[2]], [0, 0])
    weights = np.where(np.arange(TOKENS) < 2 * PAGE, both.weights, both.weights * 3).astype(np.float32)
    both = type(both)(both.tokens, both.targets, weights)
    fresh = make_bank()
    once, opt_once, _ = train_step(BASE(), fresh, init_opt(fresh), both, hyper_of([1, SLOTS]))
    for one, two in zip(of_slot(once.factors, 1), of_slot(bank.factors, 1), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    for one, two in zip(of_slot(opt_once.mu, 1), of_slot(opt.mu, 1), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-6)


def test_training_learns_and_counts():
    bank = make_bank()
    opt, batch, losses = init_opt(bank), train_batch(SEQUENCES, [0, 1, 0]), []
    for _ in range(6):
        bank, opt, metrics = train_step(BASE(), bank, opt, batch, hyper_of([2, 0]))
        losses.append(np.array(metrics.loss))
    assert (losses[-1] < 0.7 * losses[0]).all()
    np.testing.assert_array_equal(opt.count, [6, 0, 6, 0])


def test_score_gives_the_bits_of_the_training_step():
    bank = make_bank()
    scored = np.array(score(BASE(), bank, train_batch(SEQUENCES, [3, -1, 1])))
    _, _, metrics = train_step(BASE(), bank, init_opt(bank), train_batch(SEQUENCES, [0, -1, 1]), hyper_of([3, 1]))
    assert scored.tobytes() == np.asarray(metrics.logprobs).tobytes()
    bare = Plain(BASE()).logprobs(SEQUENCES[1])
    np.testing.assert_allclose(split_rows(SEQUENCES, scored)[1][:-1], bare, rtol=1e-4, atol=2e-5)


def pretrain_hyper(decay: float = 0.0, rate: float = 3e-3) -> Hyper:
    return Hyper(*(np.asarray(x, np.float32) for x in (rate, decay, 1.0, 0.9, 0.95, 1e-8)))


def test_pretraining_lowers_the_loss_and_decays_matrices_only():
    base, batch, losses = make_base(), train_batch(SEQUENCES, [-1, -1, -1]), []
    opt = init_pretrain(base)
    first = np.concatenate([Plain(base).logprobs(tokens) for tokens in SEQUENCES])
    for _ in range(8):
        base, opt, metrics = pretrain_step(base, opt, batch, pretrain_hyper())
        losses.append(float(metrics.loss))
    np.testing.assert_allclose(losses[0], -first.mean(), rtol=1e-4)
    assert losses[-1] < 0.7 * losses[0]
    assert float(metrics.tokens) == 29
    assert np.isfinite(float(metrics.gradient_norm))
    assert 0.5 < float(metrics.balance) < 5

    # With nothing to learn, only decay moves weights, and not those of norms. (Zero gradient: no weighted token.)
    base, quiet = make_base(), train_batch(SEQUENCES, [-1, -1, -1], weight=0.0)
    before, opt = host(base), init_pretrain(base)
    base, _, metrics = pretrain_step(base, opt, quiet, pretrain_hyper(decay=0.5, rate=0.1))
    norm = np.asarray(before.segments[0].block.input_norm[...]), np.asarray(base.segments[0].block.input_norm[...])
    matrix = (
        np.asarray(before.segments[1].block.feed.up_proj[...]),
        np.asarray(base.segments[1].block.feed.up_proj[...]),
    )
    assert float(metrics.loss) == 0
    np.testing.assert_allclose(matrix[1], matrix[0] * 0.95, rtol=0.2, atol=0.11)
    assert np.abs(norm[1] - norm[0]).max() <= 0.1 + 1e-6


def plan_of(spans, rows, targets=-1, **sampling) -> ServePlan:
    sizes = Sizes(0, 1, 4, TOKENS // PAGE, PAGE, TILE)
    wanted = np.full(4, -1, np.int32)
    wanted[: len(rows)] = rows
    how = {name: np.full(4, sampling.get(name, x[0]), x.dtype) for name, x in greedy(4)._asdict().items()}
    return ServePlan(
        TokenBatch(**pack(spans, sizes)),
        wanted,
        np.full(4, targets, np.int32),
        Sampling(**how),
        singles=4,
    )


def generate(slot: int, prompt: np.ndarray, count: int, **sampling):
    """Tokens, log-probabilities and routes of one request: prefill in two chunks, then decode."""
    state, bank = ServeState(KVPool.zeros(MODEL, 9, PAGE)), make_bank()
    pages = [7, 2, 5, 0][: whole_pages(len(prompt) + count, PAGE)]
    cut = len(prompt) // 2
    state, *_ = serve_step(BASE(), bank, state, plan_of([Span(prompt[:cut], 0, slot, pages)], []))
    part, at, tokens, logprobs = prompt[cut:], cut, [], []
    while len(tokens) < count:
        plan = plan_of([Span(part, at, slot, pages)], [len(part) - 1], **sampling)
        state, drawn, routes = serve_step(BASE(), bank, state, plan)
        tokens.append(int(drawn.tokens[0]))
        logprobs.append(float(drawn.logprobs[0]))
        assert routes.shape == (2, 16, 2)
        np.testing.assert_array_equal(drawn.logprobs[1:], 0)
        part, at = np.array(tokens[-1:], np.int32), at + len(part)
    return tokens, logprobs


@pytest.mark.parametrize("slot", [-1, 2])
def test_greedy_serving_is_argmax_of_the_model(slot):
    prompt, count = random_tokens([13], seed=5)[0], 8
    tokens, logprobs = generate(slot, prompt, count)
    plain = Plain(BASE(), ADAPTERS[slot] if slot >= 0 else None, SPECS[slot])
    whole = np.append(prompt, tokens).astype(np.int32)
    logits = plain(whole)[0][len(prompt) - 1 : -1]
    assert tokens == logits.argmax(-1).tolist()
    np.testing.assert_allclose(logprobs, plain.logprobs(whole)[len(prompt) - 1 :], rtol=1e-4, atol=2e-5)


def test_sampled_log_probabilities_are_the_models_own_and_seeds_matter():
    prompt = random_tokens([9], seed=6)[0]
    tokens, logprobs = generate(0, prompt, 5, temperature=3.0, seed=1)
    again, _ = generate(0, prompt, 5, temperature=3.0, seed=1)
    other, _ = generate(0, prompt, 5, temperature=3.0, seed=2)
    assert tokens == again != other
    whole = np.append(prompt, tokens).astype(np.int32)
    want = Plain(BASE(), ADAPTERS[0], SPECS[0]).logprobs(whole)[len(prompt) - 1 :]
    np.testing.assert_allclose(logprobs, want, rtol=1e-4, atol=2e-5)


def test_a_target_is_scored_instead_of_sampled():
    prompt = random_tokens([6], seed=7)[0]
    plan = plan_of([Span(prompt, 0, 1, [3])], [5, 2], targets=11)
    _, drawn, _ = serve_step(BASE(), make_bank(), ServeState(KVPool.zeros(MODEL, 9, PAGE)), plan)
    np.testing.assert_array_equal(drawn.tokens, 11)
    plain = Plain(BASE(), ADAPTERS[1], SPECS[1])
    for at, got in ((5, drawn.logprobs[0]), (2, drawn.logprobs[1])):
        want = plain.logprobs(np.append(prompt[: at + 1], 11).astype(np.int32))[-1]
        np.testing.assert_allclose(got, want, rtol=1e-4)
    np.testing.assert_array_equal(drawn.logprobs[2:], 0)


def test_the_likeliest_tokens_are_told_and_shaping_changes_draws_alone():
    prompt, pages = random_tokens([6], seed=7)[0], 9

    def run(**more):
        plan = replace(plan_of([Span(prompt, 0, 1, [3])], [5]), **more)
        return serve_step(BASE(), make_bank(), ServeState(KVPool.zeros(MODEL, pages, PAGE)), plan)[1]

    plain, told = run(), run(top=5)
    assert plain.top_tokens.shape == (4, 0)
    np.testing.assert_array_equal(told.top_tokens[0, 0], plain.tokens[0])  # greedy
    np.testing.assert_array_equal(told.top_logprobs[0, 0], plain.logprobs[0])
    assert (np.diff(told.top_logprobs[0]) <= 0).all()
    second = int(told.top_tokens[0, 1])
    words = np.full((4, -(-MODEL.vocab_size // 32)), 2**32 - 1, np.uint32)
    first = int(plain.tokens[0])
    words[0, first // 32] ^= np.uint32(1 << first % 32)
    none = np.full((4, 1), -1, np.int32)
    drawn = run(top=5, shaping=Shaping(none, np.ones((4, 1), np.float32), np.zeros((4, 1), np.float32), words))
    assert int(drawn.tokens[0]) == second
    np.testing.assert_array_equal(drawn.logprobs[0], told.top_logprobs[0, 1])  # the model's own, not the shaped


def test_the_state_is_donated():
    state = ServeState(KVPool.zeros(MODEL, 9, PAGE))
    serve_step(BASE(), make_bank(), state, plan_of([Span([1, 2], 0, -1, [0])], [1]))
    assert state.kv.keys.is_deleted()
