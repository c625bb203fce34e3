"""Checks that a step of CI runs every command that the docs and the workflows show: python3 tests/commands.py.

tests/commands.toml says for each block of commands which step of .ci/run or .ci/nightly runs it, or why none can. A block that stands in no
entry, an entry without a block, and a step that doesn't exist are errors, and so is a `just` recipe in the docs that the justfile lacks.

    python3 tests/commands.py                       the check
    python3 tests/commands.py FILE BEGINNING        prints the one block of FILE that begins so
"""

import pathlib
import re
import subprocess
import sys
import tomllib

CLONE = pathlib.Path(__file__).resolve().parent.parent
KINDS = {"sh", "bash", "shell", "console"}
PAGES = [*(CLONE / name for name in ("README.md", "CONTRIBUTING.md", "clients/python/README.md")), *sorted((CLONE / "docs").rglob("*.md"))]


def fail(faults):
    sys.exit("\n".join(f"error: {fault}" for fault in faults))


def read(path):
    return path.read_text(encoding="utf-8")


def blocks_of_page(text):
    """The fenced blocks of commands. Of a console's block, the lines behind the prompt."""
    for kind, block in re.findall(r"^ *```(\w+)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        if kind == "console":
            block = "".join(f"{line[2:]}\n" for line in block.splitlines() if line.startswith("$ "))
        if kind in KINDS:
            yield block


def blocks_of_workflow(text):
    """Yields the commands of each `run` of a workflow."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        found = re.match(r"( *)(?:- )?run: (.*)", line)
        if found and found[2] != "|":
            yield f"{found[2]}\n"
        elif found:
            depth = len(line) - len(line.lstrip(" -"))
            end = next((n for n in range(at + 1, len(lines)) if lines[n].strip() and not lines[n].startswith(" " * (depth + 1))), len(lines))
            yield "".join(f"{inner.strip()}\n" for inner in lines[at + 1 : end])


def all_blocks():
    """Every block, as the file's name and the text."""
    for page in PAGES:
        for block in blocks_of_page(read(page)):
            yield str(page.relative_to(CLONE)), block
    for workflow in sorted((CLONE / ".github/workflows").glob("*.yml")):
        for block in blocks_of_workflow(read(workflow)):
            yield str(workflow.relative_to(CLONE)), block


def first_line(block):
    return next(line for line in block.splitlines() if line.strip() and not line.startswith("#!"))


def faults_of_blocks(steps):
    entries = tomllib.loads(read(CLONE / "tests/commands.toml"))["block"]
    for entry in entries:
        if ("step" in entry) == ("not_run" in entry):
            yield f"tests/commands.toml: an entry of {entry['file']} needs either a `step` or `not_run` with the reason"
        if entry.get("step", steps[0]) not in steps:
            yield f"tests/commands.toml: there is no step {entry['step']}"
    met = set()
    for file, block in all_blocks():
        fitting = [n for n, entry in enumerate(entries) if entry["file"] == file and first_line(block).startswith(entry.get("begins", ""))]
        met.update(fitting)
        if len(fitting) != 1:
            yield f"{file}: {len(fitting)} entries of tests/commands.toml, not one, are for the block that begins with `{first_line(block)}`"
    for n in sorted(set(range(len(entries))) - met):
        yield f"tests/commands.toml: {entries[n]['file']} has no block that begins with `{entries[n].get('begins', '')}`"


def faults_of_steps(nightly):
    """Each step of .ci/nightly is in CONTRIBUTING.md and in the workflow of releases."""
    contributing, workflow = read(CLONE / "CONTRIBUTING.md"), read(CLONE / ".github/workflows/release.yml")
    for step in nightly:
        if f"`{step}`" not in contributing:
            yield f"CONTRIBUTING.md lacks the step {step}"
        if not re.search(rf"(?<![\w-]){step}(?![\w-])", workflow):
            yield f".github/workflows/release.yml lacks the step {step}"


def faults_of_recipes():
    recipes = set(re.findall(r"^([a-z][a-z-]*)(?: [^:=]*)?:(?!=)", read(CLONE / "justfile"), re.MULTILINE))
    for page in PAGES:
        for recipe in re.findall(r"(?:`|^ *)just ([a-z][a-z-]*)", read(page), re.MULTILINE):
            if recipe not in recipes:
                yield f"{page.relative_to(CLONE)}: the justfile has no recipe {recipe}"


def main():
    if len(sys.argv) == 3:
        file, beginning = sys.argv[1:]
        found = [block for name, block in all_blocks() if name == file and first_line(block).startswith(beginning)]
        if len(found) != 1:
            fail([f"{file} has {len(found)} blocks that begin with `{beginning}`, not one"])
        print(found[0], end="")
        return
    nightly = subprocess.run([CLONE / ".ci/nightly", "--list"], check=True, capture_output=True, text=True).stdout.split()
    steps = nightly + re.findall(r"^run ([\w-]+)", read(CLONE / ".ci/run"), re.MULTILINE)
    faults = [*faults_of_blocks(steps), *faults_of_steps(nightly), *faults_of_recipes()]
    if faults:
        fail(faults)
    print(f"{len(list(all_blocks()))} blocks of commands have a step, or a reason why none runs them")


if __name__ == "__main__":
    main()
