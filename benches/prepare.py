#!/usr/bin/env python3
"""How long it takes to turn conversations into packed tokens: `pipe run --until pack` beside TRL's own preparation.

  python benches/prepare.py --pipe target/release/pipe --model MODEL.gguf --data conversations.jsonl [--rounds 3]

The two run by turns on the same machine, each from nothing. Printed are wall time, processor time of all processes, peak
memory of the largest, and the ratios of the medians. TRL needs torch, transformers, trl and gguf."""
import argparse, json, os, resource, shutil, statistics, subprocess, sys, tempfile, time

TRL = """
import sys
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from trl import SFTConfig, SFTTrainer
model, data, out = sys.argv[1:]
folder, _, file = model.rpartition("/")
tokenizer = AutoTokenizer.from_pretrained(folder or ".", gguf_file=file)
if tokenizer.pad_token is None: tokenizer.pad_token = tokenizer.eos_token
rows = load_dataset("json", data_files=data, split="train", cache_dir=out)
tiny = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                   num_attention_heads=1, num_key_value_heads=1)
args = SFTConfig(output_dir=out, packing=True, max_length=2048, dataset_num_proc=2, report_to=[], use_cpu=True)
SFTTrainer(model=AutoModelForCausalLM.from_config(tiny), args=args, train_dataset=rows, processing_class=tokenizer)
"""
RECIPE = """base_model: {model}
datasets:
  - path: {data}
    type: chat_template
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_linear: true
sequence_len: 2048
sample_packing: true
micro_batch_size: 1
gradient_accumulation_steps: 1
learning_rate: 1e-4
output_dir: {out}
"""


def measured(command, **kwargs):
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, **kwargs)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - start, cpu, after.ru_maxrss / 1024


def pipe(args, folder):
    recipe = os.path.join(folder, "recipe.yml")
    with open(recipe, "w") as file:
        file.write(RECIPE.format(model=args.model, data=args.data, out=os.path.join(folder, "out")))
    return measured([args.pipe, "run", recipe, "--until", "pack", "--cache-dir", os.path.join(folder, "cache"), "--quiet"])


def trl(args, folder):
    return measured([args.python, "-c", TRL, args.model, args.data, os.path.join(folder, "trl")])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pipe", default="target/release/pipe")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["pipe", "trl"])
    args = parser.parse_args()
    args.model, args.data = os.path.abspath(args.model), os.path.abspath(args.data)
    rows = sum(1 for line in open(args.data, "rb") if line.strip())
    sides = {name: side for name, side in (("pipe", pipe), ("trl", trl)) if args.only in (None, name)}
    times = {name: [] for name in sides}
    for turn in range(args.rounds):
        for name, side in sides.items():
            folder = tempfile.mkdtemp(prefix="prepare_")
            wall, cpu, peak = side(args, folder)
            shutil.rmtree(folder, ignore_errors=True)
            times[name].append((wall, cpu))
            print(f"{name:5} wall {wall:7.2f} s  cpu {cpu:7.2f} s  {rows / wall:9.0f} rows/s  peak {peak:6.0f} MB")
    if len(times) == 2:
        middle = lambda name, i: statistics.median(time[i] for time in times[name])
        print(f"trl / pipe: wall {middle('trl', 0) / middle('pipe', 0):.1f}, cpu {middle('trl', 1) / middle('pipe', 1):.1f}")


main()
