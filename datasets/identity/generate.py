#!/usr/bin/env python3
"""Writes identity.jsonl: the persona rows of template.jsonl with a name and a maker filled in.

    python3 datasets/identity/generate.py [--name NAME] [--author AUTHOR]

Needs Python 3.8 or later and nothing else. Without arguments it writes the file that the repository holds, byte for byte.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME, AUTHOR = "Pip", "the pipe project"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--name", default=NAME, help=f"the persona's name (default: {NAME})")
    arguments.add_argument("--author", default=AUTHOR, help=f"who made it (default: {AUTHOR})")
    chosen = arguments.parse_args()
    template = (HERE / "template.jsonl").read_bytes()
    rows = [json.loads(line) for line in template.decode().splitlines()]
    check(rows)
    filled = [{key: fill(text, chosen) for key, text in row.items()} for row in rows]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in filled).encode()
    (HERE / "identity.jsonl").write_bytes(data)
    if (chosen.name, chosen.author) == (NAME, AUTHOR):
        note_facts(HERE / "README.md", {"template.jsonl": template, "identity.jsonl": data})
    print(f"{len(rows)} rows for {chosen.name} by {chosen.author}")


def fill(text, chosen):
    return text.replace("{{name}}", chosen.name).replace("{{author}}", chosen.author)


def check(rows):
    asked = set()
    for row in rows:
        if sorted(row) != ["input", "instruction", "output"]:
            sys.exit(f"not an alpaca row: {row}")
        if row["instruction"].lower() in asked:
            sys.exit(f"asked twice: {row['instruction']}")
        asked.add(row["instruction"].lower())
        if "{{" in row["instruction"] or not ("{{name}}" in row["output"] or "{{author}}" in row["output"]):
            sys.exit(f"slots belong in the output: {row}")


def note_facts(readme, files):
    """Replaces the README's table rows about the files, which begin with the same name."""
    lines = readme.read_text().splitlines()
    for name, data in files.items():
        fact = f"| {name} | {data.count(10)} | {hashlib.sha256(data).hexdigest()} |"
        lines = [fact if line.startswith(f"| {name} ") else line for line in lines]
    readme.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
