"""Puts a running `pipe serve` under load and says how it did.

    python benches/serve_load.py http://127.0.0.1:8080 MODEL crowd --clients 200 --seconds 300 --process PID
    python benches/serve_load.py http://127.0.0.1:8080 MODEL speed --clients 1 8

`crowd`: many clients at one time, some of which leave in the middle of their answer; every answer that is heard to its end is compared with
the one that the same request got alone. `speed`: time to the first token and tokens per second at so many clients. Needs httpx.
"""
import argparse
import asyncio
import json
import pathlib
import random
import time

import httpx

WORDS = "the images of all containers that were made before noon on the second day and have no name of their own".split()


def request(model, number, tokens):
    text = f"{number}: " + " ".join(random.Random(number).choices(WORDS, k=12))
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0}


async def streamed(client, url, body, leave_after=None):
    """The text, the seconds to its first piece and the tokens; None where the client left."""
    began, first, text, tokens, pieces = time.perf_counter(), None, "", 0, 0
    body = body | {"stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", url + "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"status {answer.status_code}: {(await answer.aread())[:200]}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            for choice in chunk["choices"]:
                if choice["delta"].get("content"):
                    first = first or time.perf_counter() - began
                    text += choice["delta"]["content"]
                    pieces += 1
            if leave_after is not None and pieces >= leave_after:
                return None
    return text, first, tokens


def resident(process):
    """MiB of a process and its children."""
    total = 0
    for status in pathlib.Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if str(process) in (fields["Pid"].strip(), fields["PPid"].strip()) and "VmRSS" in fields:
            total += int(fields["VmRSS"].split()[0])
    return total // 1024


async def crowd(args):
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits) as client:
        bodies = [request(args.model, number, 8 + number % 24) for number in range(args.requests)]
        alone = [(await streamed(client, args.url, body))[0] for body in bodies]
        counts = {"right": 0, "wrong": 0, "left": 0, "refused": 0, "failed": 0, "broken": 0}
        end = time.time() + args.seconds
        memory = []

        async def one(number):
            own = random.Random(number)
            while time.time() < end:
                which = own.randrange(len(bodies))
                leaves = own.random() < 0.4
                began = time.time()
                try:
                    if leaves and own.random() < 0.5:
                        # Leaves whatever has come by then, be it nothing.
                        heard = await asyncio.wait_for(streamed(client, args.url, bodies[which]), own.random() * 2)
                    else:
                        heard = await streamed(client, args.url, bodies[which], own.randrange(1, 6) if leaves else None)
                except asyncio.TimeoutError:
                    heard = None
                except httpx.TransportError as error:
                    counts["broken"] += 1
                    print(f"broken after {time.time() - began:.1f} s, {end - time.time():.0f} s before the end: {error!r}")
                    continue
                except RuntimeError as error:
                    counts["refused" if "429" in str(error) else "failed"] += 1
                    if "429" not in str(error):
                        print("failed:", error)
                    await asyncio.sleep(0.2)
                    continue
                if heard is None:
                    counts["left"] += 1
                elif heard[0] == alone[which]:
                    counts["right"] += 1
                else:
                    counts["wrong"] += 1
                    print("wrong:", which, repr(heard[0])[:80], "alone", repr(alone[which])[:80])

        async def watch():
            while time.time() < end:
                memory.append(resident(args.process))
                await asyncio.sleep(args.seconds / 10)

        tasks = [one(number) for number in range(args.clients)] + ([watch()] if args.process else [])
        await asyncio.gather(*tasks)
        await asyncio.sleep(2)
        metrics = (await client.get(args.url + "/metrics")).text
        left = [line for line in metrics.splitlines() if line.startswith(("pipe_requests_open ", "pipe_worker_restarts_total "))]
        print(json.dumps(counts), left, "resident MiB:", memory)


async def speed(args):
    async with httpx.AsyncClient(timeout=None) as client:
        await streamed(client, args.url, request(args.model, 0, 8))
        for clients in args.clients:
            began = time.perf_counter()
            bodies = [request(args.model, number + 1, args.tokens) for number in range(clients)]
            heard = await asyncio.gather(*(streamed(client, args.url, body) for body in bodies))
            seconds = time.perf_counter() - began
            firsts = sorted(first for _, first, _ in heard)
            tokens = sum(tokens for _, _, tokens in heard)
            print(f"{clients} clients: first token after {firsts[len(firsts) // 2]:.2f} s (median), {tokens / seconds:.1f} tokens/s together")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("url")
parser.add_argument("model")
kinds = parser.add_subparsers(dest="kind", required=True)
part = kinds.add_parser("crowd")
part.add_argument("--clients", type=int, default=200)
part.add_argument("--seconds", type=int, default=300)
part.add_argument("--requests", type=int, default=24)
part.add_argument("--process", type=int, help="of the server, to watch its memory")
part = kinds.add_parser("speed")
part.add_argument("--clients", type=int, nargs="+", default=[1, 8])
part.add_argument("--tokens", type=int, default=64)
args = parser.parse_args()
asyncio.run(crowd(args) if args.kind == "crowd" else speed(args))
