#!/usr/bin/env python3
"""Times what must feel instant: start-up, validate, plan, and a run in which every node is cached.

    python3 scripts/bench.py PIPE RECIPE [ROUNDS]

Medians of wall-clock time. Exits 1 when one is over its limit. Run the recipe once before, so that it is cached.
"""

import statistics
import subprocess
import sys
import time

LIMITS = [  # (what, arguments after `pipe`, limit in ms)
    ("help", ["--help"], 30),
    ("validate", ["validate", "{recipe}"], 30),
    ("plan", ["plan", "{recipe}"], 300),
    ("cached run", ["run", "{recipe}", "--quiet"], 300),
]


def main(pipe, recipe, rounds=20):
    over = []
    for what, arguments, limit in LIMITS:
        command = [pipe] + [a.format(recipe=recipe) for a in arguments]
        times = [timed(command) for _ in range(int(rounds))]
        median = statistics.median(times)
        print(f"{what:12} median {median:7.1f} ms   fastest {min(times):7.1f} ms   limit {limit} ms")
        if median > limit:
            over.append(what)
    if over:
        sys.exit(f"over the limit: {', '.join(over)}")


def timed(command):
    start = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"`{' '.join(command)}` exited {done.returncode}:\n{done.stderr}")
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
