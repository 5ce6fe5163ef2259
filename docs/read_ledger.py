"""What a run spent, from its ledger and the Python standard library alone.

python read_ledger.py RUN/ledger.jsonl
"""

import base64
import hashlib
import json
import sys


def read(path):
    """(header, [[mechanism, number of steps], ...], head); raises ValueError if the chain is broken."""
    head, header, spent = "A" * 22, {}, []
    with open(path, encoding="ascii") as file:
        for seq, line in enumerate(file):
            if not line.endswith("\n") and not line.endswith('"}'):
                break  # an append that a crash cut short
            if line.startswith('{"hash":"'):  # a step: its number and what it follows go without saying
                line = f'{{"seq":{seq},"prev":"{head}",{line[1:]}'
            text, digest = line.rstrip("\n")[:-33], line.rstrip("\n")[-24:-2]
            entry, hashed = json.loads(text + "}"), hashlib.sha256((text + "}").encode()).digest()
            if digest != base64.urlsafe_b64encode(hashed[:16]).decode()[:22]:
                raise ValueError(f"line {seq + 1} was changed")
            if entry["seq"] != seq or entry["prev"] != head:
                raise ValueError(f"line {seq + 1} does not follow the line before it")
            head, kind = digest, entry.get("kind", "step")
            if kind == "header":
                header = entry
            elif kind == "reproducible":
                header["reproducible"] = True
            elif kind == "segment":
                sizes = {k: v for k, v in entry.items() if k.startswith(("num_", "batch_"))}
                spent.append([(entry["scheme"], entry["sampling_prob"], entry["noise_multiplier"], sizes), 0])
            elif kind == "step":
                spent[-1][1] += 1
    return header, [part for part in spent if part[1]], head


if __name__ == "__main__":
    header, spent, head = read(sys.argv[1])
    print(f"run {header['run_id']}, {header['relation']}, delta {header['delta']:g}")
    print("NOT private: reproducible noise" if header["reproducible"] else "noise was secret")
    for (scheme, prob, noise, sizes), steps in spent:
        more = "".join(f", {name} {size}" for name, size in sizes.items())
        print(f"{steps} steps: {scheme}, sampling probability {prob:g}, noise multiplier {noise:g}{more}")
    print(f"{sum(n for _, n in spent)} of {header['planned_steps']} planned steps; head {head}")
