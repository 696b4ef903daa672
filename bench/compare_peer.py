#!/usr/bin/env python3
"""Runs `troupe bench` and ik_llama.cpp's llama-bench by turns and prints the ratio of their rates.

    bench/compare_peer.py --troupe build/release/troupe --peer ik_llama.cpp/build/bin/llama-bench \\
        --model lite-8l-q8_0.gguf --config bench/lite_8l.yaml --set runtime_config.weight_format=int8 \\
        --set runtime_config.threads_per_rank=2 [--pairs 3] [--tests prefill,decode,batch4,batch16] \\
        [--record pairs.json]

The model file has to have the configuration's shape and as many bits a weight. A pair is one run of
each; a run's rate is its median over --repeat repetitions, the printed ratio the median over the
pairs of troupe / peer of that pair. --record adds the pairs to those that a file holds already, and
prints them all: so that a long comparison may be made in several sittings. The peer's batch of B
sequences is a prompt of B tokens: random ones, so each routes by itself.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import tempfile


def batch_of(test):
    return int(test.removeprefix("batch")) if test.startswith("batch") else 1


def run_troupe(args, test):
    command = ["bench", "prefill", "--tokens", str(args.prompt)]
    if test != "prefill":
        command = ["bench", "decode", "--tokens", str(args.tokens), "--batch", str(batch_of(test))]
        if test != "decode":
            command += ["--set", f"scheduler_config.batch_size={batch_of(test)}"]
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "bench.json")
        command += ["--config", args.config, "--repeat", str(args.repeat), "--json", path]
        for setting in args.set:
            command += ["--set", setting]
        subprocess.run([*shlex.split(args.under), args.troupe, "--log-level", "error", *command],
                       check=True, stdout=subprocess.DEVNULL)
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
    limit = report["limit"] or {"fraction": None}
    return report["tokens_per_s"]["p50"], limit["fraction"]


def run_peer(args, tests):
    """{test: tokens/s}, all from one load of the model."""
    prompts = [args.prompt if test == "prefill" else batch_of(test)
               for test in tests if test != "decode"]
    command = [*shlex.split(args.under), args.peer, "-m", args.model, "-t", str(args.threads),
               "-r", str(args.repeat), "-o", "json", *shlex.split(args.peer_flags),
               "-p", ",".join(map(str, prompts)) or "0",
               "-n", str(args.tokens if "decode" in tests else 0)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rates = {}
    for row in json.loads(text[text.index("["):]):
        rate = statistics.median(row["samples_ts"])
        if row["n_prompt"] == 0:
            rates["decode"] = rate
        elif row["n_prompt"] == args.prompt:
            rates["prefill"] = rate
        else:
            rates[f"batch{row['n_prompt']}"] = rate
    return rates


def run_pair(args, tests, troupe_first):
    peer = {} if troupe_first else run_peer(args, tests)
    ours = {test: run_troupe(args, test) for test in tests}
    peer = peer or run_peer(args, tests)
    return {test: {"troupe": ours[test][0], "peer": peer[test], "limit": ours[test][1]}
            for test in tests}


def print_table(pairs):
    print(f"{'test':<10} {'pairs':>5} {'troupe/s':>9} {'peer/s':>9} {'ratio':>6} {'least':>6}"
          f" {'most':>6} {'of limit':>9}")
    for test in dict.fromkeys(test for pair in pairs for test in pair):
        cells = [pair[test] for pair in pairs if test in pair]
        ratios = [cell["troupe"] / cell["peer"] for cell in cells]
        limits = [cell["limit"] for cell in cells if cell["limit"] is not None]
        share = f"{100 * statistics.median(limits):8.0f}%" if limits else f"{'':>9}"
        print(f"{test:<10} {len(cells):>5} {statistics.median(c['troupe'] for c in cells):>9.1f}"
              f" {statistics.median(c['peer'] for c in cells):>9.1f}"
              f" {statistics.median(ratios):>6.2f} {min(ratios):>6.2f} {max(ratios):>6.2f} {share}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--troupe", required=True, help="the program")
    parser.add_argument("--peer", required=True, help="llama-bench of ik_llama.cpp")
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], help="as in troupe bench")
    parser.add_argument("--model", required=True, help="the peer's .gguf file")
    parser.add_argument("--threads", type=int, default=2, help="the peer's")
    parser.add_argument("--peer-flags", default="-mla 3 -fa 1 -fmoe 1 -rtr 1")
    parser.add_argument("--under", default="chrt -r 1", help="what both run under")
    parser.add_argument("--tests", default="prefill,decode", help="prefill, decode, batchN")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--record", help="JSON file of earlier pairs, to which these are added")
    args = parser.parse_args()
    pairs = []
    if args.record and os.path.exists(args.record):
        with open(args.record, encoding="utf-8") as file:
            pairs = json.load(file)
    for _ in range(args.pairs):
        pairs.append(run_pair(args, args.tests.split(","), troupe_first=len(pairs) % 2 == 0))
        if args.record:
            with open(args.record, "w", encoding="utf-8") as file:
                json.dump(pairs, file)
    print_table(pairs)


if __name__ == "__main__":
    main()
