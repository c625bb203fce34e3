"""The manifests of deploy/kubernetes: deploy_kubernetes.py BINARY [RENDERED…].

Each is held against the strict schemas of Kubernetes, the oldest version that the guide names and the newest that there is; then what no
schema knows: that names meet their likes, what pods may do, and that settings and commands are those of the service. The same goes for
what kustomize makes of them, RENDERED.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml

binary, *rendered = sys.argv[1:]
root = Path("deploy/kubernetes")
# `unhealthyPodEvictionPolicy` is the youngest field.
VERSIONS = ["1.27", kubernetes_validate.latest_version()]
# Kinds that a cluster has only with an operator, and files that others than Kubernetes read.
OTHERS_KINDS = {"ServiceMonitor"}
OTHERS_FILES = {root / "components/autoscale/prometheus-adapter.yaml"}
# Seconds that a process takes to stop, beyond DRAIN_SECONDS: it ends answers and gives exports back.
STOPPING = 45
# Made by the user.
SECRETS = {"cdc-export": True, "cdc-export-owner": True, "cdc-export-metrics": True}
GENERATED = ("cdc-export-settings", "cdc-export-datasets")


class Loader(yaml.SafeLoader):
    """Refuses what YAML allows and nobody means: a name that comes twice."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        assert len(names) == len(set(names)), f"a name comes twice: {node.start_mark}"
        return super().construct_mapping(node, deep)


def documents(path):
    return [document for document in yaml.load_all(Path(path).read_text(encoding="utf-8"), Loader) if document]


def settings_of(path):
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def check_kustomizations():
    """Checks that each kustomization names existing files, and that each file is named by one."""
    named = set()
    for file in root.rglob("kustomization.yaml"):
        (document,) = documents(file)
        files = document.get("resources", []) + document.get("components", [])
        files += [patch["path"] for patch in document.get("patches", []) if "path" in patch]
        for generator in document.get("configMapGenerator", []):
            assert generator["name"] in GENERATED, f"{file}: {generator['name']}"
            files += generator.get("files", []) + generator.get("envs", [])
        # Those that a user has the choice of.
        files += re.findall(r"^# - (\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        for name in files:
            target = Path(os.path.normpath(file.parent / name))
            assert target.exists(), f"{file}: there is no {name}"
            assert target.is_file() or (target / "kustomization.yaml").exists(), f"{file}: {name}"
            named.add(target)
    for file in root.rglob("*"):
        if file.is_file() and file.name != "kustomization.yaml" and file not in OTHERS_FILES:
            assert file in named, f"no kustomization names {file}"
    components = {path.parent for path in (root / "components").rglob("kustomization.yaml")}
    assert components <= named, "the example doesn't offer every component"


def check_settings(settings, where):
    page, buckets = (Path("docs", name).read_text(encoding="utf-8") for name in ("SETTINGS.md", "guides/buckets.md"))
    for name in settings:
        assert f"| `{name}` |" in page or f"`{name}`" in buckets, f"{where}: {name} is no setting"


def matches(selector, labels):
    return selector.items() <= labels.items()


def check_pod(name, kind, pod, settings):
    assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False, name
    account = pod["securityContext"]
    assert account["runAsNonRoot"] and account["runAsUser"] > 0 and account["runAsGroup"] > 0, name
    assert account["seccompProfile"] == {"type": "RuntimeDefault"}, name
    assert not any(pod.get(shared) for shared in ("hostNetwork", "hostPID", "hostIPC", "initContainers")), name
    assert all("configMap" in volume for volume in pod["volumes"]), f"{name}: only the operator's file is mounted"
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }, name
    assert container["resources"]["limits"]["memory"] and container["resources"]["requests"].keys() == {"cpu", "memory"}, name
    subprocess.run([binary, *container["args"], "--help"], check=True, stdout=subprocess.DEVNULL)

    env = {variable["name"]: variable["value"] for variable in container.get("env", [])}
    check_settings(env, name)
    env = settings | env
    grace, drain = pod.get("terminationGracePeriodSeconds", 30), int(env.get("DRAIN_SECONDS", 0))
    if kind == "Deployment":
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
        assert grace >= drain + STOPPING + int(hook[1]), f"{name}: {grace} s are too few"
        (port,) = container["ports"]
        asked = "PORT" if container["args"][0] == "serve" else "METRICS_PORT"
        assert str(port["containerPort"]) == env[asked], f"{name}: {asked}"
        for probe, path in (("startupProbe", "live"), ("livenessProbe", "live"), ("readinessProbe", "ready")):
            assert container[probe]["httpGet"] == {"path": f"/health/{path}", "port": port["name"]}, f"{name}: {probe}"
    mounts = container["volumeMounts"]
    assert env["DATASETS"] in {mount["mountPath"] + "/datasets.toml" for mount in mounts} and all(mount["readOnly"] for mount in mounts), name


