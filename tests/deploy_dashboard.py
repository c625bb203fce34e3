"""The dashboard of deploy/grafana, asked of a real Prometheus: deploy_dashboard.py PROMETHEUS DASHBOARD SERVICE WORKER FIRST.

Every metric and every label of an expression has to be among those that the service and the worker answer at /metrics, and every
expression has to have data. FIRST is when the first scrape was, in seconds since 1970; KEY in the environment opens /metrics.
"""

import json
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

prometheus, dashboard, service, worker, first = sys.argv[1:]

# Labels that Prometheus adds to each series.
ADDED = {"job", "instance"}
# Variables that Grafana would replace, with their values here.
VARIABLES = {"$__rate_interval": "10s", "$__range": "1m", "$job": ".*", "$dataset": ".*"}
WAIT = 45


def api(call, **arguments):
    """Prometheus's answer; an expression that it can't read raises."""
    url = f"{prometheus}/api/v1/{call}?{urllib.parse.urlencode(arguments)}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"error: {arguments}: {json.load(error)['error']}") from None


def exposed():
    """The names that the processes answer, each with its labels."""
    # The series of these begin with the first failure, and with the first late row.
    names = {"cdc_export_failures_total": {"dataset", "code"}, "cdc_export_late_rows_total": {"dataset", "export_type"}}
    # Only datasets with `capture = "timestamp"` have this series, and there is none here.
    names["cdc_export_watermark_age_seconds"] = {"consumer", "dataset"}
    for address in (service, worker):
        request = urllib.request.Request(f"{address}/metrics", headers={"Authorization": f"Bearer {os.environ['KEY']}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if name := re.match(r"(\w+)(?:\{(.*)\})? ", line):
                    names.setdefault(name[1], set()).update(re.findall(r'(\w+)="', name[2] or ""))
    return names


def filled(text):
    for name in sorted(VARIABLES, key=len, reverse=True):
        text = text.replace(name, VARIABLES[name])
    assert "$" not in text, f"a variable that nothing sets: {text}"
    return text


def check_names(expression, names):
    """Each selector's metric has the labels that it is asked for, and those by which it is grouped."""
    metrics = re.findall(r"\bcdc_export_\w+", expression)
    assert metrics, f"no metric of the service: {expression}"
    for metric in metrics:
        assert metric in names, f"{metric} is not at /metrics: {expression}"
    for metric, matchers in re.findall(r"\b(cdc_export_\w+)\{([^}]*)\}", expression):
        for label in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', matchers):
            assert label in names[metric] | ADDED, f"{metric} has no label {label}: {expression}"
    for labels in re.findall(r"\bby\s*\(([^)]*)\)", expression):
        for label in re.split(r",\s*", labels):
            assert all(label in names[metric] | ADDED for metric in metrics), f"no label {label}: {expression}"


def check_variable(variable, names):
    asked = re.fullmatch(r"label_values\((\w+)(\{.*\})?, (\w+)\)", variable["definition"])
    assert asked and variable["query"]["query"] == variable["definition"], f"the variable {variable['name']}"
    metric, matchers, label = asked.groups()
    check_names(metric + (matchers or ""), names)
    values = api(f"label/{label}/values", **{"match[]": filled(metric + (matchers or ""))})
    assert values, f"the variable {variable['name']} has no values"


def has_data(expression):
    """Returns true if the expression had data at any moment since the first scrape: a rare thing mostly has no rate."""
    now = time.time()
    found = api("query_range", query=expression, start=first, end=now, step=1)["result"]
    return any(value != "NaN" for series in found for _, value in series["values"])


with open(dashboard, encoding="utf-8") as file:
    text = file.read()
dashboard = json.loads(text)
used = set(re.findall(r"\bcdc_export_\w+", text))
# A process looks into the database once a second, so what has just come may not be there yet.
end = time.time() + 5
while not used <= (names := exposed()).keys() and time.time() < end:
    time.sleep(0.2)

variables = dashboard["templating"]["list"]
declared = {variable["name"] for variable in variables}
assert declared == {"datasource"} | {name[1:] for name in VARIABLES if not name.startswith("$__")}, declared
assert variables[0]["type"] == "datasource" and variables[0]["query"] == "prometheus"
for variable in variables[1:]:
    check_variable(variable, names)

expressions, ids, taken = [], set(), set()
for panel in dashboard["panels"]:
    title, place = panel["title"], panel["gridPos"]
    assert panel["id"] not in ids, f"two panels have the id {panel['id']}"
    ids.add(panel["id"])
    cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
    assert not cells & taken and place["x"] + place["w"] <= 24, f"{title} lies on another panel"
    taken |= cells
    if panel["type"] == "row":
        continue
    assert panel["description"], f"{title} has no description"
    for asked in [panel, *panel["targets"]]:
        assert asked["datasource"]["uid"] == "${datasource}", f"{title} has a data source of its own"
    for target in panel["targets"]:
        expression = target["expr"]
        check_names(expression, names)
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            by = [word for group in re.findall(r"\bby\s*\(([^)]*)\)", expression) for word in re.split(r",\s*", group)]
            assert label in by, f"{title}: the legend has {label}, which is not in the result"
        expressions.append((title, filled(expression)))

# No metric is left out.
shown = {name for _, expression in expressions for name in re.findall(r"\bcdc_export_\w+", expression)}
assert not (left_out := set(names) - shown), f"no panel shows {sorted(left_out)}"

end = time.time() + WAIT
missing = expressions
while True:
    missing = [(title, expression) for title, expression in missing if not has_data(expression)]
    if not missing or time.time() > end:
        break
    time.sleep(1)
for title, expression in missing:
    print(f"error: no data: {title}: {expression}", file=sys.stderr)
if missing:
    sys.exit(1)
print(f"{len(expressions)} expressions of {len(dashboard['panels'])} panels and rows: each has data")
