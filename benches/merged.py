#!/usr/bin/env python3
"""PEFT's adapters here, and folders merged here in transformers: the same logits, in every family.

  python benches/merged.py --pipe target/release/pipe [--families llama gpt2] [--variants lora dora] [--seed 2] [--count 1]
  python benches/merged.py --pipe target/release/pipe --model FOLDER [--size 0.02]

Models are those of tests/fixtures/families/generate.py: COUNT random configurations of each family, or the one in FOLDER. PEFT puts
an adapter with random matrices on every linear layer, saves it, loads it again, and gives logits and loss of a few rows in fp32. Then
  moved      how far the adapter moves the logits; here and below the largest difference of a logit, as a share of the largest logit
  float32    `pipe merge --dtype float32`, the folder loaded in transformers, from PEFT's logits
  bfloat16   the same with `--dtype bfloat16`: what rounding every weight to eight bits does to this model
  peft bf16  the same when PEFT itself merges and the result is rounded
  in bf16    the two bfloat16 folders from each other, both in bf16 arithmetic
  loss       `pipe eval --adapter` on the same rows from PEFT's loss, relative
A case is over when float32 or loss is beyond 1e-5, or when the bfloat16 folder is further from PEFT's logits than both 1e-2 and PEFT's own
rounding; the exit status is then 1. Two merges that differ in a few last bits drift apart in bf16 arithmetic, so `in bf16` is told, not bounded.

Variants: lora, rslora, dora, patterns (rank_pattern and alpha_pattern), saved (modules_to_save: embedding and head), and for
mixtures experts (target_parameters, as PEFT names experts that one tensor holds) and by-name (an adapter with a module for each
expert and the router, as PEFT saved them with transformers 4). Without --variants every family has lora, and the others where
they differ. InternLM2 is left out: transformers has it as remote code only.
Needs torch, transformers, peft and tokenizers."""
import argparse, copy, json, pathlib, random, subprocess, sys, tempfile, warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, logging
from transformers.pytorch_utils import Conv1D

GENERATE = pathlib.Path(__file__).parent.parent / "tests/fixtures/families/generate.py"
BOUNDS = {"float32": 1e-5, "loss": 1e-5}
MIXTURES = {"mixtral": ("block_sparse_moe", ["w1", "w2", "w3"]), "qwen3_moe": ("mlp", ["gate_proj", "down_proj", "up_proj"])}
# Fused projections, Conv1D, tied weights and plain ones: where a variant's arithmetic can go wrong.
VARIED = ["llama", "qwen2", "gpt2", "phi3", "gpt_neox", "falcon", "gemma2"]
EOS, VOCAB, LENGTH = 2, 64, 15
TEXTS = ["The capital of France is Paris, on the Seine.", "Water boils at a hundred degrees.", "A prime number has two divisors."]


def families():
    listed = subprocess.run([sys.executable, "-c", f"print(open({str(GENERATE)!r}).read().split('FAMILIES = [')[1].split(']')[0])"],
                            capture_output=True, text=True, check=True).stdout
    return [name.strip() for name in listed.replace("\n", " ").split(",") if name.strip() not in ("", "internlm2")]


def variants(family):
    plain = ["lora", "experts", "by-name"] if family in MIXTURES else ["lora"]
    return plain + (["rslora", "dora", "patterns", "saved"] if family in VARIED else [])


def write_tokenizer(folder):
    words = {"<pad>": 0, "<s>": 1, "</s>": EOS} | {f"w{i}": i for i in range(3, VOCAB)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>").save_pretrained(folder)


def config(folder):
    return json.loads((pathlib.Path(folder) / "config.json").read_text())["model_type"]


def load(folder, dtype=torch.float32):
    kernels = {"attn_implementation": "eager"} | ({"experts_implementation": "eager"} if "moe" in config(folder) or "mixtral" in config(folder) else {})
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **kernels).eval()


def logits(model, rows):
    """Of all rows, one below the other; each by a copy, because dynamic frequencies remember earlier rows."""
    with torch.no_grad():
        return torch.cat([copy.deepcopy(model)(torch.tensor([row]), use_cache=False).logits[0].float() for row in rows])


def loss(model, rows):
    targets = torch.cat([torch.tensor(row[1:] + [-100]) for row in rows])
    return torch.nn.functional.cross_entropy(logits(model, rows), targets).item()


