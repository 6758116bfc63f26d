#!/usr/bin/env python3
"""Writes train.jsonl and test.jsonl: requests in plain words and the docker command that answers each.

    python3 datasets/docker-commands/generate.py

Needs Python 3.8 or later and nothing else. Every choice comes from SHA-256 of a fixed seed, so any machine and any
Python writes the same bytes. It stops with a message when a phrasing breaks one of the rules in `check`.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

from slots import CLOSED, OPEN, pool

HERE = Path(__file__).resolve().parent
SEED = "docker-commands 1"
TEST_ROWS = 3
TRAIN_ROWS = (34, 40, 46)  # of a kind with no, one, or more slots: what has to be copied takes more seeing,
ROWS_BY_SIBLING = 9  # and so does what has to be told from other kinds of the same command, such as run or ps,
MOST_SIBLINGS = 3  # of which so many count
MAX_WORDS = 30
MAX_SHARED_VALUES = 0.3

# How an imperative phrasing may be wrapped; "{}" alone is the bare request.
FRAMES = {
    "train": ["{}", "{}", "{}", "please {}", "{} please", "can you {}?", "could you {}?", "how do I {}?", "I want to {}",
              "I need to {}", "what is the command to {}?", "help me {}", "show me how to {}", "hey, {}",
              "which command do I use to {}?", "I have to {}"],
    "test": ["{}", "{}", "would you {}?", "I would like to {}", "how can I {}?", "give me the command to {}",
             "{}, thanks", "what do I type to {}?"],
}
TYPO_SHARE = {"train": 16, "test": 25}  # one row in so many has a mistyped word
CAPITAL_SHARE = 3
MARKS = {"+": ("train", True), "=": ("train", False), "-": ("test", True), "~": ("test", False)}
SLOT = re.compile(r"(?<!\{)\{([a-z_]+)\}(?!\})")


class Kind:
    """One kind of request: its command and its phrasings, each (text, may be wrapped), by split."""

    def __init__(self, name, command):
        self.name = name
        self.command = command
        self.phrasings = {"train": [], "test": []}

    def verb(self):
        return self.command.split()[1]


class Draws:
    """A stream of choices that depends on its name alone."""

    def __init__(self, name):
        self.name = name
        self.count = 0

    def below(self, n):
        """A whole number from 0 to n - 1."""
        self.count += 1
        digest = hashlib.sha256(f"{SEED}/{self.name}/{self.count}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % n

    def one_of(self, values):
        return values[self.below(len(values))]


def main():
    kinds = read_kinds(HERE / "phrasings.txt")
    check_phrasings(kinds)
    train, test = rows(kinds, "train", set()), rows(kinds, "test", set())
    check_rows(train, test)
    facts = [write(HERE / f"{name}.jsonl", table) for name, table in (("train", train), ("test", test))]
    note_facts(HERE / "README.md", facts)
    print(f"{len(train)} train and {len(test)} test rows of {len(kinds)} kinds")


def read_kinds(path):
    kinds = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        head = re.fullmatch(r"\[([a-z_]+)\] (.+)", line)
        if head:
            kinds.append(Kind(*head.groups()))
        elif line[:2].strip() in MARKS and kinds:
            split, wrap = MARKS[line[0]]
            kinds[-1].phrasings[split].append((line[2:], wrap))
        else:
            sys.exit(f"{path.name}:{number}: neither a [kind] nor a phrasing: {line}")
    return kinds


def rows(kinds, split, seen):
    """Rows of one split: each kind walks its phrasings in turn, with fresh slots, until it has its share."""
    table = []
    for kind in kinds:
        made, wanted = 0, row_count(kind, kinds, split)
        while made < wanted:
            text, wrap = kind.phrasings[split][made % len(kind.phrasings[split])]
            for attempt in range(200):
                row = make_row(kind, text, wrap, split, Draws(f"{split}/{kind.name}/{made}/{attempt}"))
                said = (row["instruction"] + " " + row["input"]).lower()
                if said not in seen:
                    break
            else:
                sys.exit(f"{kind.name}: '{text}' gives no {wanted} different rows")
            seen.add(said)
            table.append(row)
            made += 1
    return table


def row_count(kind, kinds, split):
    if split == "test":
        return TEST_ROWS
    slots = len(set(SLOT.findall(kind.command)))
    siblings = sum(other.verb() == kind.verb() for other in kinds) - 1
    return TRAIN_ROWS[min(slots, len(TRAIN_ROWS) - 1)] + ROWS_BY_SIBLING * min(siblings, MOST_SIBLINGS)


def make_row(kind, text, wrap, split, draws):
    instruction, _, given = text.partition(" | ")
    if wrap:
        instruction = draws.one_of(FRAMES[split]).replace("{}", instruction)
    if draws.below(TYPO_SHARE[split]) == 0:
        instruction = mistype(instruction, draws)
    if draws.below(CAPITAL_SHARE) == 0 and not instruction.startswith("{"):
        instruction = instruction[0].upper() + instruction[1:]
    values = {}
    for slot in sorted(set(SLOT.findall(kind.command + text))):
        value = draws.one_of(pool(slot, split))
        values[slot] = value if isinstance(value, tuple) else (value, value)
    return {
        "instruction": fill(instruction, values, 0),
        "input": fill(given.replace(" / ", "\n"), values, 0),
        "output": fill(kind.command, values, 1),
    }


def fill(text, values, side):
    """Puts the request's (side 0) or the command's (side 1) spelling of each value into `text`."""
    return SLOT.sub(lambda slot: values[slot.group(1)][side] if slot.group(1) in values else slot.group(0), text)


def mistype(text, draws):
    """Swaps two neighbours, drops or doubles a letter inside one word of five letters or more."""
    words = [m for m in re.finditer(r"[A-Za-z]{5,}", text) if not inside_slot(text, m.start())]
    if not words:
        return text
    word = draws.one_of(words)
    letters = word.group()
    at = 1 + draws.below(len(letters) - 2)
    kind = draws.below(3)
    if kind == 0:
        letters = letters[:at] + letters[at + 1] + letters[at] + letters[at + 2:]
    elif kind == 1:
        letters = letters[:at] + letters[at + 1:]
    else:
        letters = letters[:at] + letters[at] + letters[at:]
    return text[:word.start()] + letters + text[word.end():]


def inside_slot(text, at):
    return text.rfind("{", 0, at) > text.rfind("}", 0, at)


def in_order(table):
    """Kinds mixed, in an order that any Python finds again."""
    return sorted(table, key=lambda row: hashlib.sha256(f"{SEED}/{json.dumps(row)}".encode()).digest())


def write(path, table):
    """Writes the rows; returns the README's line about them."""
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in in_order(table)).encode()
    path.write_bytes(data)
    return f"| {path.name} | {len(table)} | {hashlib.sha256(data).hexdigest()} |"


