"""Reading a plan's parts back from JSON, strictly: nothing unknown, nothing that contradicts itself.

Room: plan. May import `reticent.sample`, `reticent.records` and `reticent.errors`.
"""

from collections.abc import Mapping
from typing import Any

from reticent.errors import ConfigError
from reticent.plan._checks import Sampler
from reticent.records import SamplingScheme
from reticent.sample import FullBatchSampler, PoissonSampler


def bad_record(problem: str) -> ConfigError:
    return ConfigError(f"This is not a plan that Plan.describe() wrote: {problem}", code="plan-record")


def check_keys(
    record: object, *, required: tuple[str, ...], optional: tuple[str, ...] = (), where: str
) -> None:
    if not isinstance(record, Mapping):
        raise bad_record(f"{where} is a {type(record).__name__}, not an object.")
    missing = [name for name in required if name not in record]
    unknown = [name for name in record if name not in required + optional]
    if missing or unknown:
        raise bad_record(f"in {where}, missing: {missing}, unknown: {unknown}.")


def sampler_from(record: Mapping[str, Any]) -> Sampler:
    names = ("kind", "num_examples", "expected_batch_size", "sampling_prob")
    check_keys(record, required=names, where="sampler")
    num_examples, size, prob = (record[name] for name in names[1:])
    sampler: Sampler
    if record["kind"] == SamplingScheme.FULL_BATCH.value:
        sampler = FullBatchSampler(num_examples=num_examples)
    elif record["kind"] == SamplingScheme.POISSON.value:
        sampler = (
            PoissonSampler(sampling_prob=prob, expected_batch_size=size)
            if num_examples is None
            else PoissonSampler(num_examples=num_examples, expected_batch_size=size)
        )
    else:
        raise bad_record(f"sampler kind {record['kind']!r} is not known.")
    if (sampler.expected_batch_size, sampler.sampling_prob) != (size, prob):
        raise bad_record(
            f"the sampler's batch size {size!r}, probability {prob!r} and N {num_examples!r} disagree."
        )
    return sampler
