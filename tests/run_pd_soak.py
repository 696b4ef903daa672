#!/usr/bin/env python3
"""Separated serving under load, aborts and deaths: every request that is let live has the right tokens.

    tests/run_pd_soak.py [--troupe build/release/troupe] [--requests 2000] [--aborts 0.05]
                         [--kills decode,prefill,router] [--handoff map|pull] [--seed 1]

Starts a router, one prefill and two decode instances of tiny-moe, sends requests of mixed lengths
(some sampled), 16 at a time, lets some clients leave at random moments, and kills with SIGKILL a
rank of an instance, or the router, when a part of the requests is done; what was killed is started
again. Expected tokens come from `troupe serve` on one rank. A request may fail only while something
is dead or has just died. At the end no block may be in use anywhere, and no process be left. Needs python3
alone. Exit status 1 if anything was otherwise.
"""

import argparse
import collections
import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

SOURCE = pathlib.Path(__file__).resolve().parents[1]
MODEL = SOURCE / "models/tiny-moe"
CONCURRENT = 16
GRACE_S = 30  # after a death, in which requests may fail


class Part:
    """One `troupe serve` process."""

    def __init__(self, troupe, directory, name, role, config, router=None, options=()):
        self.name = name
        self.words = [troupe, "--log-level", "warn", "serve", "--config", str(config), "--port", "0"]
        if role:
            self.words += ["--pd-role", role, "--router", router]
        self.words += options
        self.log = directory / f"{name}.log"
        self.start()

    def start(self):
        self.out = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(self.words, stdout=self.out, stderr=self.log.open("a"),
                                        env={**os.environ, "TROUPE_KV_CHECKSUM": "1"})

    def port(self):
        while self.process.poll() is None:
            self.out.seek(0)
            found = re.search(r"http://[^:]*:(\d+)", self.out.read())
            if found:
                return int(found[1])
            time.sleep(0.05)
        sys.exit(f"{self.name} ended: {self.log.read_text()}")

    def rank_pids(self):
        path = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def end(self):
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(60)


