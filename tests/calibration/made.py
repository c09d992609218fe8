"""Logits of a made-up model whose temperature is known."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def logits(n: int, classes: int = 20, temperature: float = 1.0, seed: int = 0) -> tuple[Floats, Ints]:
    """Logits [n, classes] and true classes [n], which are drawn from the softmax of logits / temperature."""
    random = np.random.default_rng(seed)
    values = random.normal(0, 3, (n, classes))
    truth = np.argmax(values + random.gumbel(size=values.shape), axis=1)  # the Gumbel-max trick
    return (values * temperature).astype(np.float32), truth
