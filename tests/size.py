"""Compares the size of the tree with tests/size.toml, and prints both. Exits with 1 if a figure is larger than its limit."""

import pathlib
import subprocess
import sys
import tomllib

SOURCE = ("src", "crates/*/src/*", "crates/*/schema.sql", "migrations"), (".rs", ".sql")
PACKAGE = ("clients/python/src",), (".py",)
TESTS = (
    ("tests", "crates/*/tests/*", "examples", "benches", "clients/python/tests", "clients/python/examples"),
    (".js", ".py", ".rs", ".sh", ".sql", ".ts"),
)
COMMENTS = {".js": "//", ".py": "#", ".rs": "//", ".sh": "#", ".sql": "--", ".ts": "//"}


def tracked(folders, suffixes):
    """Returns the files in these folders that git tracks, with one of these suffixes."""
    names = subprocess.run(["git", "ls-files", "-z", *folders], check=True, capture_output=True, text=True).stdout
    paths = (pathlib.Path(name) for name in names.split("\0") if name)
    return [path for path in paths if path.suffix in suffixes and path.is_file()]


def count(folders, suffixes):
    """Returns the number of lines, and of those that are neither blank nor a comment alone."""
    files = [(path, path.read_text().splitlines()) for path in tracked(folders, suffixes)]
    code = sum(
        bool(line.strip()) and not line.strip().startswith(COMMENTS[path.suffix]) for path, lines in files for line in lines
    )
    return sum(len(lines) for _, lines in files), code


def main():
    source, source_code = count(*SOURCE)
    package, package_code = count(*PACKAGE)
    tests, tests_code = count(*TESTS)
    docs = sum(path.stat().st_size for path in tracked(("docs", "README.md"), (".md",)))
    sizes = {
        "source": {"lines": source, "code": source_code},
        "package": {"lines": package, "code": package_code},
        "tests": {"lines": tests, "code": tests_code},
        "docs": {"kilobytes": -(-docs // 1000)},
    }
    limits = tomllib.loads(pathlib.Path("tests/size.toml").read_text())
    exceeded = []
    for part, figures in sizes.items():
        for name, size in figures.items():
            limit = limits[part][name]
            print(f"{part} {name}: {size} of {limit}")
            if size > limit:
                exceeded.append(f"{part} {name}")
    if exceeded:
        sys.exit(f"larger than tests/size.toml allows: {', '.join(exceeded)}. Delete something, or raise the limit in a commit that says why.")


if __name__ == "__main__":
    main()
