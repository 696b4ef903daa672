#!/usr/bin/env python3
"""Runs `troupe bench collectives` and `troupe bench moe` by turns with a peer and prints the ratio
of their times, row by row.

A round is the peer, then troupe. Open MPI runs twice in it, spinning (where there are as many cores
as ranks) and with mpi_yield_when_idle: its time in a cell is the better median of the two. Gloo runs
once; it has no MoE rows. The ratio printed is the median over the rounds of troupe / peer of that
round, so that what slows down both for a while does not show. Rows that only one of them has are
left out.

Needs a build with tests (cmake -DTROUPE_TESTS=ON) on a machine with libopenmpi-dev, or libgloo-dev.

  bench/compare_mpi.py --build build/release
  bench/compare_mpi.py --build build/release --ranks 8 --ops "barrier,moe round" --rounds 5
  bench/compare_mpi.py --build build/release --peer gloo --ops "barrier,allgather"
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

MOE_PREFIX = "moe round"


def rows_of(text):
    """A peer's printed rows: {(op, case, bytes): median microseconds}."""
    rows = {}
    for line in text.splitlines():
        op, case, numbers = line[6:28].strip(), line[29:47].strip(), line[47:].split()
        rows[op, case, int(numbers[0])] = float(numbers[1])
    return rows


def run_peer(args, command, program, arguments=()):
    path = os.path.join(args.build, program)
    if not os.access(path, os.X_OK):
        sys.exit(f"compare_mpi.py: there is no {path}: its library was not found when that was built")
    done = subprocess.run([*command, path, *arguments, str(args.seconds), args.ops],
                          stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"compare_mpi.py: {program} failed with status {done.returncode}")
    return rows_of(done.stdout)


def run_mpi(args, ranks, spin):
    bind = "core" if ranks <= os.cpu_count() else "none"
    return run_peer(args, [
        "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", bind,
        "-np", str(ranks), "--mca", "pml", "ob1", "--mca", "btl", "self,vader",
        "--mca", "mpi_yield_when_idle", "0" if spin else "1"], "peer_mpi_collectives")


def run_chosen_peer(args, ranks):
    """The better time of each cell."""
    if args.peer == "gloo":
        return run_peer(args, [], "peer_gloo_collectives", [str(ranks)])
    runs = [run_mpi(args, ranks, spin=False)]
    if ranks <= os.cpu_count():
        runs.append(run_mpi(args, ranks, spin=True))
    return {cell: min(run[cell] for run in runs) for cell in runs[0]}


def run_troupe(args, ranks, command, ops):
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "rows.json")
        chunk = ["--moe-chunk-max-len", str(args.moe_chunk_max_len)] if command == "moe" else []
        done = subprocess.run(
            [os.path.join(args.build, "troupe"), "bench", command, "--ranks", str(ranks),
             "--ops", ",".join(ops), "--seconds", str(args.seconds), "--json", path, *chunk],
            stdout=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            sys.exit(f"compare_mpi.py: troupe bench {command} failed")
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)["rows"]
    return {(row["op"], row["case"], int(row["bytes"])): row["p50_us"] for row in rows}


def troupe_commands(args):
    """What `troupe bench` is to run: {"collectives": [ops], "moe": [ops]}."""
    ops = args.ops.split(",")
    if ops == ["all"]:
        commands = {"collectives": ["all"], "moe": [MOE_PREFIX]}
    else:
        commands = {"collectives": [op for op in ops if not op.startswith(MOE_PREFIX)],
                    "moe": [op for op in ops if op.startswith(MOE_PREFIX)]}
    if args.peer == "gloo":
        commands["moe"] = []
    return {command: ops for command, ops in commands.items() if ops}


def compare(args, ranks):
    peer, troupe = [], []
    for _ in range(args.rounds):
        peer.append(run_chosen_peer(args, ranks))
        troupe.append({})
        for command, ops in troupe_commands(args).items():
            troupe[-1].update(run_troupe(args, ranks, command, ops))
    for cell in troupe[0]:
        if cell not in peer[0]:
            continue
        ratios = [ours[cell] / theirs[cell] for ours, theirs in zip(troupe, peer)]
        print(f"{ranks:>5} {cell[0]:<22} {cell[1]:<18} {cell[2]:>12}"
              f" {statistics.median(run[cell] for run in peer):>11.2f}"
              f" {statistics.median(run[cell] for run in troupe):>11.2f}"
              f" {statistics.median(ratios):>6.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True, help="the build directory of both programs")
    parser.add_argument("--peer", choices=["mpi", "gloo"], default="mpi", help="default: mpi")
    parser.add_argument("--ranks", default="2,4,8", help="numbers of ranks (default: 2,4,8)")
    parser.add_argument("--ops", default="all",
                        help='all, or operations as in the column "operation", separated by commas;'
                             ' "moe round" is one of them (default: all)')
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--moe-chunk-max-len", type=int, default=512,
                        help="as for troupe bench moe (default: 512)")
    parser.add_argument("--seconds", type=float, default=0.1, help="for a row (default: 0.1)")
    args = parser.parse_args()
    print(f"{'ranks':>5} {'operation':<22} {'argument':<18} {'bytes':>12} {args.peer + ' us':>11}"
          f" {'troupe us':>11} {'ratio':>6}")
    for ranks in args.ranks.split(","):
        compare(args, int(ranks))


if __name__ == "__main__":
    main()
