"""Asks a running `pipe serve` twenty questions and transformers the same, in f32 and in bf16: equal greedy answers of 64 tokens, and the speed of each.

    pipe serve downloads/SmolLM2-135M-Instruct.Q4_1.gguf --dtype float32
    python benches/chat_elsewhere.py http://127.0.0.1:8080 downloads/SmolLM2-135M-Instruct.Q4_1.gguf

Needs torch, transformers, gguf and httpx; with xllamacpp, llama.cpp's speed on the same file too. All take turns, so none runs beside another.
"""
import json
import sys
import time
from pathlib import Path

import httpx
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = [
    "What is the capital of France?", "Name three primary colours.", "Write a haiku about rain.", "What is 12 times 12?",
    "Explain photosynthesis to a child.", "Translate 'good morning' into Spanish.", "Who wrote Hamlet?", "List two uses of copper.",
    "What does HTTP stand for?", "Give me a recipe for pancakes.", "Why is the sky blue?", "What is a prime number?",
    "Summarise the plot of Cinderella.", "How do I boil an egg?", "Name a river in Africa.", "What is the opposite of cold?",
    "Write a sentence with the word 'lantern'.", "How many days has a leap year?", "What is the boiling point of water?",
    "Tell me a short joke.",
]
TOKENS = 64


def here(url, name):
    with httpx.Client(timeout=None) as client:
        for question in QUESTIONS:
            body = {"model": name, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": TOKENS}
            answer = client.post(url + "/v1/chat/completions", json=body).raise_for_status().json()
            yield answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]


def transformers(path, dtype):
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    yield None
    for question in QUESTIONS:
        text = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False,
                                  pad_token_id=tokenizer.eos_token_id)
        answer = made[0, ids.shape[1]:]
        yield tokenizer.decode(answer, skip_special_tokens=True), len(answer)


def llama(path):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.sampling.temp = 1024, 1, False, 0.0
    server = xllamacpp.Server(params)
    yield None
    for question in QUESTIONS:
        chat = {"messages": [{"role": "user", "content": question}], "max_tokens": TOKENS, "temperature": 0.0}
        answer = server.handle_chat_completions(chat)
        answer = json.loads(answer) if isinstance(answer, str) else answer
        yield answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]


def main():
    url, path = sys.argv[1], Path(sys.argv[2]).resolve()
    name = httpx.get(url + "/v1/models").json()["data"][0]["id"]
    runs = {"pipe": here(url, name), "transformers": transformers(path, torch.float32),
            "transformers in bf16": transformers(path, torch.bfloat16)}
    try:
        runs["llama.cpp"] = llama(path)
        next(runs["llama.cpp"])
    except ImportError as missing:
        print(f"llama.cpp: left out, {missing}")
    next(runs["transformers"])
    next(runs["transformers in bf16"])
    answers = {run: [] for run in runs}
    spent = {run: [0.0, 0] for run in runs}
    for _ in QUESTIONS:
        for run, answered in runs.items():
            began = time.perf_counter()
            text, tokens = next(answered)
            answers[run].append(text)
            spent[run][0] += time.perf_counter() - began
            spent[run][1] += tokens
    equal = [a == b for a, b in zip(answers["pipe"], answers["transformers"])]
    print(f"{sum(equal)} of {len(equal)} answers equal transformers'")
    for question, same, a, b in zip(QUESTIONS, equal, answers["pipe"], answers["transformers"]):
        if not same:
            print(f"  {question!r}\n    pipe         {a!r}\n    transformers {b!r}")
    speeds = {run: tokens / seconds for run, (seconds, tokens) in spent.items()}
    for run, speed in speeds.items():
        print(f"{run}: {speed:.1f} tokens/s over {spent[run][1]} tokens, prompts included; pipe is {speeds['pipe'] / speed:.2f} times as fast")


if __name__ == "__main__":
    main()