def note_facts(readme, facts):
    """Replaces the README's table rows about the files, which begin with the same name."""
    lines = readme.read_text().splitlines()
    for fact in facts:
        start = fact[: fact.index("|", 1)]
        lines = [fact if line.startswith(start) else line for line in lines]
    readme.write_text("\n".join(lines) + "\n")


def check_phrasings(kinds):
    """Enough phrasings of each kind, none shared by two kinds or by train and test, every slot told in the request."""
    seen = {}
    for kind in kinds:
        if len(kind.phrasings["train"]) < 10 or len(kind.phrasings["test"]) < 4:
            sys.exit(f"{kind.name}: at least 10 train and 4 test phrasings, please")
        for split in ("train", "test"):
            for text, _ in kind.phrasings[split]:
                if set(SLOT.findall(text)) != set(SLOT.findall(kind.command)):
                    sys.exit(f"{kind.name}: '{text}' does not have the slots of '{kind.command}'")
                home = (kind.name, split)
                if seen.setdefault(bag(text), home) != home:
                    sys.exit(f"{kind.name}: '{text}' has the words of a phrasing of {seen[bag(text)]}")


def bag(text):
    """The words of a phrasing, whatever their order, case and punctuation."""
    return tuple(sorted(re.findall(r"\{[a-z_]+\}|[a-z]+", text.lower())))


def check_rows(train, test):
    """No test request in train, short requests, one answer per request, few shared slot values."""
    asked = {}
    for row in train + test:
        key = (row["instruction"].lower(), row["input"])
        if key in asked and asked[key] != row["output"]:
            sys.exit(f"two answers to '{row['instruction']}'")
        asked[key] = row["output"]
        if len(row["instruction"].split()) >= MAX_WORDS:
            sys.exit(f"too long: '{row['instruction']}'")
    known = {(row["instruction"].lower(), row["input"]) for row in train}
    for row in test:
        if (row["instruction"].lower(), row["input"]) in known:
            sys.exit(f"in train and in test: '{row['instruction']}'")
    for slot in OPEN:
        values, known = pool(slot, "test"), pool(slot, "train")
        shared = [v for v in values if v in known]
        if len(shared) > MAX_SHARED_VALUES * len(values):
            sys.exit(f"{slot}: test shares {len(shared)} of {len(values)} values with train: {shared}")
        if slot in CLOSED:
            sys.exit(f"{slot} is both open and closed")


if __name__ == "__main__":
    main()
