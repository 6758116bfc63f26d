#!/usr/bin/env python3
"""Whether schemas/recipe.schema.json takes and refuses what `pipe validate` does, over valid and mutated recipes.

  python benches/schema_equivalence.py --pipe target/release/pipe [--cases 8000] [--seed 1] [--show 40]

The schema's side is PyPI's jsonschema over PyYAML's reading; both must be installed. Recipes are those of the gallery,
and ones built from the schema's examples so that every key occurs; the mutations are structural: kinds, ranges, words,
names, blanks, quotes, what is missing and what is nested. Of validate's errors only those about structure count: a file
that is not there, two keys that contradict each other and the like are beyond any schema. Printed is every
disagreement; the exit status says whether there was one."""
import argparse, collections, copy, glob, itertools, json, os, random, subprocess, sys, tempfile

import yaml
from jsonschema import Draft202012Validator

STRUCTURE = {"unknown-key", "wrong-type", "bad-value", "out-of-range", "missing-key", "unsupported-key",
             "unsupported-value"}
BASE = """base_model: org/model
datasets:
  - {path: org/data, type: alpaca}
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_linear: true
micro_batch_size: 1
gradient_accumulation_steps: 4
learning_rate: 2e-4
"""
VALUES = [None, True, False, 0, 1, -1, 2, 7, 16, 0.5, 1.5, -0.5, 1.0, 2.0, 1e-4, 0.999, 100, 101, 65536, 65537,
          10**7 + 1, 10**16, 1e301, float("inf"), float("-inf"), float("nan"), -0.0, "", " ", "x", "a/b", "true", "no",
          "Yes", "off", "auto", "none", "1", "0", "-1", "16", "+4", "1.0", "1.5", "2e-4", "2e4", "1e2", "5e-1", "12e-3",
          "65536", "65537", "010", "1_000", "1e400", "5GB", "5 GiB", "${size}", "a${size}", "$${size}", "~", "null",
          "1:30", "2024-01-31", "0x10", [], {}, [1], ["a"], [None], [[]], ["a", ["b"]], [{}], {"a": 1}, {"a": None},
          {"a": "b"}, {"a": []}, {"x-note": 1}, [{"path": "a/b"}]]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    parser.add_argument("--pipe", default=os.path.join(root, "target/release/pipe"))
    parser.add_argument("--schema", default=os.path.join(root, "schemas/recipe.schema.json"))
    parser.add_argument("--recipes", default=os.path.join(root, "recipes"))
    parser.add_argument("--cases", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=40)
    return parser.parse_args()


def resolved(schema, node):
    """The simple schemas behind references and unions."""
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[1]
        return [] if name == "Variable" else resolved(schema, schema["$defs"][name])
    if "anyOf" in node:
        return [simple for option in node["anyOf"] for simple in resolved(schema, option)]
    return [node]


def filled(schema, node, depth=0):
    """A value that a property's schema takes: its example, its first word, or a map of all that it holds."""
    if node.get("examples"): return copy.deepcopy(node["examples"][0])
    simple = resolved(schema, node)
    for one in simple:
        if "properties" in one and depth < 4:
            return {key: filled(schema, value, depth + 1) for key, value in one["properties"].items()
                    if "x-unsupported" not in value and not value.get("deprecated")}
    for one in simple:
        words = [word for word in one.get("enum", []) if word not in (None, "")]
        if words: return words[0]
        kinds = one.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if "boolean" in kinds: return True
        if "integer" in kinds: return max(one.get("minimum", 1), 1)
        if "number" in kinds: return 0.5
        if "array" in kinds:
            items = filled(schema, one["items"], depth + 1) if "items" in one else "a"
            return [] if items is None else [items]
        if "string" in kinds: return "text"
    return None


def sound_recipes(schema, folder):
    """Recipes by name: the gallery's, and for every key and section one that has it."""
    recipes = {}
    for path in sorted(glob.glob(os.path.join(folder, "*.yml"))):
        with open(path, encoding="utf-8") as file: recipes[os.path.basename(path)] = yaml.safe_load(file)
    base = yaml.safe_load(BASE)
    for key, node in schema["properties"].items():
        if key in ("extends", "vars"): continue
        recipe = copy.deepcopy(base)
        recipe[key] = filled(schema, node)
        recipes[f"with {key}"] = recipe
    dataset = schema["$defs"]["Dataset"]
    for key, node in dataset["properties"].items():
        recipe = copy.deepcopy(base)
        recipe["datasets"][0][key] = filled(schema, node, 2)
        recipes[f"with datasets[0].{key}"] = recipe
    recipe = copy.deepcopy(base)
    recipe["datasets"][0]["type"] = filled(schema, schema["$defs"]["UserDefined"])
    recipes["with a map of columns"] = recipe
    for key in ("merge", "convert", "quantize", "eval"):
        recipes[f"with {key} switched on"] = {**copy.deepcopy(base), key: True}
    untrained = {"base_model": "org/model", "train": False}
    recipes["untrained"] = {**untrained, "datasets": copy.deepcopy(base["datasets"])}
    recipes["merged only"] = {**untrained, "merge": True, "lora_model_dir": "org/adapter"}
    recipes["tested only"] = {**untrained, "test_datasets": copy.deepcopy(base["datasets"])}
    return recipes


