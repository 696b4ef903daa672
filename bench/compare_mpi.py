#!/usr/bin/env python3
"""Runs `troupe bench` and its MPI peer by turns and prints the ratio of their times, row by row.

    bench/compare_mpi.py --build build/release [--ranks 2,4,8] [--ops all] [--rounds 3] [--moe]

A round is: the peer spinning (only where cores >= ranks), the peer with mpi_yield_when_idle, then
troupe. A cell's MPI time is the better setting's median; the ratio printed is the median over the
rounds of troupe / MPI of that round.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile


def run_mpi(args, ranks, spin):
    """Rows of one run of the peer: {(op, case, bytes): median microseconds}."""
    bind = "core" if ranks <= os.cpu_count() else "none"
    command = [
        "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", bind, "-np", str(ranks),
        "--mca", "pml", "ob1", "--mca", "btl", "self,vader",
        "--mca", "mpi_yield_when_idle", "0" if spin else "1",
        os.path.join(args.build, "peer_mpi_collectives"), str(args.seconds), args.ops,
    ]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = {}
    for line in text.splitlines():
        op, case, numbers = line[6:28].strip(), line[29:47].strip(), line[47:].split()
        rows[op, case, int(numbers[0])] = float(numbers[1])
    return rows


def run_troupe(args, ranks, command):
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "rows.json")
        subprocess.run(
            [os.path.join(args.build, "troupe"), "bench", command, "--ranks", str(ranks),
             "--ops", args.ops, "--seconds", str(args.seconds), "--json", path],
            check=True, stdout=subprocess.DEVNULL)
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)["rows"]
    return {(row["op"], row["case"], int(row["bytes"])): row["p50_us"] for row in rows}


def compare(args, ranks):
    mpi, troupe = [], []
    for _ in range(args.rounds):
        runs = [run_mpi(args, ranks, spin=False)]
        if ranks <= os.cpu_count():
            runs.append(run_mpi(args, ranks, spin=True))
        mpi.append({cell: min(run[cell] for run in runs) for cell in runs[0]})
        troupe.append({})
        for command in ["collectives"] + (["moe"] if args.moe else []):
            troupe[-1].update(run_troupe(args, ranks, command))
    for cell in troupe[0]:
        if cell not in mpi[0]:
            continue
        ratios = [ours[cell] / theirs[cell] for ours, theirs in zip(troupe, mpi)]
        print(f"{ranks:>5} {cell[0]:<22} {cell[1]:<18} {cell[2]:>12}"
              f" {statistics.median(run[cell] for run in mpi):>11.2f}"
              f" {statistics.median(run[cell] for run in troupe):>11.2f}"
              f" {statistics.median(ratios):>6.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True, help="build directory")
    parser.add_argument("--ranks", default="2,4,8")
    parser.add_argument("--ops", default="all", help="as for troupe bench collectives")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.1, help="per row")
    parser.add_argument("--moe", action="store_true", help="troupe bench moe too")
    args = parser.parse_args()
    print(f"{'ranks':>5} {'operation':<22} {'argument':<18} {'bytes':>12} {'MPI us':>11}"
          f" {'troupe us':>11} {'ratio':>6}")
    for ranks in args.ranks.split(","):
        compare(args, int(ranks))


if __name__ == "__main__":
    main()
