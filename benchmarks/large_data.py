"""Data larger than memory: rows a second by random access, and the memory that it takes.

    python -m benchmarks.large_data --rows 20000 200000 --out large-data.json

Images of 3 x 32 x 32 bytes with a label, as arrays in memory, memory-mapped arrays, an Arrow table on disk
(`datasets`) and tar shards with an index. Each form reads Poisson batches of 1,024 through `Plan.batches`, in
a process of its own; the memory is what is added to its own once the data are opened and read. Files
are in the page cache: the disk is not measured.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import torch

FORMS = ("in memory", "memory-mapped", "arrow", "tar shards")
SHAPE, BATCH, ROWS_READ = (3, 32, 32), 1024, 8192


def write(folder, num_rows):
    """The same rows in every form."""
    x = np.random.default_rng(0).integers(0, 256, (num_rows, *SHAPE), dtype=np.uint8)
    y = np.arange(num_rows, dtype=np.int64) % 10
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    import datasets

    def parts():
        for row, label in zip(x, y, strict=True):
            yield {"x": row, "y": label}

    kinds = datasets.Features({"x": datasets.Array3D(SHAPE, "uint8"), "y": datasets.Value("int64")})
    table = datasets.Dataset.from_generator(parts, features=kinds, cache_dir=str(folder / "cache"))
    table.save_to_disk(str(folder / "arrow"))
    with tarfile.open(folder / "rows.tar", "w") as archive:
        for number, (row, label) in enumerate(zip(x, y, strict=True)):
            for ending, content in (("img", row.tobytes()), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{number:08d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def open_data(folder, form):
    """The data set of a form."""
    if form == "in memory":
        return np.load(folder / "x.npy"), np.load(folder / "y.npy")
    if form == "memory-mapped":
        return np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "y.npy", mmap_mode="r")
    if form == "arrow":
        import datasets

        return datasets.load_from_disk(str(folder / "arrow")).with_format("torch")
    from reticent.data import TarShards

    def decode(files):
        image = torch.frombuffer(bytearray(files["img"]), dtype=torch.uint8).view(SHAPE)
        return image, int(files["cls"])

    return TarShards(folder, decode=decode)


def own_memory():
    """Bytes that are this process's own: not pages of files, which the system can drop at any time."""
    now = psutil.Process().memory_info()
    return now.rss - now.shared


def measure(folder, form):
    """Rows a second of each batch, and memory."""
    from reticent.clipping import FlatClipping
    from reticent.plan import Plan
    from reticent.sample import PoissonSampler
    from reticent.train._rows import fetch, num_rows

    if form == "arrow":
        import datasets  # noqa: F401  # its own memory is not the data's
    before = own_memory()
    began = time.perf_counter()
    data = open_data(folder, form)
    opened, after = time.perf_counter() - began, own_memory()
    plan = Plan(
        sampler=PoissonSampler(num_examples=num_rows(data), expected_batch_size=BATCH),
        num_steps=ROWS_READ // BATCH,
        noise_multiplier=1.0,
        clipping=FlatClipping(max_norm=1.0),
        delta=1e-6,
    )
    rates = []
    for batch in plan.batches(data):
        began = time.perf_counter()
        fetch(data, batch.indices)
        rates.append(len(batch.indices) / (time.perf_counter() - began))
    peak = max(after, own_memory())
    return {
        "rows_per_second": round(statistics.median(rates)),
        "mib": round((peak - before) / 2**20, 1),
        "seconds_to_open": round(opened, 3),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--out", type=Path, default=Path("large-data.json"))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        print(json.dumps(measure(Path(asked.worker[0]), asked.worker[1])))
        return
    found = {}
    for num_rows in asked.rows:
        with tempfile.TemporaryDirectory() as name:
            write(Path(name), num_rows)
            size = (Path(name) / "x.npy").stat().st_size / 2**20
            for form in FORMS:
                command = [sys.executable, "-m", "benchmarks.large_data", "--worker", name, form]
                subprocess.run(command, capture_output=True, check=True)  # makes the index, warms the cache
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[f"{num_rows} rows, {form}"] = json.loads(done.stdout.splitlines()[-1])
                print(num_rows, f"rows ({size:.0f} MiB)", form, done.stdout.splitlines()[-1], file=sys.stderr)
    record = {
        "date": date.today().isoformat(),
        "hardware": f"{torch.get_num_threads()} CPU threads",
        "versions": {name: version(name) for name in ("reticent", "torch", "numpy", "datasets", "pyarrow")},
        "command": "python -m benchmarks.large_data --rows " + " ".join(map(str, asked.rows)),
        "found": found,
    }
    asked.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
