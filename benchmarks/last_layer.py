"""What a release of `last-layer` costs: time beside bare matrix products, and memory as the store grows.

    python -m benchmarks.last_layer --rows 10000,100000 --dim 2048 --classes 1000 --out last-layer.json
    python -m benchmarks.last_layer --rows 1281167 --dim 2048 --classes 1000 --precision float16

A store of made-up features is written to a temporary folder (`--folder` says where) and deleted again. Each
statistic is summed once over all rows, in a process of its own, from disk. `limit_seconds` is the time of the
same matrix products, and nothing else, on as many rows of one block that is in memory already; `ratio` is the
pass over that limit; `cpu_ratio` is the same in processor time, which other work on the machine does not
change. `peak_mib` is the process's peak resident memory. Noise and post-processing do not grow
with the rows; they are timed apart.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reticent.noise import CipherNoise, add_noise
from reticent.recipes.features import Fingerprint, Shape, StoreWriter, open_store
from reticent.recipes.features._rows import Preparation, block_rows, raw_blocks
from reticent.recipes.features._sums import (
    Statistic,
    class_sums,
    gradient,
    gram,
    hessians,
    rows_of_a_block,
    sum_of,
)

STATISTICS = ("one-step", "fc-gram", "least-squares", "newton")


def statistics_of(name: str, dim: int, num_classes: int) -> Mapping[str, Statistic]:
    """What one release of a method sums."""
    weight = torch.zeros(num_classes, dim, dtype=torch.float64)
    grad = gradient(weight, loss="softmax", bias=0.0, max_norm=1.0)
    match name:
        case "one-step":
            return {"gradient": grad}
        case "fc-gram":
            return {"gram": gram(dim, bound=1.0)}
        case "least-squares":
            return {"gram": gram(dim, bound=1.0), "sums": class_sums(num_classes, dim, bound=1.0)}
        case "newton":
            return {"gradient": grad, "hessians": hessians(weight, loss="softmax", bias=0.0, bound=1.0)}
    raise ValueError(name)


def products_of(name: str, x: Tensor, num_classes: int) -> Callable[[], None]:
    """The matrix products of one block of `name`, into memory that is there already."""
    weight, r = torch.zeros(num_classes, x.shape[1]), torch.zeros(len(x), num_classes)
    z, g = torch.empty(len(x), num_classes), torch.empty(num_classes, x.shape[1])
    square = torch.empty(x.shape[1], x.shape[1])

    def outputs_and_gradient() -> None:
        torch.mm(x, weight.mT, out=z)
        torch.mm(r.mT, x, out=g)

    def run() -> None:
        if name in ("one-step", "newton"):
            outputs_and_gradient()
        if name in ("fc-gram", "least-squares"):
            torch.mm(x.mT, x, out=square)
        if name == "least-squares":
            torch.mm(r.mT, x, out=g)
        if name == "newton":
            for _ in range(num_classes):
                torch.mm(x.mT, x, out=square)

    return run


def limit_seconds(
    name: str, num_rows: int, dim: int, num_classes: int, *, max_rows: int = 50_000
) -> tuple[float, float]:
    """Time and processor time of the bare products over `num_rows` rows, from at most `max_rows` of them."""
    size = rows_of_a_block(statistics_of(name, dim, num_classes), block_rows(dim))
    block = torch.randn(size, dim)
    products = products_of(name, block, num_classes)
    products()
    rounds = max(1, min(num_rows, max_rows) // len(block))
    began, cpu_began = time.perf_counter(), time.process_time()
    for _ in range(rounds):
        products()
    share = num_rows / (rounds * len(block))
    return (time.perf_counter() - began) * share, (time.process_time() - cpu_began) * share


def make_store(folder: Path, num_rows: int, dim: int, num_classes: int, precision: Any) -> None:
    """A store of made-up features: one random block over and over, so that writing is quick."""
    fingerprint = Fingerprint(
        model="made up", weights="0" * 64, preprocess={}, data="made up", data_sha256="0" * 64
    )
    shape = Shape(
        num_rows={"train": num_rows},
        dim=dim,
        precision=precision,
        class_names=tuple(map(str, range(num_classes))),
    )
    generator = np.random.default_rng(0)
    block = generator.normal(size=(8192, dim)).astype(precision)
    with StoreWriter.begin(folder, fingerprint=fingerprint, shape=shape) as writer:
        for start in range(0, num_rows, len(block)):
            writer.append("train", block[: num_rows - start])
        writer.put_labels("train", generator.integers(num_classes, size=num_rows))
        writer.finish()


def one_pass(name: str, folder: Path, threads: int) -> dict[str, float]:
    """Sum a statistic over a store, in this process."""
    torch.set_num_threads(threads)
    store = open_store(folder)
    num_classes = len(store.class_names)
    statistics = statistics_of(name, store.dim, num_classes)
    preparation, split = Preparation(), store.split("train")

    def summed(rows: Any) -> Any:
        return sum_of((preparation.apply(x, y) for x, y in rows), statistics)

    size = rows_of_a_block(statistics, block_rows(store.dim))
    first = raw_blocks(split, block_rows=size, indices=np.arange(min(size, len(split))))
    summed(first)  # the first call of each kernel is slow
    began, cpu_began = time.perf_counter(), time.process_time()
    bounded = summed(raw_blocks(split, block_rows=size))
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    began = time.perf_counter()
    add_noise(bounded, noise_multiplier=1.0, source=CipherNoise.fresh())
    noise_seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    limit, cpu_limit = limit_seconds(name, len(split), store.dim, num_classes)
    return {
        "seconds": round(seconds, 6),
        "limit_seconds": round(limit, 6),
        "ratio": round(seconds / limit, 3),
        "cpu_ratio": round(cpu_seconds / cpu_limit, 3),
        "noise_seconds": round(noise_seconds, 6),
        "peak_mib": round(peak, 1),
    }


def measure(
    rows: Sequence[int], dim: int, num_classes: int, names: Sequence[str], *, precision: str, root: Path
) -> dict[str, Any]:
    """Statistic -> number of rows -> figures."""
    found: dict[str, Any] = {name: {} for name in names}
    for num_rows in rows:
        with tempfile.TemporaryDirectory(dir=root) as where:
            folder = Path(where) / "store"
            make_store(folder, num_rows, dim, num_classes, precision)
            for name in names:
                child = [sys.executable, "-m", "benchmarks.last_layer", "--child", name, str(folder)]
                done = subprocess.run(child, capture_output=True, text=True, check=True)
                found[name][str(num_rows)] = json.loads(done.stdout)
                print(f"{name} {num_rows}: {found[name][str(num_rows)]}", file=sys.stderr, flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", default="10000,100000", help="numbers of rows, with commas")
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--statistics", default="one-step,fc-gram,least-squares", help=", ".join(STATISTICS))
    parser.add_argument("--precision", choices=("float16", "float32"), default="float16")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
    if given.child:
        print(json.dumps(one_pass(given.child[0], Path(given.child[1]), threads)))
        return
    figures = measure(
        [int(n) for n in given.rows.split(",")],
        given.dim,
        given.classes,
        given.statistics.split(","),
        precision=given.precision,
        root=given.folder,
    )
    result = {
        "command": "python -m benchmarks.last_layer " + " ".join(arguments or sys.argv[1:]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "dim": given.dim,
        "classes": given.classes,
        "precision": given.precision,
        "threads": threads,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "statistics": figures,
    }
    text = json.dumps(result, indent=2) + "\n"
    if given.out:
        given.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
