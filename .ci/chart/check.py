"""The chart: rendered with Helm's engine, judged by Kubernetes' schemas, run with the real binary.

A check is a name and an outcome; the last line counts them. What a set of values must come to stands in comments of its file:
`#= Kind/name | path | value` in an object (`-`: is not there), `#: path | value` in the gateway's configuration, `#~ text` in NOTES,
`#+ file` values of the chart beneath, `#@ release R namespace N` instead of isthmus in isthmus-system.
"""

import copy
import pathlib
import re
import subprocess
import sys
import tempfile
import traceback

import helm_python as helm
import kubernetes_validate
import yaml

import docs
import gateway
import metrics

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
CHART = ROOT / "charts" / "isthmus"
# Kinds that come with others' programs; Kubernetes' schemas do not know them.
FOREIGN = {"Certificate", "PodMonitor", "PrometheusRule", "ServiceMonitor"}

passed, failed = 0, 0


class Wrong(Exception):
    """A check that did not hold, in a sentence."""


def check(name, act):
    """Runs one check and counts it."""
    global passed, failed
    try:
        result = act()
    except (Wrong, AssertionError, helm.HelmError, kubernetes_validate.ValidationError, subprocess.SubprocessError, OSError) as error:
        failed += 1
        print(f"FAILED  {name}: {getattr(error, 'message', None) or error}")
    except Exception:
        failed += 1
        print(f"FAILED  {name}:\n{traceback.format_exc()}")
    else:
        passed += 1
        return result
    return None


def merged(base, over):
    """Values over values, as Helm does it."""
    out = copy.deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merged(out[key], value)
        else:
            out[key] = copy.deepcopy(value)
    return out


class Rendered:
    """What a release would be."""

    def __init__(self, values, release="isthmus", namespace="isthmus-system"):
        with helm.Chart.load(CHART) as chart:
            files = chart.render(values, name=release, namespace=namespace)
        self.release, self.namespace = release, namespace
        self.notes = files.pop("isthmus/templates/NOTES.txt")
        self.objects = [doc for name in sorted(files) for doc in yaml.safe_load_all(files[name]) if doc]
        self.text = "\n".join(files.values())

    def get(self, kind, name=None):
        for each in self.objects:
            if each["kind"] == kind and (name is None or each["metadata"]["name"] == name):
                return each
        return None

    def all(self, *kinds):
        return [each for each in self.objects if each["kind"] in kinds]

    @property
    def deployment(self):
        return self.get("Deployment")

    @property
    def test(self):
        return self.get("Pod")

    @property
    def config(self):
        name = self.deployment["metadata"]["name"]
        return yaml.safe_load(self.get("ConfigMap", name)["data"]["isthmus.yaml"])

    @property
    def identity(self):
        """The name that the certificate must hold, as the test pod asks for it, or as a control plane is asked for it."""
        if "identity" in self.config:
            return self.config["identity"]["name"]
        arguments = self.test["spec"]["containers"][1]["args"]
        return next(a.split("=", 1)[1] for a in arguments if a.startswith("--identity="))


def at(value, path):
    for word in path:
        if value is None:
            return None
        try:
            value = value[int(word)] if isinstance(value, list) else value.get(word)
        except (IndexError, ValueError, AttributeError):
            return None
    return value


class Values:
    """A set of values and what is expected of it."""

    def __init__(self, file, anchors):
        self.name = file.stem
        text = file.read_text()
        self.values = yaml.safe_load(text.replace("@ANCHORS@", anchors.replace("\n", "\\n"))) or {}
        self.objects, self.keys, self.notes, self.release = [], [], [], {}
        for line in text.splitlines():
            mark, rest = line[:2], line[2:].strip()
            words = [word.strip() for word in rest.split(" | ")]
            if mark == "#=":
                self.objects.append((words[0], words[1:-1], words[-1]))
            elif mark == "#:":
                self.keys.append((words[:-1], words[-1]))
            elif mark == "#~":
                self.notes.append(rest)
            elif mark == "#+":
                self.values = merged(yaml.safe_load((CHART / rest).read_text()), self.values)
            elif mark == "#@":
                parts = rest.split()
                self.release = {"release": parts[1], "namespace": parts[3]}

    def expectations(self, rendered):
        for target, path, wanted in self.objects:
            kind, name = target.split("/", 1)
            found = at(rendered.get(kind, name), path)
            if wanted == "-":
                assert found is None, f"{target} {path} is {found}, and should not be there"
            else:
                assert str(found) == wanted or (found is True and wanted == "true"), f"{target} {path} is {found!r}, not {wanted!r}"
        for path, wanted in self.keys:
            found = at(rendered.config, path)
            assert str(found) == wanted, f"configuration {path} is {found!r}, not {wanted!r}"
        said = " ".join(rendered.notes.split())
        for text in self.notes:
            assert " ".join(text.split()) in said, f"NOTES do not say {text!r}"


