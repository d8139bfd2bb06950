"""Rotary position embedding (Su et al. 2021): of a whole head or a part, in halves or neighbours, stretched by YaRN."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from pefx.config import ModelConfig, YarnConfig


def rotary_size(config: ModelConfig) -> int:
    """How many numbers of a head are rotated."""
    return config.rope_head_size if config.kv_rank else int(config.head_size * config.rotary_fraction)


def angles(positions: Int32[Array, "T"], config: ModelConfig) -> tuple[Float[Array, "T 1 h"], Float[Array, "T 1 h"]]:
    """Cosine and sine of each position at each of `rotary_size / 2` frequencies, float32. Made once per step."""
    yarn = config.yarn
    angle = positions.astype(jnp.float32)[:, None] * frequencies(config)[None]
    cosine, sine = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    if yarn is not None and yarn.attention_factor != 1:
        cosine, sine = cosine * yarn.attention_factor, sine * yarn.attention_factor
    return cosine, sine


def frequencies(config: ModelConfig) -> np.ndarray:
    """Radians a token of each pair, float32 `[rotary_size / 2]`.

    Made on the host: a compiler takes the power itself in one program and leaves it to the device in another, and not
    with the same bits.
    """
    size, yarn = rotary_size(config), config.yarn
    frequency = config.rope_theta ** -(np.arange(0, size, 2) / size)
    if yarn is not None:
        slow = yarn_ramp(yarn, size, config.rope_theta)
        frequency = frequency / yarn.factor * slow + frequency * (1 - slow)
    return frequency.astype(np.float32)


def yarn_ramp(yarn: YarnConfig, size: int, theta: float) -> np.ndarray:
    """How far each of `size / 2` frequencies is slowed down, 0 to 1 `[size / 2]` (Peng et al. 2023, eq. 23), float32.

    The bounds are whole numbers of pairs, as in DeepSeek-V3.
    """

    def pair(turns: float) -> float:
        """The pair, counted as a real number, that turns so many times in the original context."""
        return size * math.log(yarn.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(pair(yarn.beta_fast)), 0), min(math.ceil(pair(yarn.beta_slow)), size - 1)
    ramp = (np.arange(size // 2, dtype=np.float32) - low) / max(high - low, 0.001)
    return np.clip(ramp, 0, 1).astype(np.float32)


def softmax_scale(config: ModelConfig) -> float:
    """What scores of queries and keys are multiplied by before softmax."""
    if not config.kv_rank:
        return config.head_size**-0.5
    scale = (config.nope_head_size + config.rope_head_size) ** -0.5
    return scale if config.yarn is None else scale * yarn_scale(config.yarn.factor, config.yarn.latent_factor) ** 2


def yarn_scale(factor: float, weight: float) -> float:
    """`0.1 weight ln(factor) + 1` (Peng et al. 2023, eq. 22); 1 where nothing is stretched."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotate(
    x: Float[Array, "T H K"], cosine: Float[Array, "T 1 h"], sine: Float[Array, "T 1 h"], neighbours: bool = False
) -> Float[Array, "T H K"]:
    """Rotate the first 2h numbers, pairs (i, i + h) or `neighbours` (2i, 2i + 1); the others pass. In x's type.

    Rotated neighbours come out in halves: first those of even places. Queries and keys, both so, have the same scores.
    """
    size = 2 * cosine.shape[-1]
    cosine, sine = cosine.astype(x.dtype), sine.astype(x.dtype)
    turned = x[..., :size]
    low, high = (turned[..., 0::2], turned[..., 1::2]) if neighbours else jnp.split(turned, 2, axis=-1)
    parts = [low * cosine - high * sine, high * cosine + low * sine]
    return jnp.concatenate(parts if size == x.shape[-1] else [*parts, x[..., size:]], axis=-1)
