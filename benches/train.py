#!/usr/bin/env python3
"""How fast LoRA trains: `pipe run --until train` beside transformers and TRL, by turns on one machine.

  python benches/train.py --pipe target/release/pipe --model MODEL.gguf --data alpaca.json [--bits 4] [--dtype float32] [--rounds 1]

Rank 32 on every linear layer, AdamW, the same alpaca rows, about 2,048 tokens to a step. The peers:
  trl     SFTTrainer as it comes: padded batches of eight rows, gradient checkpointing
  tuned   transformers and PEFT driven by hand: rows end to end without padding, kept apart by their positions, in parts of
          512 tokens, no checkpointing, adapters in the arithmetic type (a third faster here than f32 ones under autocast)
Printed are real tokens per second after two steps of warm-up, the last losses, and the peak memory of the process tree.
With --in-order pipe packs rows in the order of the file, as tuned does, so both see the same rows in every step: then it is
printed how far their losses lie apart. (Their adapters start from other random numbers, and tuned trains the line break after
an answer too.)
The peers need torch, transformers, peft, trl, gguf and bitsandbytes."""
import argparse, json, os, pathlib, subprocess, sys, tempfile, threading, time

LOAD = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
model_path, data, bits, dtype, steps, out = sys.argv[1:]
steps, dtype = int(steps), getattr(torch, dtype)
tokenizer = AutoTokenizer.from_pretrained(model_path)
if tokenizer.pad_token is None: tokenizer.pad_token = tokenizer.eos_token
four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
dense = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, **({"quantization_config": four} if bits == "4" else {}))
lora = LoraConfig(r=32, lora_alpha=64, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
rows = json.load(open(data))
def text(row):
    return row["instruction"] + ("\\n" + row["input"] if row["input"] else "")
def messages(row):
    return [{"role": "user", "content": text(row)}, {"role": "assistant", "content": row["output"]}]
"""
TUNED = LOAD + """
model = get_peft_model(dense, lora, autocast_adapter_dtype=False)
model.train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
def tokens(row):
    ids = tokenizer.apply_chat_template(messages(row), tokenize=True, return_dict=False)
    head = tokenizer.apply_chat_template(messages(row)[:1], tokenize=True, add_generation_prompt=True, return_dict=False)
    return ids, [-100] * len(head) + ids[len(head):]
parts, part = [], ([], [], [])
for row in rows:
    ids, labels = tokens(row)
    if len(ids) > 512: continue
    if len(part[0]) + len(ids) > 512:
        parts.append(part); part = ([], [], [])
    part[0].extend(ids); part[1].extend([-100] + labels[1:]); part[2].extend(range(len(ids)))
done, spent, losses = 0, 0.0, []
for step in range(steps):
    chunk = parts[4 * step: 4 * step + 4]
    began = time.perf_counter()
    trained = sum(label != -100 for part in chunk for label in part[1])
    total = 0.0
    for ids, labels, positions in chunk:
        tensor = lambda values: torch.tensor([values])
        out = model(input_ids=tensor(ids), position_ids=tensor(positions), use_cache=False)
        loss = torch.nn.functional.cross_entropy(out.logits[0, :-1].float(), tensor(labels)[0, 1:], ignore_index=-100, reduction="sum") / trained
        loss.backward()
        total += loss.item()
    losses.append(total)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step(); optimizer.zero_grad()
    if step >= 2:
        spent += time.perf_counter() - began; done += sum(len(part[0]) for part in chunk)
print(json.dumps({"tokens_per_second": done / spent, "loss": total, "losses": losses}))
"""
TRL = LOAD + """
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer
data = Dataset.from_list([{"prompt": messages(row)[:1], "completion": messages(row)[1:]} for row in rows])
config = SFTConfig(output_dir=out, max_steps=steps, report_to=[], use_cpu=True, logging_steps=1, learning_rate=1e-4, bf16=dtype == torch.bfloat16, max_length=512)
class Clock(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2: self.began = time.perf_counter()
        if state.global_step == steps: self.ended = time.perf_counter()
clock = Clock()
trainer = SFTTrainer(model=dense, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora, callbacks=[clock])
seen = {}
step_of = trainer.training_step
def counted(model, inputs, *args, **kwargs):
    step = trainer.state.global_step
    seen[step] = seen.get(step, 0) + int(inputs["attention_mask"].sum())
    return step_of(model, inputs, *args, **kwargs)
trainer.training_step = counted
trainer.train()
done = sum(count for step, count in seen.items() if step >= 2)
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(json.dumps({"tokens_per_second": done / (clock.ended - clock.began), "loss": losses[-1]}))
"""
RECIPE = """base_model: {model}
load_in_4bit: {four}
adapter: {adapter}
lora_r: 32
lora_alpha: 64
lora_dropout: 0.0
lora_target_linear: true
datasets:
  - path: {data}
    type: alpaca:chat_template
sequence_len: 512
sample_packing: true
micro_batch_size: 1
gradient_accumulation_steps: 4
max_steps: {steps}
learning_rate: 1e-4
lr_scheduler: constant
optimizer: adamw_torch
max_grad_norm: 1.0
bf16: {bf16}
eval: false
report: false
output_dir: {out}
"""
IN_ORDER = "sample_packing_sequentially: true\nshuffle_merged_datasets: false\ncurriculum_sampling: true\n"


def resident(process):
    """MiB of a process and everything below it."""
    parents, sizes = {}, {}
    for status in pathlib.Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        pid = int(fields["Pid"])
        parents[pid], sizes[pid] = int(fields["PPid"]), int(fields.get("VmRSS", "0 kB").split()[0])
    below, found = {process}, True
    while found:
        found = {pid for pid, parent in parents.items() if parent in below} - below
        below |= found
    return sum(sizes.get(pid, 0) for pid in below) / 1024


def watched(command, **kwargs):
    """Standard output, and the most memory that the process tree held."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)
    peak = [0.0]

    def watch():
        while child.poll() is None:
            peak[0] = max(peak[0], resident(child.pid))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = child.communicate()
    watcher.join()
    if child.returncode:
        sys.exit(f"{command[0]} failed:\n{err[-3000:]}")
    return out, peak[0]


def pipe(args, folder):
    recipe = os.path.join(folder, "recipe.yml")
    with open(recipe, "w") as file:
        file.write(RECIPE.format(model=args.model, data=args.data, four=str(args.bits == 4).lower(), steps=args.steps,
                                 adapter="qlora" if args.bits == 4 else "lora", bf16=str(args.dtype == "bfloat16").lower(),
                                 out=os.path.join(folder, "out")) + (IN_ORDER if args.in_order else ""))
    out, peak = watched([args.pipe, "run", recipe, "--until", "train", "--json", "--cache-dir", os.path.join(folder, "cache")])
    steps = [event for event in map(json.loads, out.splitlines()) if event["event"] == "metric"]
    seconds = sum(step["tokens"] / step["tokens_per_second"] for step in steps[2:])
    return {"tokens_per_second": sum(step["tokens"] for step in steps[2:]) / seconds, "loss": steps[-1]["loss"], "losses": [step["loss"] for step in steps], "peak_mib": peak}


def peer(script, args, folder):
    out, peak = watched([args.python, "-c", script, args.model, args.data, str(args.bits), args.peer_dtype or args.dtype, str(args.steps), folder])
    return json.loads(out.splitlines()[-1]) | {"peak_mib": peak}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--pipe", required=True)
parser.add_argument("--model", required=True, help="a GGUF or a folder")
parser.add_argument("--data", required=True)
parser.add_argument("--python", default=sys.executable)
parser.add_argument("--bits", type=int, default=4, choices=[4, 16])
parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
parser.add_argument("--peer-dtype", choices=["float32", "bfloat16"], help="where libtorch is slow in --dtype: without instructions for bf16 its peers are faster in float32")
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--rounds", type=int, default=1)
parser.add_argument("--in-order", action="store_true", help="the rows of each step are the same for pipe and tuned; compare their losses")
parser.add_argument("--peers", nargs="+", default=["tuned", "trl"], choices=["tuned", "trl"])
args = parser.parse_args()
args.model, args.data = os.path.abspath(args.model), os.path.abspath(args.data)
if os.path.isfile(args.model):
    # What transformers makes of a GGUF counts as quantised already; all three train the same folder.
    unpacked = tempfile.TemporaryDirectory()
    folder = os.path.join(unpacked.name, "model")
    subprocess.run([args.pipe, "convert", args.model, "--output", folder], check=True, stdout=subprocess.DEVNULL)
    args.model = folder
runs = {"pipe": pipe} | {name: (lambda args, folder, script={"tuned": TUNED, "trl": TRL}[name]: peer(script, args, folder)) for name in args.peers}
best, curves = {}, {}
for turn in range(args.rounds):
    for name, run in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            found = run(args, folder)
        print(f"{turn + 1} {name:6} {found['tokens_per_second']:7.1f} tokens/s  loss {found['loss']:.4f}  {found['peak_mib']:6.0f} MiB", flush=True)
        curves[name] = found.get("losses", [])
        best[name] = max(best.get(name, 0.0), found["tokens_per_second"])
for name in args.peers:
    print(f"pipe is {best['pipe'] / best[name]:.2f} times {name}")
if args.in_order and "tuned" in curves:
    apart = [ours / theirs - 1 for ours, theirs in zip(curves["pipe"], curves["tuned"])]
    last = apart[len(apart) // 2:]
    print(f"losses of {len(apart)} steps: at most {max(map(abs, apart)):.2%} apart, on average {sum(apart) / len(apart):+.2%}, in the later half {sum(last) / len(last):+.2%}")
