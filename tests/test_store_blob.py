"""The packed blob: safetensors to the byte, bits kept, bad values refused, and what identifies a revision."""

from dataclasses import replace

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.blob import check_adapter, content_hash, pack, unpack

SPEC = AdapterSpec(rank=2, targets=("q_proj", "experts.up_proj", "experts.down_proj"))
BASE = "sha256:" + "0" * 64


def adapter(seed: int = 0, dtype: type = np.float32) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)

    def factor(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(dtype)

    return {
        "q_proj": {"a": factor(3, 2, 6), "b": factor(3, 2, 10)},
        "experts.up_proj": {"a": factor(2, 4, 2, 6), "b": factor(2, 4, 2, 5)},
    }


def test_bytes_are_what_safetensors_writes() -> None:
    mixed = adapter()
    mixed["q_proj"]["a"] = mixed["q_proj"]["a"].astype(ml_dtypes.bfloat16)
    mixed["q_proj"]["b"] = mixed["q_proj"]["b"].astype(np.float16)
    flat = {f"{site}.{name}": array for site, factors in mixed.items() for name, array in factors.items()}
    assert pack(mixed) == safetensors.numpy.save(flat)


def test_safetensors_reads_them() -> None:
    read = safetensors.numpy.load(pack(adapter()))
    assert sorted(read) == ["experts.up_proj.a", "experts.up_proj.b", "q_proj.a", "q_proj.b"]
    for name, array in read.items():
        site, factor = name.rsplit(".", 1)
        np.testing.assert_array_equal(array, adapter()[site][factor])


def test_order_and_memory_layout_do_not_matter() -> None:
    straight = adapter()
    turned = {
        site: {name: np.asfortranarray(straight[site][name]) for name in ("b", "a")}
        for site in reversed(list(straight))
    }
    assert pack(turned) == pack(straight)
    on_device = {site: {name: jnp.asarray(x) for name, x in factors.items()} for site, factors in straight.items()}
    assert pack(on_device) == pack(straight)


def test_loaded_arrays_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        unpack(pack(adapter()))["q_proj"]["a"][0] = 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_values_that_are_not_finite_are_refused_by_tensor(value: float, dtype: type) -> None:
    bad = adapter(dtype=dtype)
    bad["experts.up_proj"]["b"][1, 2, 0, 3] = value
    with pytest.raises(PefxError, match=r"policy 'x': tensor 'experts.up_proj.b' has 1 NaN or infinite") as caught:
        pack(bad, "policy 'x'")
    assert caught.value.kind == "not_finite"


@pytest.mark.parametrize(
    ("dtype", "bits"), [(np.float32, 0x7F800001), (np.float16, 0x7C01), (ml_dtypes.bfloat16, 0x7F81)]
)
def test_signalling_nan_is_refused_without_a_warning(dtype: type, bits: int) -> None:
    signal = np.full((1, 2, 3), bits, np.uint32 if dtype is np.float32 else np.uint16).view(dtype)
    with pytest.raises(PefxError, match=r"'q_proj.a' has 6 NaN or infinite values of 6"):
        pack({"q_proj": {"a": signal, "b": signal}})


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.complex64])
def test_other_types_are_refused(dtype: type) -> None:
    with pytest.raises(PefxError, match=f"is {np.dtype(dtype)}; an adapter is float32, float16 or bfloat16"):
        pack(adapter(dtype=dtype))


@pytest.mark.parametrize("data", [b"", b"abc", b"\xff" * 40, pack(adapter())[:-1], pack(adapter())[:60]])
def test_broken_bytes_are_damage(data: bytes) -> None:
    with pytest.raises(PefxError, match="the stored weights are damaged") as caught:
        unpack(data)
    assert caught.value.kind == "damaged"


def test_hash_is_known() -> None:
    # Written down once: a change of format or library must not silently rename every revision there is.
    ones = {"q_proj": {"a": np.ones((1, 2, 3), np.float32), "b": np.zeros((1, 2, 3), np.float32)}}
    spec = AdapterSpec(rank=2, alpha=4.0, targets=("q_proj",))
    assert content_hash(pack(ones), spec, BASE) == (
        "sha256:b935778129f4bd56d9e981510feec55a7fca251c8cd1c213d13a65b5504b499b"
    )


def test_hash_tells_weights_spec_and_base_apart_and_nothing_else() -> None:
    data = pack(adapter())
    same = content_hash(data, SPEC, BASE)
    assert same == content_hash(pack(adapter()), replace(SPEC, targets=tuple(reversed(SPEC.targets))), BASE)
    whole = replace(SPEC)
    object.__setattr__(whole, "alpha", 16)  # what an untyped config file may give
    assert same == content_hash(data, whole, BASE)
    others = [
        content_hash(pack(adapter(1)), SPEC, BASE),
        content_hash(pack(adapter(dtype=np.float16)), SPEC, BASE),
        content_hash(data, replace(SPEC, method="rslora"), BASE),
        content_hash(data, replace(SPEC, alpha=1.0), BASE),
        content_hash(data, replace(SPEC, rank=3), BASE),
        content_hash(data, replace(SPEC, targets=SPEC.targets[:1]), BASE),
        content_hash(data, replace(SPEC, expert_form="shared_hidden"), BASE),
        content_hash(data, replace(SPEC, tied=True), BASE),
        content_hash(data, replace(SPEC, tied="all"), BASE),
        content_hash(data, SPEC, BASE.replace("0", "1")),
    ]
    assert len({same, *others}) == 1 + len(others)
    negative = adapter()
    negative["q_proj"]["a"][:] = 0.0
    positive = pack(negative)
    negative["q_proj"]["a"][0, 0, 0] = -0.0
    assert content_hash(pack(negative), SPEC, BASE) != content_hash(positive, SPEC, BASE)


def test_both_expert_forms_pass() -> None:
    check_adapter(adapter(), SPEC, "x")
    shared = {
        "experts.up_proj": {"a": np.ones((2, 2, 6)), "b": np.ones((2, 4, 2, 5))},
        "experts.down_proj": {"a": np.ones((2, 4, 2, 5)), "b": np.ones((2, 2, 6))},
    }
    check_adapter(shared, replace(SPEC, expert_form="shared_hidden"), "x")
    with pytest.raises(PefxError, match=r"tensor 'experts.up_proj.a' has shape \[2, 2, 6\], needs \[L, E, R, size\]"):
        check_adapter(shared, SPEC, "x")
    with pytest.raises(PefxError, match=r"tensor 'experts.up_proj.a' has shape .* needs \[L, R, size\]"):
        check_adapter(adapter(), replace(SPEC, expert_form="shared_hidden"), "x")
