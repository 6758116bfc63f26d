#!/usr/bin/env python3
"""Trains once undisturbed and once killed again and again (kill -9 at random moments of training, the command and its worker
in turn); both adapters must have the same bytes.

  python benches/kills.py --pipe target/release/pipe --model MODEL [--kills 30] [--seed 1] [--bf16]"""
import argparse, hashlib, json, os, pathlib, random, signal, subprocess, tempfile, time

RECIPE = """base_model: {model}
load_in_4bit: true
adapter: qlora
lora_r: 8
lora_alpha: 16
lora_dropout: 0.1
lora_target_linear: true
datasets:
  - path: rows.jsonl
    type: alpaca:chat_template
sequence_len: 256
sample_packing: true
micro_batch_size: 1
gradient_accumulation_steps: 1
max_steps: {steps}
learning_rate: 1e-3
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
warmup_steps: 4
save_steps: 2
save_total_limit: 2
bf16: {bf16}
eval: false
report: false
output_dir: out
"""


def project(folder, args):
    os.makedirs(folder)
    (folder / ".git").mkdir()
    (folder / "recipe.yml").write_text(RECIPE.format(model=args.model, steps=args.steps, bf16=str(args.bf16).lower()))
    rows = [{"instruction": f"Name {n} and the number after it.", "output": f"{n} and {n + 1}. " * (1 + n % 5)} for n in range(400)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def start(folder, args):
    command = [args.pipe, "run", "recipe.yml", "--until", "train", "--json"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finish(folder, args):
    out, _ = start(folder, args).communicate()
    last = json.loads(out.splitlines()[-1])
    assert last["event"] == "run_finished" and not last["failed"], last
    adapter = sorted(folder.glob(".pipe/objects/*/adapter_model.safetensors"))
    assert len(adapter) == 1, adapter
    return hashlib.sha256(adapter[0].read_bytes()).hexdigest(), last


def worker(parent):
    for status in pathlib.Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if int(fields["PPid"]) == parent and fields["Name"].strip() == "pipe-torch":
            return int(fields["Pid"])
    return None


def kill_once(folder, args, number, seconds):
    """Whether a training was killed; `False` when it had ended before."""
    child = start(folder, args)
    for line in child.stdout:
        event = json.loads(line)
        if event["event"] == "metric":
            time.sleep(random.uniform(0, seconds))
            target = worker(child.pid) if number % 2 else child.pid
            if target is None:
                break
            os.kill(target, signal.SIGKILL)
            child.stdout.read()
            child.wait()
            print(f"kill {number + 1} of the {'worker' if number % 2 else 'command'}: step {event['step']} was over", flush=True)
            return True
    child.wait()
    return False


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--pipe", required=True)
parser.add_argument("--model", required=True)
parser.add_argument("--kills", type=int, default=30)
parser.add_argument("--steps", type=int, default=90)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--bf16", action="store_true", help="arithmetic in bf16 instead of f32")
args = parser.parse_args()
args.pipe, args.model = os.path.abspath(args.pipe), os.path.abspath(args.model)
random.seed(args.seed)
with tempfile.TemporaryDirectory() as root:
    calm, torn = pathlib.Path(root, "calm"), pathlib.Path(root, "torn")
    project(calm, args)
    project(torn, args)
    began = time.perf_counter()
    wanted, _ = finish(calm, args)
    step = (time.perf_counter() - began) / args.steps
    kills = 0
    while kills < args.kills and kill_once(torn, args, kills, 2 * step):
        kills += 1
    found, _ = finish(torn, args)
    print(f"{kills} kills; undisturbed {wanted[:16]}, killed {found[:16]}: {'equal' if wanted == found else 'DIFFERENT'}")
    assert wanted == found
