"""Bugs that other libraries have had, planted in a copy of ours: which tests notice.

Each is a text replaced in a copy of the sources; the tests named after it must fail there. A text that is not
found once is an error, so that a mutant cannot rot into nothing.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FM = "tests/failure_modes"

# bug, file, text, what it becomes, tests
MUTANTS = [
    (
        "noise halved",
        "noise/add.py",
        "std = noise_multiplier * bound\n",
        "std = 0.5 * noise_multiplier * bound\n",
        f"{FM}/test_noise.py::test_fm_22_noise_has_sigma_times_the_bound_on_the_sum",
    ),
    (
        "noise added in float32",
        "noise/add.py",
        "y = z.mul_(std).add_(block)",
        "y = z.mul_(std).float().add_(block.float()).double()",
        f"{FM}/test_noise.py -k fm_34",
    ),
    (
        "one noise for all tensors and steps",
        "noise/source.py",
        'self._keystream.read_into(words.numpy().data.cast("B"))',
        "words.copy_(torch.randint(-2**62, 2**62, words.shape, generator=torch.Generator().manual_seed(0)))",
        f"{FM}/test_noise.py -k 'fm_25 or fm_29'",
    ),
    (
        "noise keyed by the user's seed",
        "noise/source.py",
        "return cls(Keystream(os.urandom(KEY_BYTES)), private=True)",
        "return cls(Keystream(torch.initial_seed().to_bytes(32, 'little')), private=True)",
        f"{FM}/test_noise.py -k fm_25",
    ),
    (
        "divided by what was drawn",
        "train/_step.py",
        "self._release(opened._close())",
        "object.__setattr__(self.plan.sampler, 'expected_batch_size', 1.0 + len(batch.indices))\n"
        "            self._release(opened._close())",
        f"{FM}/test_account_and_ledger.py -k fm_47",
    ),
    (
        "shuffled batches accounted as Poisson",
        "sample/samplers.py",
        "count = rng.binomial(num_available, self.sampling_prob)",
        "count = round(num_available * self.sampling_prob)",
        f"{FM}/test_sampling.py -k fm_37",
    ),
    (
        "24-bit coins",
        "sample/samplers.py",
        "rng.binomial(num_available, self.sampling_prob)",
        "rng.binomial(num_available, np.ceil(self.sampling_prob * 2**24) / 2**24)",
        f"{FM}/test_sampling.py -k fm_39",
    ),
    (
        "a step released before it is entered",
        "train/_step.py",
        "            self.ledger.append_step(plan.mechanism)  # durable before anything can depend on it\n",
        "",
        f"{FM}/test_account_and_ledger.py -k 'fm_53 or fm_54'",
    ),
    (
        "no fsync",
        "account/_ledger_file.py",
        "        os.fsync(file.fileno())\n",
        "        pass\n",
        f"{FM}/test_account_and_ledger.py -k fm_54",
    ),
    (
        "replace-one with half its sensitivity",
        "account/_replace.py",
        "dp_accounting.NeighboringRelation.REPLACE_ONE",
        "dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE",
        "tests/account/test_epsilon.py -k test_replace_one_is_at_least",
    ),
    (
        "PLD without its margin",
        "account/_bounds.py",
        "return (sum(phase.num_steps for phase in phases) + 16 * len(phases)) * _FFT_UNIT",
        "return 0.0",
        f"{FM}/test_account_and_ledger.py -k fm_60",
    ),
    (
        "a fifth of the steps forgotten",
        "account/_epsilon.py",
        "    phases = merge_phases(segments)\n    replaced",
        "    phases = merge_phases([(m, n - n // 5) for m, n in segments])\n    replaced",
        f"{FM}/test_account_and_ledger.py -k fm_53",
    ),
    (
        "noise multiplier of NaN accepted",
        "records.py",
        "and not isinstance(value, bool) and math.isfinite(value)",
        "and not isinstance(value, bool)",
        f"{FM}/test_noise.py -k fm_32",
    ),
    (
        "any optimizer, closures too",
        "train/_guards.py",
        "    if _needs_closure(optimizer):",
        "    if False:",
        f"{FM}/test_noise.py -k fm_30",
    ),
    (
        "several ranks accepted",
        "train/_guards.py",
        "    if size > 1 or wrappers or sharded:",
        "    if False:",
        f"{FM}/test_noise.py -k fm_24",
    ),
    (
        "streams accepted",
        "plan/_batches.py",
        'kind.__name__ == "IterableDataset"',
        'kind.__name__ == "-"',
        f"{FM}/test_sampling.py -k fm_45",
    ),
    (
        "the batch's loss not looked at",
        "clip/_isolation.py",
        "    loss = losses(few)\n",
        "    return\n    loss = losses(few)\n",
        f"{FM}/test_isolation.py -k 'fm_02 or fm_03'",
    ),
    (
        "raw sums left for the optimizer",
        "train/_sums.py",
        "        t.fill_(torch.nan)\n",
        "        pass\n",
        f"{FM}/test_noise.py -k fm_36",
    ),
    (
        "other weights released",
        "report/_verify.py",
        "        released == kept,\n",
        "        True,\n",
        "tests/report/test_verify.py -k 'changed and weights'",
    ),
]


def run(mutant):
    """Plant one bug and run its tests; a dict that says whether they failed."""
    bug, file, old, new, tests = mutant
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        path = source / "reticent" / file
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            return {"bug": bug, "caught": None, "by": tests, "problem": f"text found {text.count(old)} times"}
        path.write_text(text.replace(old, new), encoding="utf-8")
        env = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            f"{sys.executable} -m pytest -q -x -p no:cacheprovider {tests}",
            shell=True,
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
        )
    last = (done.stdout.strip().splitlines() or [""])[-1]
    return {"bug": bug, "caught": done.returncode == 1, "by": tests, "last line": last}