def post(port, body, leave_after=None):
    """The tokens of a request, or None if its client has left; RuntimeError when it fails."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
        if leave_after is not None:
            time.sleep(leave_after)
            return None
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {text}")
        return json.loads(text)["result"]["output_ids"]
    except (OSError, http.client.HTTPException) as error:
        raise RuntimeError(repr(error)) from None
    finally:
        connection.close()


def make_requests(count, seed):
    generator = random.Random(seed)
    bodies = []
    for _ in range(min(count, 200)):  # repeated: prefixes are found again
        length = int(10 ** generator.uniform(0, 2.9))
        settings = {"max_tokens": generator.randint(1, 60), "ignore_eos": True}
        if generator.random() < 0.4:
            settings.update(temperature=0.9, top_p=0.95, seed=generator.randint(1, 1000))
        bodies.append({"prompt": [generator.randint(1, 500) for _ in range(length)],
                       "sampling_params": settings})
    return [bodies[i % len(bodies)] for i in range(count)], generator


class Soak:
    def __init__(self, arguments, directory):
        self.arguments = arguments
        self.lock = threading.Lock()
        self.ended = collections.Counter()
        self.wrong, self.unexpected = [], []
        self.last_death = -1e9
        self.directory = directory
        name = f"soak-{os.getpid()}"
        common = ["--set", f"model_config.model_path={MODEL}",
                  "--set", "scheduler_config.block_size=32", "--set", "runtime_config.comm_buffer_mb=4",
                  "--set", "parallel_config.world_size=2"]
        troupe, config = arguments.troupe, SOURCE / "configs/tiny_moe.yaml"
        self.router = Part(troupe, directory, "router", "router", config, name,
                           common + ["--max-queued-requests", "4096"])
        tp = ["--set", "parallel_config.attn_tp_size=2"]
        self.prefill = Part(troupe, directory, "prefill", "prefill", config, name, common + tp)
        decode = common + ["--kv-handoff", arguments.handoff, "--set", "scheduler_config.batch_size=8"]
        self.decodes = [Part(troupe, directory, f"decode{i}", "decode", config, name, decode)
                        for i in range(2)]
        self.port = self.router.port()

    def parts(self):
        return [self.router, self.prefill, *self.decodes]

    def status(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/status")
        status = json.loads(connection.getresponse().read())
        connection.close()
        return status

    def one(self, body, expected, leave_after):
        began = time.monotonic()
        try:
            tokens = post(self.port, body, leave_after)
        except RuntimeError as error:
            time.sleep(0.2)
            with self.lock:
                excused = began - GRACE_S < self.last_death
                self.ended["failed, excused" if excused else "failed"] += 1
                if not excused:
                    self.unexpected.append(str(error)[:200])
            return
        with self.lock:
            self.ended["left" if tokens is None else "answered"] += 1
            if tokens is not None and tokens != expected:
                self.wrong.append((body, tokens, expected))

    def kill(self, what):
        with self.lock:
            self.last_death = time.monotonic()
        part = {"router": self.router, "prefill": self.prefill, "decode": self.decodes[0]}[what]
        print(f"SIGKILL: {'the router' if what == 'router' else 'a rank of ' + part.name}", flush=True)
        victim = part.process.pid if what == "router" else random.choice(part.rank_pids())
        os.kill(victim, signal.SIGKILL)
        part.process.wait(60)
        part.start()
        if what == "router":
            self.port = part.port()
        while len(self.status()["pools"]) < 3:
            time.sleep(0.1)
        with self.lock:
            self.last_death = time.monotonic() - GRACE_S + 5  # a little for what was under way

    def run(self, bodies, expected, generator):
        kills = [k for k in self.arguments.kills.split(",") if k]
        at = {len(bodies) * (i + 1) // (len(kills) + 1): kill for i, kill in enumerate(kills)}
        while len(self.status()["pools"]) < 3:
            time.sleep(0.1)
        with concurrent.futures.ThreadPoolExecutor(CONCURRENT) as threads:
            waiting = set()
            for i, body in enumerate(bodies):
                if i in at:
                    self.kill(at[i])
                leaves = generator.random() < self.arguments.aborts
                waiting.add(threads.submit(self.one, body, expected[json.dumps(body)],
                                           generator.uniform(0, 0.3) if leaves else None))
                if len(waiting) >= 2 * CONCURRENT:
                    done, waiting = concurrent.futures.wait(
                        waiting, return_when=concurrent.futures.FIRST_COMPLETED)
                    for future in done:
                        future.result()
            for future in waiting:
                future.result()

    def blocks_left(self):
        """KV blocks in use, held requests, requests open, when nothing should be: after the lease."""
        for _ in range(200):
            pools = self.status()["pools"]
            left = {p["instance"]: [p[k] for k in ("kv_blocks_in_use", "held", "open", "running")]
                    for p in pools}
            if len(pools) == 3 and not any(sum(v) for v in left.values()):
                return {}
            time.sleep(0.1)
        return left


def expected_tokens(arguments, directory, bodies):
    one = Part(arguments.troupe, directory, "one", None, SOURCE / "configs/tiny_moe_rank_1.yaml",
               options=["--set", f"model_config.model_path={MODEL}"])
    port = one.port()
    unique = {json.dumps(body): body for body in bodies}
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        tokens = dict(zip(unique, threads.map(lambda b: post(port, b), unique.values())))
    one.end()
    return tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--troupe", default=str(SOURCE / "build/release/troupe"))
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--aborts", type=float, default=0.05)
    parser.add_argument("--kills", default="decode,prefill,router")
    parser.add_argument("--handoff", choices=["map", "pull"], default="map")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    bodies, generator = make_requests(arguments.requests, arguments.seed)
    with tempfile.TemporaryDirectory(prefix="troupe-soak-") as name:
        directory = pathlib.Path(name)
        expected = expected_tokens(arguments, directory, bodies)
        soak = Soak(arguments, directory)
        began = time.monotonic()
        try:
            soak.run(bodies, expected, generator)
            left = soak.blocks_left()
            pools = soak.status()["pools"]
            ended = {part.name: part.end() for part in soak.parts()}
        finally:
            for part in soak.parts():
                part.process.kill()
        print(f"{len(bodies)} requests in {time.monotonic() - began:.1f} s: {dict(soak.ended)}")
        for pool in pools:
            print(f"{pool['instance']}: {pool['handoffs']} taken over, {pool['mapped_blocks']} blocks "
                  f"read in place, {pool['copied_bytes']} bytes copied, {pool['revoked']} taken back")
        trouble = [f"wrong tokens: {w}" for w in soak.wrong[:3]]
        trouble += [f"failed though nothing had died: {u}" for u in soak.unexpected[:3]]
        trouble += [f"blocks left: {left}"] if left else []
        trouble += [f"{part} ended with {status}" for part, status in ended.items() if status != 0]
        trouble += [f"{line}" for log in directory.glob("*.log")
                    for line in log.read_text().splitlines() if "is not what was offered" in line]
        for line in trouble:
            print(line)
        sys.exit(1 if trouble else 0)


if __name__ == "__main__":
    main()
