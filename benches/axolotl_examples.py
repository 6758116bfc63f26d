#!/usr/bin/env python3
"""What `pipe validate` says of Axolotl's example recipes.

  git clone https://github.com/axolotl-ai-cloud/axolotl
  python benches/axolotl_examples.py --pipe target/release/pipe axolotl/examples [--show]

Needs PyYAML. Counted are recipes with a `base_model`: crashes, problems without a place, and, of the text LoRA and
QLoRA recipes for supervised tuning, those that are valid or whose every error names something that is not supported. A
file that the example does not bring along (a data set of one's own, a template) is not held against either side. With
--show every other error is printed."""
import argparse, collections, json, os, subprocess, sys

import yaml

UNSUPPORTED = {"unsupported-key", "unsupported-value", "unserved", "unsupported-model"}
ABSENT = {"missing-file", "dataset-files"}
OTHER_TASKS = ("rl", "reward_model", "process_reward_model", "pretraining_dataset", "processor_type", "streaming",
               "diffusion")


def recipes(folder):
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(place, name)
            if not name.endswith((".yml", ".yaml")): continue
            try:
                with open(path, encoding="utf-8") as file: tree = yaml.safe_load(file)
            except yaml.YAMLError:
                tree = None
            if isinstance(tree, dict) and "base_model" in tree: yield path, tree


def is_text_adapter(path, tree):
    return tree.get("adapter") in ("lora", "qlora") and not any(tree.get(key) for key in OTHER_TASKS) and (
        "archived" not in path.split(os.sep))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("examples")
    parser.add_argument("--pipe", default="target/release/pipe")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    found = list(recipes(options.examples))
    crashes, unplaced, text, good, valid, others = 0, 0, 0, 0, 0, collections.Counter()
    for path, tree in found:
        done = subprocess.run([options.pipe, "validate", "--json", path], capture_output=True, text=True, timeout=60)
        if done.returncode not in (0, 2) or "panicked" in done.stderr:
            crashes += 1
            print(f"{path}: ended with {done.returncode}: {done.stderr[-300:]}")
            continue
        problems = json.loads(done.stdout)["problems"]
        unplaced += sum(p["line"] is None for p in problems)
        errors = [p for p in problems if p["severity"] == "error"]
        valid += not errors
        if not is_text_adapter(path, tree): continue
        text += 1
        wrong = [p for p in errors if p["code"] not in UNSUPPORTED | ABSENT]
        good += not wrong
        for problem in wrong:
            others[problem["code"]] += 1
            if options.show: print(f"{path}:{problem['line']}: {problem['code']} {problem['message']}")
    print(f"{len(found)} recipes with a base_model: {crashes} crashes, {unplaced} problems without a place, "
          f"{valid} valid")
    print(f"{text} text LoRA and QLoRA recipes: {good} ({good / max(text, 1):.1%}) valid or asking only for what is "
          f"not supported; other errors: {dict(others)}")
    return 1 if crashes or unplaced else 0


if __name__ == "__main__":
    sys.exit(main())
