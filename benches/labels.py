#!/usr/bin/env python3
"""Ids and labels of real rows in six formats, against transformers' tokenizer and labels worked out piece by piece.

  python benches/labels.py --pipe target/release/pipe --model MODEL.gguf --alpaca alpaca.json --chats chats.jsonl [--rows 80]

ALPACA is a JSON list of {instruction, input, output}; CHATS holds a {"messages": [...]} per line. Each row is put together
from pieces that are known to be trained or not; a token is trained when it overlaps a trained piece. Needs transformers
and gguf; MODEL is SmolLM2. Prints the number of rows that are equal token for token, and the first that are not."""
import argparse, json, os, subprocess, sys, tempfile

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
WITH = ("Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
        "that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n")
WITHOUT = ("Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
           "### Instruction:\n{instruction}\n\n### Response:\n")


def chat(messages):
    if messages[0]["role"] != "system": messages = [{"role": "system", "content": SYSTEM}] + messages
    for m in messages:
        answer = m["role"] == "assistant"
        yield f"<|im_start|>{m['role']}\n", False
        yield m["content"], answer
        yield "<|im_end|>", answer
        yield "\n", False


def whole(tok, pieces):
    """One text, tokenised once."""
    pieces = list(pieces)
    trained = [flag for text, flag in pieces for _ in text]
    encoded = tok("".join(text for text, _ in pieces), add_special_tokens=False, return_offsets_mapping=True)
    labels = [i if any(trained[a:b]) else -100 for i, (a, b) in zip(encoded["input_ids"], encoded["offset_mapping"])]
    return encoded["input_ids"], labels


def apart(tok, pieces, eos):
    """Each piece tokenised for itself; an EOS after the last where it has none."""
    ids, labels = [], []
    for text, trained in pieces:
        own = tok(text, add_special_tokens=False)["input_ids"]
        ids += own
        labels += own if trained else [-100] * len(own)
    if eos and (not ids or ids[-1] != tok.eos_token_id):
        ids.append(tok.eos_token_id)
        labels.append(tok.eos_token_id)
    return ids, labels


def formats(tok, alpaca, chats):
    def prompt(row): return (WITH if row["input"] else WITHOUT).format(**row)
    def turns(row): return [{"role": "user", "content": row["instruction"] + "\n" * bool(row["input"]) + row["input"]},
                            {"role": "assistant", "content": row["output"]}]
    pairs = [turns(a) + turns(b) for a, b in zip(alpaca, alpaca[1:])]
    names = {"user": "human", "assistant": "gpt"}
    yield "alpaca", {"type": "alpaca"}, alpaca, [apart(tok, [(prompt(r), False), (r["output"], True)], True) for r in alpaca]
    yield "messages", {"type": "chat_template"}, chats, [whole(tok, chat(r["messages"])) for r in chats]
    yield ("sharegpt", {"type": "chat_template", "field_messages": "conversations", "message_property_mappings":
                        {"role": "from", "content": "value"}},
           [{"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in p]} for p in pairs],
           [whole(tok, chat(p)) for p in pairs])
    yield ("completion", {"type": "completion"}, [{"text": r["output"]} for r in alpaca],
           [apart(tok, [(r["output"], True)], True) for r in alpaca])
    def segments(row): return [("<s>" + row["instruction"], False), (" " + row["output"] + "\n", True), ("---", False)]
    yield ("input_output", {"type": "input_output"},
           [{"segments": [{"text": text, "label": flag} for text, flag in segments(r)]} for r in alpaca],
           [apart(tok, segments(r), False) for r in alpaca])
    yield ("user_defined", {"type": {"field_instruction": "instruction", "field_input": "input", "field_output": "output",
                                     "format": "[Q] {instruction} ({input}) [A] ", "no_input_format": "[Q] {instruction} [A] "}},
           alpaca, [apart(tok, [((f"[Q] {r['instruction']} ({r['input']}) [A] " if r["input"] else
                                  f"[Q] {r['instruction']} [A] "), False), (r["output"], True)], True) for r in alpaca])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipe", default="target/release/pipe")
    for name in ("model", "alpaca", "chats"): parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rows", type=int, default=80)
    args = parser.parse_args()
    folder, file = os.path.split(os.path.abspath(args.model))
    tok = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    # transformers leaves out what SmolLM2's own tokenizer.json has, and its GGUF names by "smollm": digits stand alone.
    tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alpaca = [row for row in json.load(open(args.alpaca)) if row["output"].strip()][: args.rows + 1]
    chats = [json.loads(line) for _, line in zip(range(args.rows), open(args.chats))]
    equal = total = 0
    for name, keys, rows, expected in formats(tok, alpaca, chats):
        rows, expected = rows[: args.rows], expected[: args.rows]
        with tempfile.TemporaryDirectory() as work:
            with open(os.path.join(work, "rows.jsonl"), "w") as out:
                out.writelines(json.dumps(row) + "\n" for row in rows)
            recipe = {"base_model": os.path.abspath(args.model), "datasets": [{"path": "rows.jsonl", **keys}], "train": False,
                      "eval": False, "sequence_len": 8192, "output_dir": "out"}
            with open(os.path.join(work, "r.yml"), "w") as out: json.dump(recipe, out)
            path = os.path.join(work, "r.yml")
            subprocess.run([args.pipe, "run", path, "--until", "tokenize", "--quiet"], check=True, stderr=subprocess.DEVNULL)
            shown = subprocess.run([args.pipe, "show", path, "tokenize", "--json", "--rows", str(len(rows))], check=True,
                                   capture_output=True, text=True)
        found = [(row["input_ids"], row["labels"]) for row in json.loads(shown.stdout)["rows"]]
        same = sum(f == (list(e[0]), list(e[1])) for f, e in zip(found, expected)) if len(found) == len(expected) else 0
        equal, total = equal + same, total + len(expected)
        print(f"{name:13} {same} of {len(expected)} rows equal" + (f" ({len(found)} came out)" if len(found) != len(expected) else ""))
        for f, e in zip(found, expected):
            if f != (list(e[0]), list(e[1])):
                at = next((i for i, pair in enumerate(zip(zip(*f), zip(*e))) if pair[0] != pair[1]), -1)
                print(f"  at {at}: {f[0][at-3:at+4]} {f[1][at-3:at+4]}, expected {e[0][at-3:at+4]} {e[1][at-3:at+4]}")
                break
    print(f"{equal} of {total} rows equal, ids and labels")
    return 0 if equal == total else 1


sys.exit(main())