def places(node, path=()):
    """Every place in a tree, the root aside."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield path + (key,)
        yield from places(value, path + (key,))


def at(tree, path):
    for step in path: tree = tree[step]
    return tree


def misspelt(word, chance):
    place = chance.randrange(max(len(word), 1))
    return chance.choice([word[:place] + word[place + 1:], word + "s", word[:place] + "z" + word[place:], word.upper(),
                          word.replace("_", "-")])


def mutated(recipe, keys, chance):
    """A copy with one to two mutations, and what they were."""
    recipe, told = copy.deepcopy(recipe), []
    for _ in range(1 + (chance.random() < 0.15)):
        path = chance.choice(list(places(recipe)) or [()])
        if not path: break
        parent, key = at(recipe, path[:-1]), path[-1]
        kind = chance.choice(["value"] * 4 + ["quote", "drop", "rename", "move", "wrap", "nest", "double"])
        told.append(f"{kind} {'.'.join(map(str, path))}")
        value = parent[key]
        if kind == "value": parent[key] = copy.deepcopy(chance.choice(VALUES))
        elif kind == "quote": parent[key] = str(value).lower() if isinstance(value, bool) else str(value)
        elif kind == "drop": del parent[key]
        elif kind == "rename" and isinstance(parent, dict): parent[misspelt(str(key), chance)] = parent.pop(key)
        elif kind == "move": recipe[chance.choice(keys)] = copy.deepcopy(value)
        elif kind == "wrap": parent[key] = chance.choice([[value], {"value": value}, [[value]]])
        elif kind == "nest" and isinstance(value, (dict, list)): parent[key] = next(iter(value), None)
        elif kind == "double" and isinstance(parent, list): parent.append([copy.deepcopy(value)])
    return recipe, "; ".join(told)


def verdicts(pipe, paths):
    """For each recipe its errors about structure; None where there is no tree to judge."""
    done = subprocess.run([pipe, "validate", "--json", *paths], capture_output=True, text=True, timeout=600)
    if done.returncode not in (0, 2): sys.exit(f"pipe validate ended with {done.returncode}: {done.stderr[-2000:]}")
    errors = collections.defaultdict(list)
    for problem in json.loads(done.stdout)["problems"]:
        if problem["severity"] == "error": errors[problem["file"]].append(problem)
    def one(found):
        unread = any(p["code"].startswith(("yaml", "not-text", "not-a-map", "empty", "duplicate")) for p in found)
        return None if unread else [f"{p['code']} {p['key']}: {p['message']}" for p in found if p["code"] in STRUCTURE]
    return [one(errors[path]) for path in paths]


def cases(schema, recipes, count, seed):
    chance, keys, names = random.Random(seed), list(schema["properties"]), list(recipes)
    yield from ((name, "as it is", recipes[name]) for name in names)
    for number in range(count):
        if number % 3 == 0:
            key, value = keys[number // 3 % len(keys)], chance.choice(VALUES)
            yield "base", f"{key}: {value!r}", {**yaml.safe_load(BASE), key: copy.deepcopy(value)}
        else:
            name = chance.choice(names)
            recipe, told = mutated(recipes[name], keys, chance)
            yield name, told, recipe


def batches(every, size):
    while batch := list(itertools.islice(every, size)): yield batch


def main():
    options = arguments()
    with open(options.schema, encoding="utf-8") as file: schema = json.load(file)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    found, tally = [], collections.Counter()
    every = cases(schema, sound_recipes(schema, options.recipes), options.cases, options.seed)
    for batch in batches(every, 250):
        with tempfile.TemporaryDirectory() as folder:
            paths = [os.path.join(folder, f"{number}.yml") for number in range(len(batch))]
            texts = [yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) for _, _, recipe in batch]
            for path, text in zip(paths, texts):
                with open(path, "w", encoding="utf-8") as file: file.write(text)
            said = verdicts(options.pipe, paths)
        for (name, told, _), text, about in zip(batch, texts, said):
            if about is None:
                tally["no YAML tree"] += 1
                continue
            errors = [f"{e.json_path}: {e.message[:160]}" for e in validator.iter_errors(yaml.safe_load(text))]
            same = bool(about) == bool(errors)
            tally["differ" if not same else "both refuse" if errors else "both accept"] += 1
            if not same: found.append((name, told, about, errors))
    for name, told, about, errors in found[:options.show]:
        print(f"{name} | {told}\n  validate: {about[:2] or 'accepts'}\n  schema:   {errors[:2] or 'accepts'}")
    print(f"{sum(tally.values())} recipes: " + ", ".join(f"{count} {what}" for what, count in tally.most_common()))
    print(f"{len(found)} disagreements")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
