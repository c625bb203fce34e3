"""Checks that a release's SBOM is a CycloneDX document, by its makers' library, and of that binary: dist_sbom.py SBOM BINARY."""

import hashlib
import json
import pathlib
import sys
import tomllib

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

sbom, binary = (pathlib.Path(path) for path in sys.argv[1:])
text = sbom.read_text()
if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
    sys.exit(f"error: {sbom.name} is no CycloneDX document: {str(fault).splitlines()[0]}")

document = json.loads(text)
# The schema leaves it open.
if document["specVersion"] != "1.6":
    sys.exit(f"error: the SBOM is of version {document['specVersion']}")
program = document["metadata"]["component"]
digest = hashlib.sha256(binary.read_bytes()).hexdigest()
if program["hashes"] != [{"alg": "SHA-256", "content": digest}]:
    sys.exit("error: the SBOM is of another binary")

# Whatever the program uses by itself is in it, but for macros, which only compile it.
named = {component["name"] for component in document["components"] if component["scope"] == "required"}
own = tomllib.loads(pathlib.Path("Cargo.toml").read_text())["dependencies"]
if missing := set(own) - named - {"async-trait", "sqlx-macros"}:
    sys.exit(f"error: the SBOM lacks {missing}")
known = {component["bom-ref"] for component in document["components"]} | {program["bom-ref"]}
if unknown := {ref for edge in document["dependencies"] for ref in [edge["ref"], *edge["dependsOn"]]} - known:
    sys.exit(f"error: nothing describes {unknown}")
if [component["name"] for component in document["components"] if not component.get("licenses")]:
    sys.exit("error: a component has no licence")
print(f"ok: the SBOM has {len(named)} crates in the program, {len(document['components'])} with those that compile it")