def apart(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def settings(base, family, variant):
    """PEFT's configuration of a variant; every linear layer, by name."""
    linear = sorted({name.rsplit(".", 1)[1] for name, module in base.named_modules()
                     if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not base.get_output_embeddings()})
    common = dict(r=4, lora_alpha=8, target_modules=linear, task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2")
    name = lambda wanted: next(name for name, module in base.named_modules() if module is wanted).rsplit(".", 1)[-1]
    return LoraConfig(**common | {
        "lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True},
        "patterns": {"rank_pattern": {linear[0]: 2, rf".*\.1\..*{linear[-1]}": 3}, "alpha_pattern": {linear[-1]: 3, linear[0]: 5}},
        "saved": {"modules_to_save": [name(base.get_input_embeddings()), name(base.get_output_embeddings())]},
        "experts": {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]},
    }[variant])


def adapter(folder, base, family, variant):
    """Saves an adapter with random matrices."""
    if variant == "by-name":
        return by_name(folder, base, family)
    model = get_peft_model(copy.deepcopy(base), settings(base, family, variant))
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data.normal_(0, args.size)
        elif parameter.requires_grad:
            parameter.data.mul_(1 + args.size * torch.randn_like(parameter))
    model.save_pretrained(folder)


def by_name(folder, base, family):
    """A module for every expert and the router, beside attention."""
    block, parts = MIXTURES[family]
    hidden, inner = base.config.hidden_size, getattr(base.config, "moe_intermediate_size", base.config.intermediate_size)
    tensors = {}

    def add(module, outputs, inputs):
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(4, inputs) * args.size
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(outputs, 4) * args.size

    for name, module in base.named_modules():
        if isinstance(module, torch.nn.Linear) and "self_attn" in name:
            add(name, module.out_features, module.in_features)
        if type(module).__name__.endswith("Experts"):
            layer = name.split(".mlp.")[0] + "." + block
            for expert in range(module.num_experts):
                for part in parts:
                    down = part in ("w2", "down_proj")
                    add(f"{layer}.experts.{expert}.{part}", hidden if down else inner, inner if down else hidden)
            add(f"{layer}.gate", module.num_experts, hidden)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none",
              "base_model_name_or_path": None, "inference_mode": True,
              "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate", *parts]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def pipe(*arguments):
    done = subprocess.run([args.pipe, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or done.stdout.strip()[-600:] or f"{arguments[0]} ended with {done.returncode}")
    return done.stdout


def measure(base_folder, family, variant, folder):
    torch.manual_seed(args.seed)
    r = random.Random(args.seed)
    texts = TEXTS if args.model else [" ".join(f"w{r.randrange(3, VOCAB)}" for _ in range(r.randint(4, LENGTH - 1))) for _ in range(5)]
    # The families' own classes would read the words otherwise than the file says.
    tokenizer = (AutoTokenizer if args.model else PreTrainedTokenizerFast).from_pretrained(base_folder)
    rows = [tokenizer(text).input_ids + [tokenizer.eos_token_id] for text in texts]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    base = load(base_folder)
    adapter(folder / "adapter", base, family, variant)
    tuned = PeftModel.from_pretrained(copy.deepcopy(base), folder / "adapter").eval()
    wanted = logits(tuned, rows)
    found = {"moved": apart(wanted, logits(base, rows))}
    for dtype in ("float32", "bfloat16"):
        pipe("merge", base_folder, "--adapter", folder / "adapter", "--output", folder / dtype, "--dtype", dtype)
        found[dtype] = apart(logits(load(folder / dtype), rows), wanted)
    tuned.merge_and_unload().to(torch.bfloat16).save_pretrained(folder / "peft")
    found["peft bf16"] = apart(logits(load(folder / "peft"), rows), wanted)
    found["in bf16"] = apart(*(logits(load(folder / name, torch.bfloat16), rows) for name in ("bfloat16", "peft")))
    tuned = PeftModel.from_pretrained(base, folder / "adapter").eval()
    answer = pipe("eval", base_folder, "--adapter", folder / "adapter", "--data", data, "--type", "completion", "--sequence-len", max(map(len, rows)),
                  "--set", "bf16=false", "--set", "fp16=false", "--cache-dir", folder / "cache", "--json")
    answer, own = json.loads(answer.splitlines()[-1]), loss(tuned, rows)
    if answer["trained_tokens"] != sum(len(row) - 1 for row in rows):
        raise RuntimeError(f"{answer['trained_tokens']} tokens were trained of {sum(len(row) - 1 for row in rows)}")
    return found | {"loss": abs(answer["eval_loss"] / own - 1)}


def bases(family, at):
    """Folders to adapt."""
    if args.model:
        return [pathlib.Path(args.model).resolve()]
    subprocess.run([sys.executable, GENERATE, at, str(args.seed), str(args.count), family], check=True, capture_output=True)
    for base in sorted(at.iterdir()):
        write_tokenizer(base)
    return sorted(at.iterdir())


def main():
    columns = ["moved", "float32", "bfloat16", "peft bf16", "in bf16", "loss"]
    print(f"{'model':24}{'variant':10}" + "".join(f"{column:>11}" for column in columns))
    over = cases = 0
    for family in [config(args.model)] if args.model else args.families:
        with tempfile.TemporaryDirectory() as at:
            for base in bases(family, pathlib.Path(at)):
                for variant in args.variants or variants(family):
                    if variant in ("experts", "by-name") and family not in MIXTURES:
                        continue
                    cases += 1
                    with tempfile.TemporaryDirectory() as folder:
                        try:
                            found = measure(base, family, variant, pathlib.Path(folder))
                        except (RuntimeError, ValueError) as failed:
                            over += 1
                            print(f"{base.name:24}{variant:10} FAILED: {failed}", flush=True)
                            continue
                    # Not a number is over the bound too.
                    bad = [name for name, bound in BOUNDS.items() if not found[name] <= bound]
                    bad += ["bfloat16"] if not found["bfloat16"] <= max(1e-2, 1.01 * found["peft bf16"]) else []
                    over += bool(bad)
                    print(f"{base.name:24}{variant:10}" + "".join(f"{found[column]:11.1e}" for column in columns)
                          + (f"  OVER: {', '.join(bad)}" if bad else ""), flush=True)
    print(f"{cases - over} of {cases} within " + ", ".join(f"{name} {bound:g}" for name, bound in BOUNDS.items()))
    sys.exit(over > 0)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--pipe", required=True)
parser.add_argument("--families", nargs="+", default=families(), choices=families())
parser.add_argument("--variants", nargs="+", choices=["lora", "rslora", "dora", "patterns", "saved", "experts", "by-name"])
parser.add_argument("--model", help="a folder with its tokenizer, in the families' place")
parser.add_argument("--size", type=float, default=0.2, help="standard deviation of the adapter's matrices")
parser.add_argument("--seed", type=int, default=2)
parser.add_argument("--count", type=int, default=1, help="random configurations of each family")
args = parser.parse_args()
warnings.simplefilter("ignore")
logging.set_verbosity_error()
torch.set_num_threads(1)
main()
