"""What all language models do with what they give: thoughts are dropped, probabilities of choices add to 1."""

import re

import numpy as np

_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


def without_thoughts(text: str) -> str:
    """An answer without what a reasoning model wrote between <think> and </think>. Thoughts that were cut off are no answer; some
    templates put <think> at the end of the prompt, then everything up to </think> is thought."""
    answer = _THOUGHTS.sub("", text).rpartition("</think>")[2]
    return answer if answer == text else answer.lstrip()


def shares(probabilities: np.ndarray) -> np.ndarray:
    """[..., choices] of 0 or more -> rows of sum 1; of zeros alone: equal ones."""
    values = np.asarray(probabilities, np.float64)
    total = values.sum(axis=-1, keepdims=True)
    equal = np.full_like(values, 1 / max(values.shape[-1], 1))
    return np.divide(values, total, out=equal, where=total > 0)
