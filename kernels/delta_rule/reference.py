"""The obvious form of a memory written by the delta rule, token by token in numpy: the oracle."""

import numpy as np


def delta_rule(
    projected: np.ndarray, gather: np.ndarray, commit: np.ndarray, state: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What each of `n` tokens of one sequence reads, `[n, H, R]`, and the state `[H, R, R]` after them (delta-mem,
    2605.12357).

    `projected [n, H, 4, R]` are query, key, value and gate of every token, before tanh and sigmoid. A token that
    gathers adds its own to a message; one that commits writes the mean of the message.
    """
    state, reads, message = np.array(state, np.float64), [], []
    for token, gathers, commits in zip(projected.astype(np.float64), gather, commit, strict=True):
        reads.append(np.einsum("hij,hj->hi", state, _unit(token[:, 0])))
        if gathers:
            message.append(token)
        if commits and message:
            mean = np.mean(message, axis=0)
            key, value, beta = _unit(mean[:, 1]), mean[:, 2], 1 / (1 + np.exp(-mean[:, 3]))
            erased = np.einsum("hij,hj->hi", state, key)
            state = (1 - beta)[..., None] * state
            state = state - (beta * erased)[..., None] * key[:, None] + (beta * value)[..., None] * key[:, None]
            message = []
    return np.asarray(reads), state


def _unit(x: np.ndarray) -> np.ndarray:
    turned = np.tanh(x)
    return turned / np.maximum(np.linalg.norm(turned, axis=-1, keepdims=True), 1e-6)
