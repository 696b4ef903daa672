#!/usr/bin/env python3
"""Breaks launches in every way that docs/reliability.md lists, and prints its table.

    tests/run_faults.py [--troupe build/release/troupe] [--scale 1.0] [ROW ...]

Rows: F1 F2 ... R1 ...; default: all. --scale multiplies the number of trials. Needs python3 alone; rows
that need root (a memory limit, a full disk) say so and are left out without it. Exit status 1 if a
trial ended otherwise than expected.
"""

import argparse
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

SOURCE = pathlib.Path(__file__).resolve().parents[1]
WORLD = 4
STAGES = ["starting", "loading", "idle", "prefill", "decode", "draft", "all_gather", "all_to_all_v",
          "dispatch", "combine", "stopping"]
COLLECTIVES = ["all_gather", "all_to_all_v", "dispatch", "combine"]
LAYOUT = ["attn_tp_size=2", "dense_tp_size=2", "moe_tp_size=2", "embed_tp_size=2", "lmhead_tp_size=4"]


class Launch:
    """One `troupe run`, or `serve`, with a working directory of its own, until it has ended."""

    def __init__(self, troupe, options=(), tokens=24, prompts=("1,2,3",), before=None, prefix=(),
                 command="run"):
        self.directory = tempfile.TemporaryDirectory(prefix="troupe-faults-")
        self.dumps = pathlib.Path(self.directory.name) / "dumps"
        self.tmp = pathlib.Path(self.directory.name) / "tmp"
        self.dumps.mkdir()
        self.tmp.mkdir()
        words = [*prefix, troupe, "--log-level", "error", command, "--config",
                 str(SOURCE / "configs/tiny_moe.yaml"),
                 "--set", f"model_config.model_path={SOURCE}/models/tiny-moe",
                 "--set", f"runtime_config.dump_dir={self.dumps}",
                 "--set", f"scheduler_config.max_new_tokens={tokens}"]
        words += ["--ignore-eos"] if command == "run" else ["--port", "0"]
        for prompt in prompts if command == "run" else ():
            words += ["--prompt-ids", prompt]
        self.process = subprocess.Popen([*words, *options], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                                        env={**os.environ, "TMPDIR": str(self.tmp)},
                                        preexec_fn=before)
        self.started = time.monotonic()

    def pids(self):
        """All its processes, also orphans: those that have its TMPDIR."""
        found = []
        marker = f"TMPDIR={self.tmp}".encode() + b"\0"
        for entry in pathlib.Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and marker in (entry / "environ").read_bytes() + b"\0":
                    found.append(int(entry.name))
            except OSError:
                pass
        return found

    def rank_pid(self, rank):
        name = f"troupe-rank{rank}\n"
        while self.process.poll() is None:
            for pid in self.pids():
                try:
                    if pathlib.Path(f"/proc/{pid}/comm").read_text() == name:
                        return pid
                except OSError:
                    pass
        raise RuntimeError("ended before it had started: " + self.finish()[2])

    def wait_until_stopped(self, pid):
        """False when the launch has ended before."""
        while self.process.poll() is None:
            try:
                if "State:\tT" in pathlib.Path(f"/proc/{pid}/status").read_text():
                    return True
            except OSError:
                pass
        return False

    def finish(self, limit=120):
        out, err = self.process.communicate(timeout=limit)
        self.seconds = time.monotonic() - self.started
        return self.process.returncode, out.decode(), err.decode()

    def line(self, err):
        return err.splitlines()[-1] if err else ""

    def dump(self):
        files = list(self.dumps.iterdir())
        return files[0] if len(files) == 1 else None

    def left(self):
        """What is there after the end: processes, files, sockets with a name."""
        uid, pid = os.geteuid(), self.process.pid
        sockets = [line for line in open("/proc/net/unix") if f"troupe-status-{uid}-{pid}-" in line]
        return self.pids() + list(self.tmp.iterdir()) + sockets


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Row:
    def __init__(self, name, fault, expected):
        self.name, self.fault, self.expected = name, fault, expected
        self.trials = self.good = 0
        self.worst = None
        self.note = ""

    def trial(self, good, what="", seconds=None):
        self.trials += 1
        self.good += bool(good)
        if seconds is not None:
            self.worst = max(self.worst or 0, seconds)
        if not good:
            print(f"{self.name}: {what}", file=sys.stderr)

    def text(self):
        worst = "" if self.worst is None else f"{self.worst:.2f} s"
        observed = f"{self.good} of {self.trials}" + (f"; {self.note}" if self.note else "")
        return f"| {self.name} | {self.fault} | {self.expected} | {observed} | {worst} |"


