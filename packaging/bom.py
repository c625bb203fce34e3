"""What is in a release's binary.

    bom.py sbom TARGET BINARY    as a CycloneDX document
    bom.py notices TARGET        the licences of the crates in it, as their authors wrote them down

`cargo tree` says which crates are compiled for the target, and which of them are in the binary; `Cargo.lock` has their checksums.
SOURCE_DATE_EPOCH is the document's time.
"""

import datetime
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import urllib.parse
import uuid


# A release has all features.
RELEASE = ("--locked", "--features", "full")


def printed(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def tree(target, edges):
    """The names and versions of the crates that these edges lead to, the project's own first."""
    shape = ("--package", "cdc-export", "--target", target, "--edges", edges, "--prefix", "none")
    lines = printed("cargo", "tree", *RELEASE, *shape).splitlines()
    words = [line.split() for line in lines if line]
    return list(dict.fromkeys((name, version.removeprefix("v")) for name, version, *_ in words))


def packages(target):
    """Cargo's description of each crate by name and version, and which crates each of them names."""
    said = json.loads(printed("cargo", "metadata", *RELEASE, "--format-version", "1", "--filter-platform", target))
    by_id = {package["id"]: (package["name"], package["version"]) for package in said["packages"]}
    edges = {
        by_id[node["id"]]: [
            by_id[dep["pkg"]] for dep in node["deps"] if any(kind["kind"] != "dev" for kind in dep["dep_kinds"])
        ]
        for node in said["resolve"]["nodes"]
    }
    return {by_id[package["id"]]: package for package in said["packages"]}, edges


def reference(crate):
    name, version = crate
    return f"pkg:cargo/{name}@{urllib.parse.quote(version)}"


def component(crate, package, checksum, scope):
    described = {
        "type": "library",
        "bom-ref": reference(crate),
        "name": crate[0],
        "version": crate[1],
        "scope": scope,
        "purl": reference(crate),
    }
    if package["description"]:
        described["description"] = " ".join(package["description"].split())
    if package["license"]:
        # An older way to write `OR`.
        described["licenses"] = [{"expression": re.sub(r"\s*/\s*", " OR ", package["license"])}]
    if checksum:
        described["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package["repository"]:
        described["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return described


def sbom(target, binary):
    root, *linked = tree(target, "normal,no-proc-macro")
    compiled = tree(target, "normal,build")[1:]
    described, edges = packages(target)
    lock = tomllib.loads(pathlib.Path("Cargo.lock").read_text())
    checksums = {(package["name"], package["version"]): package.get("checksum") for package in lock["package"]}
    there = {root, *linked, *compiled}
    components = [
        component(crate, described[crate], checksums[crate], "required" if crate in linked else "excluded")
        for crate in sorted(there - {root})
    ]
    # In each binary too: the standard library, and with it, in a static one, the libc.
    rust = printed("rustc", "--version").split()[1]
    std = {"type": "library", "bom-ref": f"rust-std@{rust}", "name": "rust-std", "version": rust, "scope": "required"}
    std["licenses"] = [{"expression": "MIT OR Apache-2.0"}]
    digest = hashlib.sha256(pathlib.Path(binary).read_bytes()).hexdigest()
    program = component(root, described[root], digest, "required") | {"type": "application"}
    when = datetime.datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), datetime.UTC)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, f'{target} {digest}')}",
        "version": 1,
        "metadata": {
            "timestamp": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": program,
            "properties": [{"name": "cdc-export:target", "value": target}],
        },
        "components": [*components, std],
        "dependencies": [
            {"ref": reference(crate), "dependsOn": sorted({reference(dep) for dep in edges[crate] if dep in there})}
            for crate in sorted(there)
        ],
    }


def notices(target):
    """Each text once, below the crates that have it."""
    described, _ = packages(target)
    crates_by_text = {}
    for crate in tree(target, "normal,no-proc-macro")[1:]:
        folder = pathlib.Path(described[crate]["manifest_path"]).parent
        files = [path for path in sorted(folder.iterdir()) if re.match(r"(?i)(licen[cs]e|copying|notice|unlicense)", path.name)]
        texts = [path.read_text(errors="replace").strip() for path in files if path.is_file()]
        for text in texts or [f"No file of it says more than its manifest: {described[crate]['license']}"]:
            crates_by_text.setdefault(text, []).append(" ".join(crate))
    yield "cdc-export contains these crates. Their licences, as their authors wrote them down:\n"
    for text, crates in crates_by_text.items():
        yield f"{'=' * 80}\n{', '.join(dict.fromkeys(crates))}\n{'=' * 80}\n\n{text}\n"


def main():
    match sys.argv[1:]:
        case ["sbom", target, binary]:
            print(json.dumps(sbom(target, binary), indent=1))
        case ["notices", target]:
            print("\n".join(notices(target)))
        case _:
            sys.exit(__doc__)


main()