def check(found, settings, is_rendered):
    by_kind = {}
    for document in found:
        by_kind.setdefault(document["kind"], []).append(document)
        if document["kind"] not in OTHERS_KINDS:
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)
    assert "Secret" not in by_kind, "secrets don't belong here"
    names = [(document["kind"], document["metadata"]["name"]) for document in found]
    maps = [name for kind, name in names if kind == "ConfigMap"] if is_rendered else GENERATED
    accounts = [name for kind, name in names if kind == "ServiceAccount"]

    workloads = by_kind["Deployment"] + by_kind.get("Job", [])
    pods = []
    for workload in workloads:
        name, template = workload["metadata"]["name"], workload["spec"]["template"]
        pods.append(template["metadata"]["labels"])
        if selector := workload["spec"].get("selector"):
            assert matches(selector["matchLabels"], pods[-1]), name
        pod = template["spec"]
        assert pod["serviceAccountName"] in accounts, name
        sources = pod["containers"][0]["envFrom"]
        used = [source["configMapRef"]["name"] for source in sources if "configMapRef" in source]
        used += [volume["configMap"]["name"] for volume in pod["volumes"]]
        assert sorted(used) == sorted(maps), f"{name}: {used}"
        assert all(source["secretRef"]["name"] in SECRETS for source in sources if "secretRef" in source), name
        check_pod(name, workload["kind"], pod, settings)

    ports = {port["name"] for workload in by_kind["Deployment"] for port in workload["spec"]["template"]["spec"]["containers"][0]["ports"]}
    for service in by_kind["Service"]:
        served = [labels for labels in pods if matches(service["spec"]["selector"], labels)]
        assert len(served) == 1 and all(port["targetPort"] in ports for port in service["spec"]["ports"]), service["metadata"]["name"]
    for budget in by_kind["PodDisruptionBudget"]:
        kept = [labels for labels in pods if matches(budget["spec"]["selector"]["matchLabels"], labels)]
        assert len(kept) == 1, budget["metadata"]["name"]
    for policy in by_kind["NetworkPolicy"]:
        assert all(matches(policy["spec"]["podSelector"]["matchLabels"], labels) for labels in pods), policy["metadata"]["name"]
        for rule in policy["spec"].get("ingress", []):
            assert {port["port"] for port in rule["ports"]} == ports, "who may call reaches the ports that there are"
    for monitor in by_kind.get("ServiceMonitor", []):
        served = [service for service in by_kind["Service"] if matches(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])]
        offered = {port["name"] for service in served for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} == offered == ports, "each process is scraped"
        # The alerts ask for this job.
        assert {service["metadata"]["labels"][monitor["spec"]["jobLabel"]] for service in served} == {"cdc-export"}
        for endpoint in monitor["spec"]["endpoints"]:
            assert endpoint["path"] == "/metrics" and endpoint["authorization"]["credentials"]["name"] in SECRETS
    for scaler in by_kind.get("HorizontalPodAutoscaler", []):
        spec = scaler["spec"]
        scaled = [workload for workload in by_kind["Deployment"] if workload["metadata"]["name"] == spec["scaleTargetRef"]["name"]]
        assert len(scaled) == 1 and (not is_rendered or "replicas" not in scaled[0]["spec"]), "the number of replicas is the autoscaler's"
        (metric,) = (metric["external"] for metric in spec["metrics"])
        assert metric["target"]["averageValue"] == settings["WORKERS"], "a worker runs WORKERS jobs at once"
        (adapter,) = documents(root / "components/autoscale/prometheus-adapter.yaml")
        assert [rule["name"]["as"] for rule in adapter["rules"]["external"]] == [metric["metric"]["name"]]
    return len(found)


check_kustomizations()
base, example = (settings_of(root / folder / "settings.env") for folder in ("base", "example"))
for where, settings in (("base", base), ("example", example)):
    check_settings(settings, where)
# The image sets OUTPUT_DIR, which is refused beside OUTPUT_URL.
assert "ENV OUTPUT_DIR=" not in Path("Dockerfile").read_text(encoding="utf-8") or base["OUTPUT_DIR"] == ""

patches = {root / "example/cloud-role.yaml"}
files = [file for file in sorted(root.rglob("*.yaml")) if file.name != "kustomization.yaml" and file not in OTHERS_FILES | patches]
count = check([document for file in files for document in documents(file)], base | example, False)
print(f"{count} manifests in {len(files)} files: as Kubernetes {' and '.join(VERSIONS)} have them")

for file in rendered:
    found = documents(file)
    (settings,) = (document["data"] for document in found if document["metadata"]["name"].startswith("cdc-export-settings-"))
    assert settings == base | example, "the example's settings on top of the base's"
    assert all(document["kind"] == "Namespace" or document["metadata"]["namespace"] == "exports" for document in found)
    for document in found:
        for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
            assert container["image"] == "registry.example.com/cdc-export:0.1.0", container["image"]
    print(f"{check(found, settings, True)} of {Path(file).name}, rendered")
