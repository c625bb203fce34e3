"""Checks without a container engine that the Dockerfile copies everything that cargo needs: python3 tests/dockerfile.py.

For each stage that runs cargo, lays out in a temporary folder the files that the stage copies before its first `cargo build` or `cargo test`,
as far as .dockerignore lets them into the build context. In that folder `cargo metadata --locked --offline` has to work, every target has
to have its file, and every file that the sources include at compile time has to exist. The build context has to have all that tests read.

Needs cargo and git, and the dependencies in cargo's cache, where a build leaves them.
"""

import fnmatch
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib

CLONE = pathlib.Path(__file__).resolve().parent.parent
# The top of the clone that no test reads: the suite in the container does without.
NOT_FOR_TESTS = {".ci", ".dockerignore", ".gitattributes", ".gitignore", "output"}


def fail(message):
    sys.exit(f"error: {message}")


def output_of(*command, cwd=CLONE):
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if ran.returncode != 0:
        fail(f"`{' '.join(command)}` fails in the files that the Dockerfile copies:\n{ran.stderr.strip()}")
    return ran.stdout


def files_of_clone():
    """All files that git tracks or would add."""
    names = output_of("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return sorted({name for name in names if name and (CLONE / name).is_file()})


def is_ignored(name, patterns):
    """Returns true if the last pattern that matches the file, or a folder above it, is one without `!`."""
    parts = name.split("/")
    paths = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    ignored = False
    for pattern in patterns:
        wanted = pattern.removeprefix("!").strip("/")
        same_depth = (path for path in paths if path.count("/") == wanted.count("/"))
        if any(fnmatch.fnmatchcase(path, wanted) for path in same_depth):
            ignored = not pattern.startswith("!")
    return ignored


def stages():
    """Each stage's base and instructions, by the stage's name."""
    text = (CLONE / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = (base, [])
        elif instruction in ("COPY", "RUN"):
            found[name][1].append((instruction, rest.split()))
    return found


def copies_before_cargo(name, by_name):
    """Returns what a stage and its bases copy from the context until cargo runs, and whether cargo runs."""
    base, instructions = by_name[name]
    copies, runs_cargo = copies_before_cargo(base, by_name) if base in by_name else ([], False)
    for instruction, words in instructions:
        if runs_cargo:
            break
        if instruction == "RUN":
            runs_cargo = re.search(r"\bcargo (build|test)\b", " ".join(words)) is not None
        elif not any(word.startswith("--from=") for word in words):
            copies.append([word for word in words if not word.startswith("--")])
    return copies, runs_cargo


def lay_out(copies, context, folder):
    """Does what the COPY instructions do. The folder stands for the stage's working directory."""
    for *sources, destination in copies:
        for source in (source.strip("/") for source in sources):
            chosen = [name for name in context if source in (".", name) or name.startswith(f"{source}/")]
            if not chosen:
                fail(f"the Dockerfile copies {source}, which .dockerignore or the clone lacks")
            if destination.startswith("/"):
                continue
            for name in chosen:
                if name == source:
                    to_folder = destination.endswith("/")
                    target = folder / destination / pathlib.PurePosixPath(name).name if to_folder else folder / destination
                else:
                    target = folder / destination / (name if source == "." else name.removeprefix(f"{source}/"))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(CLONE / name, target)


def check_crates(folder):
    """Fails if cargo can't read the manifests, or if the file of a target or an included file is missing."""
    host = re.search(r"^host: (.*)$", output_of("rustc", "-vV"), re.MULTILINE)[1]
    # Without the dependencies of other platforms, which a build here doesn't fetch.
    described = output_of("cargo", "metadata", "--locked", "--offline", "--format-version=1", f"--filter-platform={host}", cwd=folder)
    described = json.loads(described)
    number, missing = 0, []
    for package in described["packages"]:
        if package["id"] not in described["workspace_members"]:
            continue
        manifest = pathlib.Path(package["manifest_path"])
        targets = {(target["kind"][0], target["name"]) for target in package["targets"] if pathlib.Path(target["src_path"]).is_file()}
        number += len(targets)
        # `cargo metadata` passes over a target that has no file; `cargo build` fails.
        for kind, named in tomllib.loads(manifest.read_text(encoding="utf-8")).items():
            if kind in ("bin", "bench", "example", "test"):
                missing += [f"the {kind} {target['name']}" for target in named if (kind, target["name"]) not in targets]
        for file in manifest.parent.glob("src/**/*.rs"):
            code = file.read_text(encoding="utf-8").split("\n#[cfg(test)]\nmod tests")[0]
            included = [file.parent / name for name in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', code)]
            missing += [str(path.resolve().relative_to(folder)) for path in included if not path.is_file()]
    if missing:
        fail(f"the Dockerfile doesn't copy {', '.join(missing)}")
    return number


def main():
    files = files_of_clone()
    lines = (CLONE / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    context = [name for name in files if not is_ignored(name, patterns)]
    tops = {name.split("/")[0] for name in set(files) - set(context)} - NOT_FOR_TESTS
    if tops:
        fail(f".dockerignore keeps out what the suite in the container may read: {', '.join(sorted(tops))}")
    by_name = stages()
    checked = []
    for name in by_name:
        copies, runs_cargo = copies_before_cargo(name, by_name)
        with tempfile.TemporaryDirectory() as folder:
            lay_out(copies, context, pathlib.Path(folder))
            if runs_cargo:
                checked.append(f"{name} ({check_crates(pathlib.Path(folder).resolve())} targets)")
    if not checked:
        fail("no stage of the Dockerfile runs cargo")
    print(f"the Dockerfile's stages have what cargo needs: {', '.join(checked)}")


if __name__ == "__main__":
    main()
