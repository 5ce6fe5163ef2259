"""What the numbers of a sampler must be.

Room: sample. May import `reticent.errors`.
"""

import sys
from typing import Final

from reticent.errors import ConfigError

MAX_EXAMPLES: Final = 10**15


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_num_examples(num_examples: int) -> None:
    if not is_integer(num_examples) or not 1 <= num_examples <= MAX_EXAMPLES:
        raise ConfigError(
            f"num_examples must be an integer from 1 to {MAX_EXAMPLES:.0e}, got {num_examples!r}.",
            code="num-examples",
        )


def checked_batch_size(size: float | int | None, num_examples: int | None) -> float:
    if num_examples is not None:
        check_num_examples(num_examples)
    if size is None or not is_real(size) or not 0 < size <= sys.float_info.max:
        raise ConfigError(
            f"expected_batch_size must be a finite number > 0, got {size!r}. It divides the noised "
            "sum, so it has to be public and fixed.",
            code="expected-batch-size",
        )
    if num_examples is not None and size > num_examples:
        raise ConfigError(
            f"expected_batch_size {size!r} is more than num_examples {num_examples}: lower it.",
            code="expected-batch-size",
        )
    return float(size)


def check_count(name: str, value: int, num_examples: int) -> None:
    """A number of examples, or of batches: from 1 to N."""
    check_num_examples(num_examples)
    if not is_integer(value) or not 1 <= value <= num_examples:
        raise ConfigError(
            f"{name} must be an integer from 1 to num_examples = {num_examples}, got {value!r}.",
            code="sampler-parameters",
        )


def checked_prob(prob: float | int | None) -> float:
    if prob is None or not is_real(prob) or not 0.0 < prob <= 1.0:
        raise ConfigError(f"sampling_prob must be in (0, 1], got {prob!r}.", code="sampling-prob")
    return float(prob)


def check_available(num_available: int, num_examples: int | None) -> None:
    if num_examples is not None and num_available != num_examples:
        raise ConfigError(
            f"The plan declares num_examples = {num_examples} public, but the data set holds "
            f"{num_available} examples. The privacy statement would be false: make a plan for this "
            "data set, or give sampling_prob instead of num_examples.",
            code="data-size",
        )
    if num_available < 0:
        raise ConfigError(f"num_available must be >= 0, got {num_available}.", code="data-size")