class Faults:
    def __init__(self, troupe, scale):
        self.troupe, self.scale = troupe, scale
        self.layout = [word for size in LAYOUT for word in ("--set", f"parallel_config.{size}")]

    def times(self, count):
        return range(max(1, round(count * self.scale)))

    def inject(self, faults, options=(), **more):
        words = [word for fault in faults for word in ("--inject", fault)]
        launch = Launch(self.troupe, [*self.layout, *words, *options], **more)
        return launch, *launch.finish()

    # ---- processes -------------------------------------------------------------------------------

    def f1_named(self):
        row = Row("F1", "SIGKILL of each rank at each of 11 stages (`--inject`)",
                  "exit 3, that rank and stage named, nothing left")
        for _ in self.times(3):
            for stage in STAGES:
                for rank in range(WORLD):
                    launch, status, _, err = self.inject([f"kill:rank={rank},stage={stage}"])
                    line = launch.line(err)
                    row.trial(status == 3 and f"rank {rank} (" in line.split("was killed")[0]
                              and stage in line and launch.dump() and not launch.left(), line)
        return row

    def f1_time(self):
        row = Row("F1", "SIGKILL of a rank from outside at a random moment",
                  "everything gone, the rank named, within 2 s")
        for _ in self.times(100):
            rank = random.randrange(WORLD)
            launch = Launch(self.troupe, self.layout, tokens=4000)
            pid = launch.rank_pid(rank)
            time.sleep(random.random() * 0.5)
            start = time.monotonic()
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            status, _, err = launch.finish()
            seconds = time.monotonic() - start
            row.trial(status == 3 and f"rank {rank} (pid {pid}" in launch.line(err)
                      and not launch.left() and seconds <= 2, launch.line(err), seconds)
        return row

    def f2(self):
        row = Row("F2", "SIGSTOP of each rank at 5 stages, limit 1 s",
                  "the stopped rank named, not a waiter; time: behind the limit")
        for _ in self.times(2):
            for stage in ["loading", "idle", "decode", "dispatch", "combine"]:
                for rank in range(WORLD):
                    launch = Launch(self.troupe, [*self.layout, "--inject",
                                                  f"stop:rank={rank},stage={stage}", "--set",
                                                  "runtime_config.comm_timeout_s=1"])
                    launch.wait_until_stopped(launch.rank_pid(rank))
                    stopped = time.monotonic()
                    status, _, err = launch.finish()
                    behind = time.monotonic() - stopped - 1
                    line = launch.line(err)
                    row.trial(status == 3 and re.search(rf"rank {rank} \(.*\) is stopped", line)
                              and not launch.left(), line, behind)
        return row

    def f3(self):
        row = Row("F3", "SIGSTOP, then SIGCONT inside the limit", "the same tokens")
        _, _, wanted, _ = self.inject([])
        for i in self.times(20):
            rank = i % WORLD
            launch = Launch(self.troupe,
                            [*self.layout, "--inject", f"stop:rank={rank},step={2 + i % 20}"])
            pid = launch.rank_pid(rank)
            if launch.wait_until_stopped(pid):
                os.kill(pid, signal.SIGCONT)
            status, out, err = launch.finish()
            row.trial(status == 0 and out == wanted, err)
        return row

    def f4(self):
        row = Row("F4", "SIGSEGV in each rank", "the stack in a dump under 16 MB; time: all")
        for _ in self.times(5):
            for rank in range(WORLD):
                launch, status, _, err = self.inject([f"segv:rank={rank},stage=dispatch,step=3"])
                crash = json.loads(launch.dump().read_text())["ranks"][rank].get("crash", {})
                functions = " ".join(frame["function"] for frame in crash.get("stack", []))
                row.trial(status == 3 and crash.get("signal") == "SIGSEGV"
                          and "start_dispatch" in functions
                          and launch.dump().stat().st_size < 16e6, launch.line(err), launch.seconds)
        return row

    def f5(self):
        row = Row("F5", "SIGKILL of the launcher", "no rank left; time: until the last has gone")
        for _ in self.times(50):
            launch = Launch(self.troupe, self.layout, tokens=4000)
            launch.rank_pid(WORLD - 1)
            time.sleep(random.random() * 0.4)
            start = time.monotonic()
            launch.process.kill()
            while launch.pids() and time.monotonic() - start < 10:
                pass
            seconds = time.monotonic() - start
            launch.finish()
            row.trial(not launch.left() and seconds <= 1, "ranks are left", seconds)
        return row

    def f6(self):
        row = Row("F6", "SIGKILL of launcher and ranks at once",
                  "nothing left in /dev/shm, TMPDIR, sockets")
        before = set(os.listdir("/dev/shm"))
        for _ in self.times(50):
            launch = Launch(self.troupe, self.layout, tokens=4000)
            launch.rank_pid(WORLD - 1)
            for pid in launch.pids():
                os.kill(pid, signal.SIGKILL)
            launch.finish()
            time.sleep(0.05)
            row.trial(not launch.left() and set(os.listdir("/dev/shm")) <= before, launch.left())
        return row

    def f7(self):
        row = Row("F7", "SIGINT, SIGTERM, SIGHUP to the launcher", "exit 130, no dump, nothing left")
        for _ in self.times(10):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                launch = Launch(self.troupe, self.layout, tokens=4000)
                launch.rank_pid(WORLD - 1)
                start = time.monotonic()
                launch.process.send_signal(number)
                status, _, err = launch.finish()
                seconds = time.monotonic() - start
                row.trial(status == 130 and not launch.left() and not launch.dump(), err, seconds)
        return row

    def f8(self):
        row = Row("F8", "a rank skips a collective, or publishes a header with wrong sizes",
                  "an error that shows both calls, never a hang; time: all")
        for _ in self.times(3):
            for kind in ("drop", "corrupt"):
                for operation in COLLECTIVES:
                    for rank in range(WORLD):
                        launch, status, _, err = self.inject(
                            [f"{kind}:rank={rank},stage={operation},step=3"])
                        line = launch.line(err)
                        row.trial(status == 3 and " brings " in line and f"rank {rank}" in line
                                  and launch.seconds < 10 and not launch.left(), line,
                                  launch.seconds)
        return row

    def f9(self):
        row = Row("F9", "one busy data-parallel rank, three without tokens", "no drift, no hang")
        steps, tokens = round(100_000 * self.scale), 2000
        prompts = [f"{1 + i % 50},2,3" for i in range(max(1, steps // tokens))]
        launch = Launch(self.troupe, ["--set", "model_config.next_n=0", "--set",
                                      "scheduler_config.batch_size=1"], tokens=tokens,
                        prompts=prompts)
        status, out, err = launch.finish(limit=3600)
        row.note = f"{len(prompts) * tokens} steps"
        row.trial(status == 0 and len(out) > 0, err, launch.seconds)
        return row

    def f10(self):
        row = Row("F10", "a rank computes 10 times as long",
                  "the same tokens; `troupe status` names it")
        _, _, wanted, _ = self.inject([], tokens=400)
        for i in self.times(8):
            rank = i % WORLD
            launch = Launch(self.troupe,
                            [*self.layout, "--inject", f"slow:rank={rank},stage=decode,factor=10"],
                            tokens=400)
            launch.rank_pid(WORLD - 1)
            named = False
            while not named and launch.process.poll() is None:
                seen = subprocess.run([self.troupe, "status", "--json", str(launch.process.pid)],
                                      capture_output=True, check=False).stdout
                named = bool(seen) and json.loads(seen)[0]["straggler"] == rank
            seconds = time.monotonic() - launch.started
            status, out, err = launch.finish()
            row.trial(status == 0 and out == wanted and named, f"rank {rank}: {named} {err}", seconds)
        return row

    def f11(self):
        row = Row("F11", "the kernel kills a rank: control group without memory",
                  "the line says out of memory")
        group = pathlib.Path("/sys/fs/cgroup/memory/troupe-faults")
        try:
            group.mkdir()
            (group / "memory.limit_in_bytes").write_text(str(16 << 20))
        except OSError as error:
            row.note = f"left out: {error}"
            return row
        try:
            for _ in self.times(5):
                enter = lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
                launch = Launch(self.troupe, self.layout, before=enter)
                status, _, err = launch.finish()
                if status == -signal.SIGKILL:
                    continue  # it was the launcher that the kernel chose
                row.trial(status == 3 and "out of memory" in launch.line(err), err)
        finally:
            time.sleep(0.2)
            group.rmdir()
        return row

    def f12(self):
        row = Row("F12", "1, 4, 8 and 16 ranks on this machine's cores", "the same tokens")
        answers = {}
        for _ in self.times(3):
            for ranks in (1, 4, 8, 16):
                launch = Launch(self.troupe, ["--set", f"parallel_config.world_size={ranks}"])
                status, out, err = launch.finish()
                answers.setdefault(0, out)
                row.trial(status == 0 and out == answers[0], err, launch.seconds)
        return row

    def idle(self):
        row = Row("idle", "no request for 5 s, as `serve` waits", "each process under 1 % of a core")
        worst = 0
        for _ in self.times(3):
            launch = Launch(self.troupe, self.layout, command="serve")
            launch.process.stdout.readline()  # it listens
            before = {pid: cpu_seconds(pid) for pid in launch.pids()}
            time.sleep(5)
            shares = [(cpu_seconds(pid) - start) / 5 for pid, start in before.items()]
            launch.process.terminate()
            status, _, err = launch.finish()
            worst = max(worst, *shares)
            row.trial(len(shares) == WORLD + 1 and max(shares) < 0.01 and status == 0, shares)
        row.note = f"worst {worst * 100:.1f} %"
        return row

    # ---- resources -------------------------------------------------------------------------------

    def r1(self):
        row = Row("R1", "/dev/shm of 64 KiB, full", "runs: nothing lies there")
        if os.geteuid() != 0:
            row.note = "left out: needs root"
            return row
        mount = ("mount -t tmpfs -o size=64k tmpfs /dev/shm; "
                 "head -c 70000 /dev/zero > /dev/shm/full 2>/dev/null; exec \"$@\"")
        for _ in self.times(3):
            launch = Launch(self.troupe, self.layout,
                            prefix=["unshare", "-m", "sh", "-c", mount, "sh"])
            status, out, err = launch.finish()
            row.trial(status == 0 and out, err, launch.seconds)
        return row

    def limited(self, row, kind, values, word):
        for value in values:
            before = lambda: resource.setrlimit(kind, (value, value))
            launch = Launch(self.troupe, self.layout, before=before)
            status, _, err = launch.finish()
            refused = status == 2 and word in err and len(err.splitlines()) == 1
            row.trial(status == 0 or refused, f"{value}: {err}", launch.seconds)
        return row

    def r2(self):
        row = Row("R2", "RLIMIT_NOFILE of 16, 64, 256", "runs, or one line with need and have")
        return self.limited(row, resource.RLIMIT_NOFILE, (16, 64, 256), "RLIMIT_NOFILE")

    def r3(self):
        row = Row("R3", "RLIMIT_AS of 256 MiB to 8 GiB, and just below and above the need", "runs, or one line with need and have")
        row = self.limited(row, resource.RLIMIT_AS, (256 << 20, 512 << 20, 8 << 30), "RLIMIT_AS")
        # Around the need that the refusal names.
        before = lambda: resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))
        _, _, err = Launch(self.troupe, self.layout, before=before).finish()
        need = float(re.search(r"need ([0-9.]+) MiB", err).group(1))
        around = [int(need + more) << 20 for more in (-64, -8, -1, 1, 8, 64, 512)]
        return self.limited(row, resource.RLIMIT_AS, around, "RLIMIT_AS")

    def r4(self):
        row = Row("R4", "no room for the report, none for the dump",
                  "an error, and no file that is not whole")
        if os.geteuid() != 0:
            row.note = "left out: needs root"
            return row
        full = ("d=$(mktemp -d); mount -t tmpfs -o size=4k tmpfs $d; head -c 4096 /dev/zero > $d/full "
                "2>/dev/null; \"$@\" --json $d/report.json --set runtime_config.dump_dir=$d; "
                "s=$?; [ \"$(ls $d)\" = full ] || s=99; umount $d; rmdir $d; exit $s")
        prefix = ["unshare", "-m", "sh", "-c", full, "sh"]
        for _ in self.times(3):
            launch = Launch(self.troupe, self.layout, prefix=prefix)
            status, _, err = launch.finish()
            row.trial(status == 2 and "No space left" in err, f"{status} {err}", launch.seconds)
            launch = Launch(self.troupe, [*self.layout, "--inject", "kill:rank=1"], prefix=prefix)
            status, _, err = launch.finish()
            row.trial(status == 3 and "no dump: " in err, f"{status} {err}", launch.seconds)
        return row

    def r7(self):
        row = Row("R7", "two launches at the same moment", "both run")
        for _ in self.times(100):
            pair = [Launch(self.troupe, self.layout) for _ in range(2)]
            ends = [launch.finish() for launch in pair]
            row.trial(all(status == 0 for status, _, _ in ends) and ends[0][1] == ends[1][1],
                      ends, max(launch.seconds for launch in pair))
        return row

    def n9(self):
        row = Row("N9", "sockets of a launch", "none listens on the network")
        for _ in self.times(3):
            launch = Launch(self.troupe, self.layout, tokens=2000)
            launch.rank_pid(WORLD - 1)
            time.sleep(0.3)
            network = set()
            for table in ("tcp", "tcp6", "udp", "udp6"):
                lines = open(f"/proc/net/{table}").readlines()[1:]
                network |= {f"socket:[{line.split()[9]}]" for line in lines}
            held = {os.readlink(f"/proc/{pid}/fd/{fd}") for pid in launch.pids()
                    for fd in os.listdir(f"/proc/{pid}/fd")}
            row.trial(held and not held & network, held & network)
            launch.process.terminate()
            launch.finish()
        return row

    def cycles(self):
        row = Row("cycles", "start, then SIGKILL of a random process, again and again",
                  "no process, file, socket left; time: until all have gone")
        before = set(os.listdir("/dev/shm"))
        for _ in self.times(1000):
            launch = Launch(self.troupe, self.layout, tokens=4000)
            time.sleep(random.random() * 0.2)
            pids = launch.pids() or [launch.process.pid]
            start = time.monotonic()
            try:
                os.kill(random.choice(pids), signal.SIGKILL)
            except ProcessLookupError:
                pass
            launch.finish()
            while launch.pids() and time.monotonic() - start < 10:
                pass
            seconds = time.monotonic() - start
            row.trial(not launch.left() and set(os.listdir("/dev/shm")) <= before and seconds < 5,
                      launch.left(), seconds)
        return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--troupe", default=str(SOURCE / "build/release/troupe"))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    arguments = parser.parse_args()
    if not shutil.which(arguments.troupe):
        parser.error(f"{arguments.troupe}: no such program; build it, or name it with --troupe")
    faults = Faults(str(pathlib.Path(arguments.troupe).resolve()), arguments.scale)
    methods = [faults.f1_named, faults.f1_time, faults.f2, faults.f3, faults.f4, faults.f5, faults.f6,
               faults.f7, faults.f8, faults.f9, faults.f10, faults.f11, faults.f12, faults.idle, faults.r1,
               faults.r2, faults.r3, faults.r4, faults.r7, faults.n9, faults.cycles]
    known = {method.__name__.split("_")[0].upper() for method in methods}
    wanted = [name.upper() for name in arguments.rows]
    for name in wanted:
        if name not in known:
            parser.error(f"{name}: no such row; there are {', '.join(sorted(known))}")
    print("| row | fault | expected | as expected | worst time |\n| --- | --- | --- | --- | --- |")
    good = True
    for method in methods:
        if wanted and method.__name__.split("_")[0].upper() not in wanted:
            continue
        row = method()
        print(row.text(), flush=True)
        good = good and row.good == row.trials
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
