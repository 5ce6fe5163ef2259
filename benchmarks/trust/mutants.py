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
        "self._release(opened._close(), self.plan.at(batch.step))",
        "object.__setattr__(self.plan.sampler, 'expected_batch_size', 1.0 + len(batch.indices))\n"
        "            self._release(opened._close(), self.plan.at(batch.step))",
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
        "isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST",
        "isinstance(value, int | float) and not isinstance(value, bool)",
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
        "(size > 1 and ranks.size == 1, f",
        "(False, f",
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
        "    if units < 2 or size % units:\n        return\n",
        "    return\n",
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
        "        bytes_of(weights) == kept,\n",
        "        True,\n",
        "tests/report/test_verify.py -k 'changed and weights'",
    ),
    (
        "a key of 32 bits",
        "noise/source.py",
        "return cls(Keystream(os.urandom(KEY_BYTES)), private=True)",
        "return cls(Keystream(os.urandom(4) + bytes(KEY_BYTES - 4)), private=True)",
        f"{FM}/test_noise.py -k fm_27",
    ),
    (
        "a path without noise",
        "noise/add.py",
        "    if std == 0.0:\n",
        "    if total.dtype == torch.float64 or std == 0.0:\n",
        f"{FM}/test_noise.py -k fm_31",
    ),
    (
        "each rank's noise shared out, and its sum too",
        "dist/_replicas.py",
        "noise_multiplier=noise_multiplier, source=source",
        "noise_multiplier=noise_multiplier / self.size**0.5, source=source",
        "tests/dist/test_replicas.py -k noise_in_total",
    ),
    (
        "one use of a tied parameter is forgotten",
        "clip/_passes.py",
        "self._consumer.take(name, combine(forms))",
        "self._consumer.take(name, combine(forms[:1]))",
        f"{FM}/test_isolation.py -k fm_07",
    ),
    (
        "a record that is not finite enters the sum",
        "clip/_passes.py",
        "        keep_U = torch.isfinite(norm_U)\n",
        "        keep_U = torch.ones_like(norm_U, dtype=torch.bool)\n",
        f"{FM}/test_isolation.py -k fm_11",
    ),
    (
        "the clipping norm never reaches the clipper",
        "clip/_groups.py",
        "bound = self.max_norm if max_norm is None else max_norm",
        "bound = 1.0 if max_norm is None else max_norm",
        f"{FM}/test_isolation.py -k fm_06",
    ),
    (
        "the padding row counts",
        "rules/_embedding.py",
        "        if self.padding_idx is not None:\n            g_UPD",
        "        if False:\n            g_UPD",
        f"{FM}/test_isolation.py -k fm_04",
    ),
    (
        "norms from inner products as they come",
        "rules/_rounding.py",
        "    slack = 4 * torch.finfo(terms.dtype).eps * sizes * (1 + 1e-3)\n",
        "    slack = 0.0 * sizes\n",
        f"{FM}/test_isolation.py -k fm_13",
    ),
    (
        "squares in half precision",
        "rules/_rounding.py",
        "    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t\n",
        "    return t\n",
        f"{FM}/test_isolation.py -k fm_12",
    ),
    (
        "modules that mix the batch are accepted",
        "clip/_proven.py",
        "    if mixed:\n        raise mixing_error(capture, mixed, found, diverged=ones.not_finite())\n",
        "    if mixed:\n        raise NotProven\n",
        "tests/clip/test_engine.py -k test_two_of_many_units_that_mix",
    ),
    (
        "a buffer that the data change is accepted",
        "clip/_guards.py",
        '        if changed:\n            raise UnsupportedModel(\n                f"The forward changes',
        '        if False:\n            raise UnsupportedModel(\n                f"The forward changes',
        f"{FM}/test_account_and_ledger.py -k fm_63",
    ),
    (
        "parameters added after the beginning are not looked for",
        "train/_guards.py",
        "        if changed:\n            raise StepError(\n",
        "        if False:\n            raise StepError(\n",
        f"{FM}/test_isolation.py -k fm_09",
    ),
    (
        "groups of a convolution forgotten",
        "rules/_conv.py",
        "conf = ConvSettings(_tuple(stride, dims), pad, spread, False, zeros, groups)",
        "conf = ConvSettings(_tuple(stride, dims), pad, spread, False, zeros, 1)",
        f"{FM}/test_isolation.py -k fm_08",
    ),
    (
        "only the last chunk's sum",
        "train/_step.py",
        "        added = self._engine.clipped_sum(losses, chunk, out=sums.total, **options)\n",
        "        [t.zero_() for t in sums.total.values()]\n"
        "        added = self._engine.clipped_sum(losses, chunk, out=sums.total, **options)\n",
        f"{FM}/test_noise.py -k fm_23",
    ),
    (
        "empty batches skipped",
        "train/_step.py",
        "self._release(opened._close(), self.plan.at(batch.step))",
        "closed = opened._close()\n            if len(batch.indices):\n"
        "                self._release(closed, self.plan.at(batch.step))",
        f"{FM}/test_sampling.py -k fm_41",
    ),
    (
        "steps after a checkpoint forgotten on resume",
        "account/_ledger_chain.py",
        "            self._resumes.append((self.num_steps, self._lost_at(step) + self.num_steps - step))\n",
        "            mechanism, count = self._segments[-1]\n"
        "            self._segments[-1] = (mechanism, count - self.num_steps + step)\n"
        "            self.num_steps = step\n",
        f"{FM}/test_account_and_ledger.py -k fm_55",
    ),
    (
        "the count of adaptive clipping costs nothing",
        "plan/_steps.py",
        "        gradient, count = split_noise(noise_multiplier, clipping.count_noise_multiplier)\n",
        "        count = split_noise(noise_multiplier, clipping.count_noise_multiplier)[1]\n",
        "tests/plan/test_plan.py",
    ),
    (
        "the bound of groups is that of the largest one",
        "clipping.py",
        "return math.nextafter(math.hypot(*(norm for _, norm in clipping.max_norms)), math.inf)",
        "return max(norm for _, norm in clipping.max_norms)",
        f"{FM}/test_isolation.py -k fm_14",
    ),
    (
        "a batch schedule's border a step late",
        "plan/_plan.py",
        "            if left < kind.num_steps:\n",
        "            if left <= kind.num_steps:\n",
        "tests/plan/test_stages.py -k test_each_step_draws_with_the_probability_of_its_own_stage",
    ),
    (
        "a learning rate half-way down its schedule at the end",
        "train/_loop.py",
        "gone = min(1.0, step / settings.lr_decay_steps)",
        "gone = min(0.5, 0.5 * step / settings.lr_decay_steps)",
        "tests/train/test_lr_decay.py",
    ),
    (
        "gradients of zero prove that examples are apart",
        "clip/_probe.py",
        "seen = bool((projections.abs() > _NOTHING[projections.dtype]).any())",
        "seen = True",
        "tests/clip/test_refusals.py -k test_a_batch_that_shows_nothing_proves_nothing",
    ),
    (
        "what the self-check proved, without random draws, counts in training",
        "clip/_engine.py",
        "            self.proofs.forget()",
        "            pass",
        "tests/clip/test_proven.py -k test_what_was_proven_without_random_draws",
    ),
    (
        "a term of the loss is switched on unseen",
        "clip/_capture.py",
        "found.append(leaf == 0)",
        "pass",
        "tests/clip/test_proven.py -k test_a_term_that_is_switched_on",
    ),
]


def run(mutant):
    """Run its tests without a bug, then with it; a dict that says whether they passed and then failed."""
    bug, file, old, new, tests = mutant
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        path = source / "reticent" / file
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            return {"bug": bug, "caught": None, "by": tests, "last line": f"found {text.count(old)} times"}
        status, last = _pytest(source, tests)
        if status != 0:
            return {"bug": bug, "caught": None, "by": tests, "last line": f"without the bug: {last}"}
        path.write_text(text.replace(old, new), encoding="utf-8")
        status, last = _pytest(source, tests)
    return {"bug": bug, "caught": status == 1, "by": tests, "last line": last}


def _pytest(source, tests):
    """Exit status and last line."""
    env = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        f"{sys.executable} -m pytest -q -x -p no:cacheprovider {tests}",
        shell=True,
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    return done.returncode, (done.stdout.strip().splitlines() or [""])[-1]
