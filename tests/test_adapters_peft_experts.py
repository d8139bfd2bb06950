"""Factors of all experts in one tensor: taken apart and put together, and read as SGLang and vLLM write them."""

from pathlib import Path

import numpy as np
import pytest

from pefx.adapters.methods.table import scale
from pefx.adapters.peft import read_peft
from pefx.adapters.peft_experts import DOWN, GATE, UP, are_blocks, halves, join_fused, split_fused, split_stacked
from pefx.errors import PefxError
from tests.peft_cases import CONFIGS, delta, numbers, put

MOE = CONFIGS["all sparse"]  # 5 experts, hidden 10, expert hidden 7, 3 layers
E, D, F, R = 5, 10, 7, 3


def pair(reads: int, writes: int, seed: int, rank: int = R) -> tuple[np.ndarray, np.ndarray]:
    return numbers((E, rank, reads), seed), numbers((E, rank, writes), seed + 100)


def test_joined_factors_come_apart() -> None:
    gate, up, down = pair(D, F, 0), pair(D, F, 1), pair(F, D, 2)
    name, found = split_fused(*join_fused({DOWN: down}), MOE, (0, 21), "x")
    assert name == "down_proj"
    assert all(np.array_equal(x, y) for x, y in zip(found[DOWN], down, strict=True))
    name, found = split_fused(*join_fused({GATE: gate, UP: up}), MOE, (0, 21), "x")
    assert name == "gate_up_proj"
    assert are_blocks(found[GATE], found[UP])
    for own, want in zip(halves(found[GATE], found[UP]), (gate, up), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(own, want, strict=True))
    alone = split_fused(*join_fused({UP: up}), MOE, (0, 21), "x")[1]
    assert all(np.array_equal(x, y) for x, y in zip(alone[UP], up, strict=True))
    assert not alone[GATE][1].any()


def test_a_factor_that_both_need_is_no_block() -> None:
    a, b = numbers((E, 4, D), 0), numbers((E, 4, 2 * F), 1)
    assert not are_blocks((a, b[..., :F]), (a, b[..., F:]))
    b[:, 2:, :F], b[:, :2, F:] = 0, 0
    assert are_blocks((a, b[..., :F]), (a, b[..., F:]))
    b[E - 1, 3, F - 1] = 1e-30
    assert not are_blocks((a, b[..., :F]), (a, b[..., F:]))


NAMES = {"long": ("gate_proj", "up_proj", "down_proj"), "short": ("w1", "w3", "w2")}


def stacks(names: tuple[str, str, str], shared: bool) -> dict[str, np.ndarray]:
    """Tensors as SGLang reads them: `[E or 1, r, in]` and `[E or 1, out, r]`."""
    outer, tensors = 1 if shared else E, {}
    for layer in range(3):
        for seed, (name, reads, writes) in enumerate(zip(names, (D, D, F), (F, F, D), strict=True)):
            at, down = f"model.layers.{layer}.mlp.experts.{name}", seed == 2
            tensors[f"{at}.lora_A.weight"] = numbers((E if down else outer, R, reads), 10 * layer + seed)
            tensors[f"{at}.lora_B.weight"] = numbers((outer if down else E, writes, R), 10 * layer + seed + 5)
    return tensors


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_stacks_of_matrices_are_read_in_the_form_they_have(names, shared: bool, tmp_path: Path) -> None:
    tensors = stacks(names, shared)
    adapter, spec = read_peft(put(tmp_path / "x", {"r": R, "lora_alpha": 6}, tensors), MOE)
    assert spec.expert_form == ("shared_hidden" if shared else "per_expert")
    assert adapter[GATE]["a"].shape == ((3, R, D) if shared else (3, E, R, D))
    assert adapter[DOWN]["b"].shape == ((3, R, D) if shared else (3, E, R, D))
    found = delta(adapter, scale(spec), MOE)
    for site, name in zip((GATE, UP, DOWN), names, strict=True):
        a, b = (tensors[f"model.layers.2.mlp.experts.{name}.lora_{x}.weight"].astype(np.float64) for x in "AB")
        for e in range(E):
            want = 2.0 * (b[e % len(b)] @ a[e % len(a)])
            np.testing.assert_allclose(found[site][2, e].T, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stacked", [1, 2], ids=["one A for both", "gate's A and then up's"])
def test_gate_and_up_under_one_name_share_a_or_have_it_stacked(stacked: int, tmp_path: Path) -> None:
    tensors, want = {}, {}
    for layer in range(3):
        a, b = numbers((1, stacked * R, D), layer), numbers((E, 2 * F, R), layer + 9)
        at = f"model.layers.{layer}.mlp.experts.gate_up_proj"
        tensors |= {f"{at}.lora_A.weight": a, f"{at}.lora_B.weight": b}
        want[layer] = np.stack([b[:, :F] @ a[:, :R], b[:, F:] @ a[:, -R:]])
    adapter, spec = read_peft(put(tmp_path / "x", {"r": R, "lora_alpha": R}, tensors), MOE)
    assert (spec.rank, spec.targets, spec.expert_form) == (R, (GATE, UP), "shared_hidden")
    found = delta(adapter, scale(spec), MOE)
    for layer in range(3):
        for site, product in zip((GATE, UP), want[layer], strict=True):
            np.testing.assert_allclose(found[site][layer].swapaxes(1, 2), product, rtol=1e-5, atol=1e-5)


def test_matrices_that_are_shared_on_one_side_only_somewhere_are_written_out(tmp_path: Path) -> None:
    tensors = stacks(NAMES["long"], shared=True)
    at = "model.layers.1.mlp.experts.down_proj.lora_B.weight"
    tensors[at] = numbers((E, D, R), 77)
    adapter, spec = read_peft(put(tmp_path / "x", {"r": R, "lora_alpha": 6}, tensors), MOE)
    assert spec.expert_form == "per_expert"
    np.testing.assert_array_equal(adapter[DOWN]["b"][1], tensors[at].swapaxes(1, 2))
    shared = tensors["model.layers.0.mlp.experts.gate_proj.lora_A.weight"][0]
    assert all(np.array_equal(adapter[GATE]["a"][0, e], shared) for e in range(E))


def test_fused_factors_with_axes_of_their_own_are_the_same_numbers() -> None:
    """A `[E, r, in]` and B `[out, r, E]`, as vLLM reads them."""
    a, b = join_fused({DOWN: pair(F, D, 2)})
    _, flat = split_fused(a, b, MOE, (), "x")
    _, deep = split_fused(a.reshape(E, R, F), b.reshape(D, R, E), MOE, (), "x")
    assert all(np.array_equal(x, y) for x, y in zip(flat[DOWN], deep[DOWN], strict=True))


@pytest.mark.parametrize(
    ("name", "a", "b", "match", "kind"),
    [
        ("up_proj", (4, R, D), (E, F, R), "of all 5 experts, or of one for all", "wrong_target"),
        ("up_proj", (R, D), (F, R), "of all 5 experts, or of one for all", "wrong_target"),
        ("up_proj", (1, R, D), (E, F, 2), "do not multiply", "wrong_rank"),
        ("gate_up_proj", (1, 3 * R, D), (E, 2 * F, R), "do not multiply", "wrong_rank"),
    ],
)
def test_stacks_that_do_not_fit_are_refused(name: str, a, b, match: str, kind: str) -> None:
    with pytest.raises(PefxError, match=f"^x has A of shape .*{match}") as caught:
        split_stacked(name, np.ones(a, np.float32), np.ones(b, np.float32), E, "x")
    assert caught.value.kind == kind
