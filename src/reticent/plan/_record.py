"""Reading a plan's parts back from JSON, strictly: nothing unknown, nothing that contradicts itself.

Room: plan. May import `reticent.sample`, `reticent.records` and `reticent.errors`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from reticent.errors import ConfigError
from reticent.records import PARTITIONS, SamplingScheme
from reticent.sample import (
    FixedSizeSampler,
    FullBatchSampler,
    PartitionSampler,
    PoissonSampler,
    Sampler,
    Stage,
    StagedSampler,
    TruncatedPoissonSampler,
)


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


_STAGED: Final = "staged"
_USUAL: Final = ("kind", "num_examples", "expected_batch_size", "sampling_prob")
_MORE: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        SamplingScheme.POISSON: (),
        SamplingScheme.FULL_BATCH: (),
        SamplingScheme.TRUNCATED_POISSON: ("max_batch_size",),
        SamplingScheme.FIXED_SIZE: (),
        **dict.fromkeys(sorted(PARTITIONS), ("num_batches", "seed")),
    }
)


def sampler_record(sampler: Sampler | StagedSampler) -> dict[str, Any]:
    """The sampler as a JSON object; every value in it is public."""
    if isinstance(sampler, StagedSampler):
        return {
            "kind": _STAGED,
            "num_examples": sampler.num_examples,
            "stages": [
                {
                    "num_steps": stage.num_steps,
                    "noise_scale": float(stage.noise_scale),
                    "sampler": sampler_record(stage.sampler),
                }
                for stage in sampler.stages
            ],
        }
    return {
        "kind": sampler.scheme.value,
        **{name: getattr(sampler, name) for name in (*_USUAL[1:], *_MORE[sampler.scheme])},
    }


def sampler_from(record: Mapping[str, Any]) -> Sampler | StagedSampler:
    """Read back what `sampler_record` wrote.

    Raises:
        ConfigError[plan-record]: a key is missing or unknown, or the kind is, or they contradict each other.
        ConfigError: a value is not one that the sampler may have.
    """
    kind = record.get("kind") if isinstance(record, Mapping) else None
    return _stages_from(record) if kind == _STAGED else _one_from(record, kind)


def _stages_from(record: Mapping[str, Any]) -> StagedSampler:
    check_keys(record, required=("kind", "num_examples", "stages"), where="sampler")
    if not isinstance(record["stages"], list):
        raise bad_record("the sampler's stages are no list.")
    stages = []
    for part in record["stages"]:
        check_keys(part, required=("num_steps", "noise_scale", "sampler"), where="a stage")
        inner = part["sampler"]
        sampler: Any = _one_from(inner, inner.get("kind") if isinstance(inner, Mapping) else None)
        stages.append(Stage(sampler=sampler, num_steps=part["num_steps"], noise_scale=part["noise_scale"]))
    staged = StagedSampler(stages=tuple(stages))
    if staged.num_examples != record["num_examples"]:
        raise bad_record(f"the sampler's N {record['num_examples']!r} is not that of its stages.")
    return staged


def _one_from(record: Mapping[str, Any], kind: object) -> Sampler:
    more = _MORE.get(kind, ()) if isinstance(kind, str) else ()
    check_keys(record, required=(*_USUAL, *more), where="sampler")
    sampler = _made(record)
    size, prob = record["expected_batch_size"], record["sampling_prob"]
    if (sampler.expected_batch_size, sampler.sampling_prob) != (size, prob):
        raise bad_record(
            f"the sampler's batch size {size!r}, probability {prob!r} and N {record['num_examples']!r} "
            "disagree."
        )
    return sampler


def _made(record: Mapping[str, Any]) -> Sampler:
    num_examples, size, prob = (record[name] for name in _USUAL[1:])
    match record["kind"]:
        case SamplingScheme.FULL_BATCH.value:
            return FullBatchSampler(num_examples=num_examples)
        case SamplingScheme.POISSON.value if num_examples is None:
            return PoissonSampler(sampling_prob=prob, expected_batch_size=size)
        case SamplingScheme.POISSON.value:
            return PoissonSampler(num_examples=num_examples, expected_batch_size=size)
        case SamplingScheme.TRUNCATED_POISSON.value:
            return TruncatedPoissonSampler(
                num_examples=num_examples,
                expected_batch_size=size,
                max_batch_size=record["max_batch_size"],
            )
        case SamplingScheme.FIXED_SIZE.value:
            whole: Any = int(size) if isinstance(size, float) and size.is_integer() else size
            return FixedSizeSampler(num_examples=num_examples, batch_size=whole)
        case kind if isinstance(kind, str) and kind in PARTITIONS:
            return PartitionSampler(
                num_examples=num_examples,
                num_batches=record["num_batches"],
                order=SamplingScheme(kind),
                seed=record["seed"],
            )
        case kind:
            raise bad_record(f"sampler kind {kind!r} is not known.")
