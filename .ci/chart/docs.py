"""docs/install.md: its values render and are taken by the binary, its objects and patches are valid, its flags exist.

Blocks say what they are after the language: `yaml values` are values of the chart, `yaml objects` Kubernetes objects, `json patch` a
JSON patch for an ingress controller's Service, `yaml patch` a merge patch for it.
"""

import json
import re

import yaml

import gateway

# The Service of an ingress controller, as its chart makes it.
INGRESS = {
    "apiVersion": "v1", "kind": "Service", "metadata": {"name": "ingress-nginx-controller", "namespace": "ingress-nginx"},
    "spec": {"type": "LoadBalancer", "selector": {"app.kubernetes.io/name": "ingress-nginx"},
             "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"},
                       {"name": "https", "port": 443, "targetPort": "https", "protocol": "TCP"}]},
}


def checks(file, render, valid, versions, pki, folder):
    text = file.read_text()
    blocks = re.findall(r"^```(\S*) *(\S*)\n(.*?)^```", text, re.M | re.S)
    service = json.loads(json.dumps(INGRESS))
    for index, (language, kind, body) in enumerate(blocks, 1):
        name = f"block {index}, {language} {kind}".rstrip()
        if (language, kind) == ("yaml", "values"):
            yield name, lambda body=body, index=index: values(yaml.safe_load(body), render, valid, versions, pki, folder / str(index))
        elif (language, kind) == ("yaml", "objects"):
            yield name, lambda body=body: objects(list(yaml.safe_load_all(body)), valid, versions)
        elif (language, kind) == ("json", "patch"):
            yield name, lambda body=body: patch(service, json.loads(body))
        elif (language, kind) == ("yaml", "patch"):
            yield name, lambda body=body: merge(service, yaml.safe_load(body))
        elif language in ("sh", "text", ""):
            for line in joined(body):
                if line.startswith("isthmus "):
                    yield f"{name}: {line[:60]}", lambda line=line: flags(line.split())
        else:
            yield name, lambda language=language, kind=kind: unknown(language, kind)
    yield "the ingress controller's Service, patched", lambda: linkable(service, valid, versions)


def unknown(language, kind):
    raise AssertionError(f"a block of {language} {kind} that nobody checks")


def joined(body):
    return re.sub(r"\\\n\s*", " ", body).splitlines()


class Objects:
    def __init__(self, objects):
        self.objects = objects


def values(given, render, valid, versions, pki, root):
    release = {"release": "west-access", "namespace": "linkerd-multicluster"} if given.get("gateway", {}).get("enabled") is False else {}
    rendered = render({**given, "identity": {"secret": {"name": "gateway-identity"}, **given.get("identity", {})}}, **release)
    for version in versions:
        valid(rendered, version)
    if rendered.deployment is not None:
        gateway.takes(rendered, pki, root)


def objects(found, valid, versions):
    foreign = {"Link", "ClusterIssuer", "Bundle", "Issuer", "Certificate"}
    for version in versions:
        valid(Objects([each for each in found if each["kind"] not in foreign]), version)
    for each in found:
        if each["kind"] == "Link":
            spec = each["spec"]
            assert {"gatewayAddress", "gatewayPort", "gatewayIdentity", "probeSpec", "selector", "targetClusterName", "targetClusterDomain",
                    "targetClusterLinkerdNamespace", "clusterCredentialsSecret"} <= set(spec), spec
            assert all(isinstance(value, str) for value in spec["probeSpec"].values()), spec["probeSpec"]


def patch(service, operations):
    for each in operations:
        assert each["op"] == "add" and each["path"] == "/spec/ports/-", each
        service["spec"]["ports"].append(each["value"])


def merge(service, change):
    service["metadata"].setdefault("annotations", {}).update(change["metadata"]["annotations"])


def linkable(service, valid, versions):
    """What link-gen asks of a gateway's Service."""
    for version in versions:
        valid(Objects([service]), version)
    assert {"mc-gateway", "mc-probe"} <= {port["name"] for port in service["spec"]["ports"]}
    annotations = service["metadata"]["annotations"]
    assert annotations["mirror.linkerd.io/gateway-identity"] and annotations["mirror.linkerd.io/probe-path"].startswith("/")
    assert int(annotations["mirror.linkerd.io/probe-period"]) > 0


def flags(words):
    """The flags of a line of ours are known to the program."""
    command = []
    for word in words[1:]:
        if not re.fullmatch("[a-z]+", word):
            break
        command.append(word)
    known = None
    while command and known is None:
        try:
            known = gateway.isthmus(*command, "--help")
        except AssertionError:
            command.pop()
    assert known, words
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"isthmus {' '.join(command)} has no {word}"
