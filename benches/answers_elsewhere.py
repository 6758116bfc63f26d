#!/usr/bin/env python3
"""Asks the quickstart's results the same questions in transformers, PEFT and llama.cpp, and counts equal answers.

    python3 benches/answers_elsewhere.py PIPE [RECIPE] [ROWS]

Run the recipe first. Needs torch, transformers, peft, bitsandbytes, gguf and xllamacpp in this Python; without one of
them that part says so and is left out. Ours are the tuned answers of the eval stage.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PIPE = Path(sys.argv[1]).resolve()
RECIPE = sys.argv[2] if len(sys.argv) > 2 else "recipes/smollm2-135m-qlora-docker.yml"
ROWS = int(sys.argv[3]) if len(sys.argv) > 3 else 24
OUTPUTS = Path("outputs/docker-commands")
BASE = Path("downloads/SmolLM2-135M-Instruct.Q4_1.gguf").resolve()
NEW_TOKENS = 34


def main():
    asked, ours = answered()
    print(f"{len(asked)} questions")
    for name, answers in (("transformers, merged folder", merged), ("PEFT on NF4", peft), ("llama.cpp, q8_0", q8),
                          ("llama.cpp, q4_0", q4)):
        try:
            theirs = answers(asked)
        except ImportError as missing:
            print(f"{name}: left out, {missing}")
            continue
        equal = sum(a == b for a, b in zip(ours, theirs))
        print(f"{name}: {equal} of {len(ours)} equal")
        for question, a, b in zip(asked, ours, theirs):
            if a != b:
                print(f"  {question!r}\n    ours   {a!r}\n    theirs {b!r}")


def answered():
    """Questions of the test file and the tuned model's answers to them, paired by what is expected and asked."""
    shown = subprocess.run([PIPE, "show", RECIPE, "eval", "--json", "--rows", "10000"], capture_output=True, text=True)
    rows = [row for row in json.loads(shown.stdout)["rows"] if row["model"] == "tuned" and row["split"] == "test"]
    by_prompt = {}
    for line in Path("datasets/docker-commands/test.jsonl").read_text().splitlines():
        row = json.loads(line)
        question = row["instruction"] + ("\n" + row["input"] if row["input"] else "")
        by_prompt[question] = question
    asked, ours = [], []
    for row in rows:
        question = row["prompt"].split("\n", 1)[1].rsplit("\n", 1)[0]
        if question in by_prompt and len(asked) < ROWS:
            asked.append(question)
            ours.append(row["answer"].strip())
    return asked, ours


def greedy(model, tokenizer, asked):
    import torch

    out = []
    for question in asked:
        chat = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False,
                                  pad_token_id=tokenizer.eos_token_id)
        out.append(tokenizer.decode(made[0, ids.shape[1]:], skip_special_tokens=True).strip())
    return out


def merged(asked):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(OUTPUTS / "merged", dtype=torch.float32)
    return greedy(model, AutoTokenizer.from_pretrained(OUTPUTS / "merged"), asked)


def peft(asked):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    with tempfile.TemporaryDirectory() as folder:
        read = AutoModelForCausalLM.from_pretrained(BASE.parent, gguf_file=BASE.name, dtype=torch.float32)
        # A model read from GGUF will not be saved; one with its weights will.
        del read.config.quantization_config
        plain = AutoModelForCausalLM.from_config(read.config)
        plain.load_state_dict(read.state_dict())
        plain.save_pretrained(folder)
        del read, plain
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                 bnb_4bit_compute_dtype=torch.float32)
        base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=nf4, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, OUTPUTS / "adapter")
        return greedy(model, AutoTokenizer.from_pretrained(OUTPUTS / "adapter"), asked)


def llama(asked, kind):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(next((OUTPUTS / "gguf").glob(f"*{kind}*.gguf")))
    params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
    params.sampling.temp = 0.0
    server = xllamacpp.Server(params)
    out = []
    for question in asked:
        chat = {"messages": [{"role": "user", "content": question}], "max_tokens": NEW_TOKENS, "temperature": 0.0}
        answer = server.handle_chat_completions(chat)
        answer = json.loads(answer) if isinstance(answer, str) else answer
        out.append(answer["choices"][0]["message"]["content"].strip())
    return out


def q8(asked):
    return llama(asked, "q8_0")


def q4(asked):
    return llama(asked, "q4_0")


if __name__ == "__main__":
    main()