def selects(selector, labels):
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())


def seconds(text):
    number, unit = re.fullmatch(r"([0-9.]+)(ms|s|m|h|d)?", str(text)).groups()
    return float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, None: 1}[unit]


def shape(rendered):
    """What holds of every release, whatever its values."""
    names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in rendered.objects]
    assert len(names) == len(set(names)), "two objects of one kind and name"
    for each in rendered.objects:
        labels = each["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm", each["metadata"]["name"]
        if not each["kind"].startswith(("ClusterRole", "Role")):
            assert each["metadata"]["namespace"] == rendered.namespace, each["metadata"]["name"]
    for image in re.findall(r"^ +image: *(\S+)", rendered.text, re.M):
        assert "." not in image.split("/")[0].split(":")[0].split("@")[0], f"{image} names a registry"
    assert "<no value>" not in rendered.text and "<nil>" not in rendered.text + rendered.notes, "a value is missing"
    if rendered.deployment is None:
        assert not rendered.all("Service", "ConfigMap", "Pod", "NetworkPolicy", "PodDisruptionBudget"), "parts of a gateway without one"
        return
    spec = rendered.deployment["spec"]
    labels = spec["template"]["metadata"]["labels"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0, "an update goes below capacity"
    room = pod["terminationGracePeriodSeconds"] - seconds(rendered.config["drain"]["deadline"])
    assert 5 <= room <= 15, f"{room} s from the drain's deadline to the kill"

    assert selects(spec["selector"]["matchLabels"], labels)
    for service in rendered.all("Service"):
        selector = service["spec"]["selector"]
        assert selects(selector, labels), f"Service {service['metadata']['name']} selects no gateway"
        assert not selects(selector, rendered.test["metadata"]["labels"]), "the test pod would get traffic"
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports, f"no container port {port['targetPort']}"
    public = rendered.get("Service", rendered.deployment["metadata"]["name"])
    assert [port["name"] for port in public["spec"]["ports"]] == ["mc-gateway", "mc-probe"], "links find ports by these names"
    assert ports["mc-gateway"] == int(rendered.config["accept"]["listen"].rsplit(":", 1)[1])
    assert ports["mc-probe"] == int(rendered.config["probe"]["listen"].rsplit(":", 1)[1])
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        for each in rendered.all(kind):
            selector = each["spec"].get("selector") or each["spec"]["podSelector"]
            assert selects(selector["matchLabels"], labels), kind
    for each in rendered.all("NetworkPolicy"):
        open_ports = [port["port"] for rule in each["spec"]["ingress"] for port in rule["ports"]]
        assert set(open_ports) == set(ports), f"{open_ports} open of {list(ports)}"
        for rule in each["spec"]["ingress"]:
            assert rule["ports"][0]["port"] != "admin" or rule["from"], "the admin port is open to everybody"
    for each in rendered.all("HorizontalPodAutoscaler"):
        assert each["spec"]["scaleTargetRef"]["name"] == rendered.deployment["metadata"]["name"]
        assert "replicas" not in spec, "Deployment and autoscaler would fight"
    for each in rendered.all("PodMonitor"):
        assert selects(each["spec"]["selector"]["matchLabels"], labels)
        assert each["spec"]["podMetricsEndpoints"][0]["port"] in ports
    for each in rendered.all("ServiceMonitor"):
        watched = [s for s in rendered.all("Service") if selects(each["spec"]["selector"]["matchLabels"], s["metadata"]["labels"])]
        assert len(watched) == 1 and watched[0] is not public, "it must watch the admin Service and no other"
    admin = rendered.config["admin"]["listen"]
    assert ("admin" in ports) == (not admin.startswith("127.0.0.1:")), f"the admin port listens on {admin}"
    assert container["readinessProbe"]["httpGet"]["port"] == "mc-probe" and rendered.config["probe"]["plaintext"] is True
    watches = rendered.config["sources"].get("kubernetes", {}).get("enabled", False)
    assert pod["automountServiceAccountToken"] is watches and pod["enableServiceLinks"] is False
    rights(rendered, watches, pod["serviceAccountName"])
    annotations = public["metadata"].get("annotations") or {}
    if "mirror.linkerd.io/gateway-identity" in annotations:
        assert annotations["mirror.linkerd.io/gateway-identity"] == rendered.identity
        assert re.fullmatch("[0-9]+", annotations["mirror.linkerd.io/probe-period"]), "2.8 reads whole seconds"
        assert annotations["mirror.linkerd.io/probe-path"].startswith("/")
    for each in rendered.all("Certificate"):
        assert each["spec"]["dnsNames"] == [rendered.identity]
    for each in (pod, rendered.test["spec"]):
        secure(each)


def rights(rendered, watches, account):
    """The gateway may list and watch what it watches, where it watches it, and nothing else."""
    roles = [each for each in rendered.all("ClusterRole", "Role") if each["metadata"]["name"].endswith(":discovery")]
    bindings = [each for each in rendered.all("ClusterRoleBinding", "RoleBinding") if each["metadata"]["name"].endswith(":discovery")]
    scopes = (rendered.config["sources"]["kubernetes"].get("namespaces") or [None]) if watches else []
    assert [each["metadata"].get("namespace") for each in roles] == scopes, "a role for each namespace, or one for all"
    assert [each["metadata"].get("namespace") for each in bindings] == scopes
    for role, binding in zip(roles, bindings):
        assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": role["kind"], "name": role["metadata"]["name"]}
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": rendered.namespace}]
        granted = {(group, kind, verb) for rule in role["rules"] for group in rule["apiGroups"] for kind in rule["resources"] for verb in rule["verbs"]}
        kinds = (("", "services"), ("discovery.k8s.io", "endpointslices"))
        assert granted == {(*kind, verb) for kind in kinds for verb in ("list", "watch")}, granted


def secure(pod):
    """Kubernetes' Pod Security Standard `restricted`, and a root that cannot be written."""
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True and context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["privileged"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "projected"}, kinds


def valid(rendered, version):
    """Every object is one that this Kubernetes knows, with no field that it does not."""
    for each in rendered.objects:
        try:
            kubernetes_validate.validate(each, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            if each["kind"] not in FOREIGN:
                raise Wrong(f"{each['apiVersion']} {each['kind']} is unknown to {version}") from None


def restarts():
    """Pods are replaced for what is read at the start, and for nothing that is followed."""
    def sum_of(values):
        template = Rendered(merged({"identity": {"secret": {"name": "gateway-identity"}}}, values)).deployment["spec"]["template"]
        return template["metadata"]["annotations"]["checksum/config"]

    plain = sum_of({})
    assert sum_of({"policy": {"mode": "audit", "rules": [{"name": "all", "services": ["*"], "action": "allow"}]}}) == plain
    assert sum_of({"config": {"workers": 3}}) != plain and sum_of({"discovery": {"namespaces": ["prod"]}}) != plain


def refused(case):
    base = {} if case.get("alone") else {"identity": {"secret": {"name": "gateway-identity"}}}
    try:
        Rendered(merged(base, case["values"]))
    except helm.HelmError as error:
        assert case["says"] in str(error), f"refused with other words: {error}"
    else:
        raise Wrong("it was taken")


def lint(values, kube_version):
    report = helm.lint(CHART, values, strict=True, kube_version=kube_version, namespace="isthmus-system")
    worse = [message for message in report["messages"] if message["severity"] > 1]
    assert not worse and not report["errors"], worse or report["errors"]


def documented():
    """Each value has a word of explanation, each alert a section."""
    text = (CHART / "values.yaml").read_text()
    for section in re.findall(r"^(?:#.*\n)*^[a-zA-Z]+:.*\n(?:[ #].*\n|\n(?=[ ]))*", text, re.M):
        assert "#" in section or len(section.splitlines()) == 1 or "enabled" in section, f"no comment: {section}"
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())

    def same(values, node, path):
        for key, value in values.items():
            assert key in node["properties"], f"{path}{key} is not in the schema"
            if "properties" in node["properties"][key]:
                same(value, node["properties"][key], f"{path}{key}.")
        missing = set(node["properties"]) - set(values) - {"global"}
        assert not missing, f"{path}{missing} in the schema only"

    same(yaml.safe_load(text), schema, "")


def main():
    versions = kubernetes_validate.utils.all_versions()
    oldest, newest = versions[0], versions[-1]
    print(f"Helm {helm.helm_sdk_version()}, Kubernetes {oldest} and {newest}")
    wanted = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    check("the chart's oldest Kubernetes is the oldest checked", lambda: (
        None if wanted == f">={oldest}-0" else (_ for _ in ()).throw(Wrong(f"{wanted}, and checked is {oldest}"))))
    check("values, schema and comments agree", documented)

    with tempfile.TemporaryDirectory(prefix="isthmus-chart-") as folder:
        pki = gateway.Pki(pathlib.Path(folder))
        sets = [Values(file, pki.anchors) for file in sorted((HERE / "values").glob("*.yaml"))]
        assert len(sets) >= 10
        for each in sets:
            for version in (oldest, newest):
                check(f"{each.name}: lint, {version}", lambda: lint(each.values, version))
            check(f"{each.name}: schema", lambda: helm.Chart.load(CHART).validate_schema(each.values))
            rendered = check(f"{each.name}: renders", lambda: Rendered(each.values, **each.release))
            if rendered is None:
                continue
            check(f"{each.name}: is what it should be", lambda: each.expectations(rendered))
            check(f"{each.name}: what holds always", lambda: shape(rendered))
            for version in (oldest, newest):
                check(f"{each.name}: Kubernetes {version}", lambda: valid(rendered, version))
            if rendered.deployment is not None:
                where = pathlib.Path(folder) / each.name
                check(f"{each.name}: the binary takes it", lambda: gateway.takes(rendered, pki, where))

        for case in yaml.safe_load((HERE / "refused.yaml").read_text()):
            check(f"refused: {case['values'] or 'nothing given'}", lambda: refused(case))

        check("a new policy restarts nothing, a new configuration does", restarts)
        live = []
        served = {
            "identity": {"secret": {"name": "gateway-identity"}},
            "drain": {"announce": "2s", "deadline": "6s"},
            "policy": {"rules": [{"name": "shop-may-use-web", "action": "allow", "services": ["web.prod.svc.cluster.local", "inner.prod.svc.cluster.local"],
                                  "clients": ["web.shop.serviceaccount.identity.linkerd.cluster.local"]}]},
            "config": {"telemetry": {"access_log": "errors"}},
        }
        check("a pod's life: ready, probed, called, drained", lambda: live.append(
            gateway.life(Rendered(served), pki, pathlib.Path(folder) / "life")))
        check("the demo's metrics", lambda: live.append(gateway.demo_metrics()))
        rendered = Rendered(next(each for each in sets if each.name == "monitored").values)
        families = metrics.Families(live, ROOT)
        for name, expression, labels in metrics.queries(rendered):
            check(f"query: {name}", lambda: families.check(expression, labels))
        check("alerts have their sections, and sections their alerts", lambda: metrics.runbook(rendered, CHART / "ALERTS.md"))

        for name, act in docs.checks(ROOT / "docs" / "install.md", Rendered, valid, (oldest, newest), pki, pathlib.Path(folder) / "docs"):
            check(f"docs/install.md: {name}", act)

    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
