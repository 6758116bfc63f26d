#!/usr/bin/env python3
"""What the products of a training step alone would allow, made by libtorch: an upper bound to hold `benches/train.py` against.

  python benches/products.py [--dtype bfloat16] [--tokens 512] [--trained 0.75] [--rounds 3]

The shapes are SmolLM2-135M's: every frozen linear layer forward and once backward, to its input, and the head over the trained
positions only. Adapters (r 32, a tenth more), attention and everything between products are left out. Needs torch."""
import argparse, time, torch

HIDDEN, KEYS, INNER, VOCABULARY, LAYERS = 576, 192, 1536, 49152, 30

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
parser.add_argument("--tokens", type=int, default=512, help="rows of a product")
parser.add_argument("--trained", type=float, default=0.75, help="the share of tokens that the head sees")
parser.add_argument("--rounds", type=int, default=3)
args = parser.parse_args()
kind = getattr(torch, args.dtype)
linear = [(HIDDEN, HIDDEN), (HIDDEN, KEYS), (HIDDEN, KEYS), (HIDDEN, HIDDEN), (HIDDEN, INNER), (HIDDEN, INNER), (INNER, HIDDEN)]
# As many weights as the model has: a matrix that is used again would lie in the cache.
layers = [(args.tokens, torch.randn(b, a).to(kind)) for _ in range(LAYERS) for a, b in linear]
layers.append((int(args.tokens * args.trained), torch.randn(VOCABULARY, HIDDEN).to(kind)))
inputs = {(rows, width): torch.randn(rows, width).to(kind) for rows, weight in layers for width in weight.shape}
operations = sum(4 * rows * weight.numel() for rows, weight in layers)
for turn in range(args.rounds + 1):
    began = time.perf_counter()
    for rows, weight in layers:
        torch.mm(inputs[rows, weight.shape[1]], weight.t())
        torch.mm(inputs[rows, weight.shape[0]], weight)
    seconds = time.perf_counter() - began
    if turn > 0:  # the first compiles kernels
        print(f"{turn} {operations / seconds / 1e9:6.0f} GFLOP/s, {args.tokens / seconds:6.0f} tokens/s", flush=True)
