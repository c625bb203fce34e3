"""Adds what the document can't say: this service's datasets, its cursors, and which parameters go together."""

import schemathesis

UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
CURSORS = {
    "/exports": f"^{UUID}$",
    "/deliveries": f"^{UUID}$",
    "/consumers": "^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}/[a-z][a-z0-9_-]{0,62}$",
}


@schemathesis.hook
def before_load_schema(context, raw_schema):
    for schema in raw_schema["components"]["schemas"].values():
        if "$ref" in schema.get("properties", {}).get("dataset", {}):
            schema["properties"]["dataset"] = {"enum": ["users"]}
    for path, pattern in CURSORS.items():
        for parameter in raw_schema["paths"][path]["get"]["parameters"]:
            if parameter.get("name") == "cursor":
                parameter["schema"]["pattern"] = pattern
        # `after` doesn't go with `status` and `exportType`, which would leave exports out, nor with another list's cursors.
        parameters = raw_schema["paths"][path]["get"]["parameters"]
        raw_schema["paths"][path]["get"]["parameters"] = [one for one in parameters if one.get("name") != "after"]
    # A file's sha256 is said beside the export that has it.
    for schema in raw_schema["components"]["schemas"].values():
        if "afterSha256" in schema.get("properties", {}):
            del schema["properties"]["afterSha256"]
