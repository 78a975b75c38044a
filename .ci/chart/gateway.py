"""The real binary on what the chart renders: certificates, mounted files, command lines, and one pod's life from start to end."""

import contextlib
import http.client
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import time

import yaml

import cluster

ISTHMUS = os.environ["ISTHMUS"]
CLIENT = "web.shop.serviceaccount.identity.linkerd.cluster.local"


def isthmus(*arguments, **options):
    """Runs it to its end; what it says when it fails is the error."""
    done = subprocess.run([ISTHMUS, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, f"isthmus {' '.join(map(str, arguments))}: {done.returncode}: {done.stderr or done.stdout}"
    return done.stdout


class Pki:
    """An anchor, an issuer, and what is made under them."""

    def __init__(self, folder):
        self.folder = folder
        self.anchor, self.issuer = folder / "anchor.crt", folder / "issuer.crt"
        isthmus("certs", "anchor", "root.linkerd.cluster.local", self.anchor, folder / "anchor.key")
        isthmus("certs", "issuer", "identity.linkerd.cluster.local", self.issuer, folder / "issuer.key",
                "--ca", self.anchor, "--ca-key", folder / "anchor.key")
        isthmus("certs", "crl", folder / "issuer.crl", "--ca", self.issuer, "--ca-key", folder / "issuer.key")
        self.anchors = self.anchor.read_text()
        self.crl = (folder / "issuer.crl").read_text()

    def leaf(self, identity):
        """Certificate and key for it, as files."""
        certificate, key = self.folder / f"{identity}.crt", self.folder / f"{identity}.key"
        if not certificate.exists():
            isthmus("certs", "leaf", certificate, key, "--identity", identity, "--ca", self.issuer, "--ca-key", self.folder / "issuer.key")
        return certificate, key


class Mounts:
    """A pod's volumes as files below a folder, which then stands for the root of its file system."""

    def __init__(self, rendered, pki, root):
        self.root = root
        certificate, key = pki.leaf(rendered.identity)
        foreign = {"gateway.crt": certificate.read_text(), "gateway.key": key.read_text(), "anchors.crt": pki.anchors}
        pod = rendered.deployment["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        self.config = None
        for mount in pod["containers"][0]["volumeMounts"]:
            assert mount["readOnly"] is True
            volume = volumes[mount["name"]]
            sources = volume["projected"]["sources"] if "projected" in volume else [{"configMap": volume["configMap"]}]
            for source in sources:
                (kind, reference), = source.items()
                if kind == "serviceAccountToken":
                    file = pathlib.Path(f"{root}{mount['mountPath']}/{reference['path']}")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text("a token")
                    continue
                ours = rendered.get({"configMap": "ConfigMap", "secret": "Secret"}[kind], reference["name"])
                items = reference.get("items") or [{"key": key, "path": key} for key in ours["data"]]
                for item in items:
                    path, content = item["path"], None
                    if ours is not None:
                        content = ours["data"][item["key"]]
                    elif path.startswith("crl/"):
                        content = pki.crl
                    else:
                        content = foreign[path]
                    # What stands in a file of the pod is a path of the pod.
                    content = content.replace("/etc/isthmus/", f"{root}/etc/isthmus/")
                    content = content.replace("/var/run/secrets/tokens/", f"{root}/var/run/secrets/tokens/")
                    file = pathlib.Path(f"{root}{mount['mountPath']}/{path}")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(content)
                    if path == "isthmus.yaml":
                        self.config = file

    def place(self, kubeconfig):
        """The pod's place in a cluster: what a service account and an address other than loopback would be there."""
        config = yaml.safe_load(self.config.read_text())
        config["sources"]["kubernetes"].update(kubeconfig=str(kubeconfig), allow_local=True)
        config["connect"]["deny_loopback"] = False
        self.config.write_text(yaml.safe_dump(config))

    def arguments(self, container):
        """A container's command line, with its paths below the root."""
        return [argument.replace("/etc/isthmus/", f"{self.root}/etc/isthmus/") for argument in container["args"]]


def takes(rendered, pki, root):
    """The container's own command line with --check, and those of the test pod."""
    mounts = Mounts(rendered, pki, root)
    container = rendered.deployment["spec"]["template"]["spec"]["containers"][0]
    assert "command" not in container, "the image's entry point is the program"
    said = isthmus(*mounts.arguments(container), "--check", env=environment(container))
    assert f"the gateway would be {rendered.identity}" in said, said
    for container in rendered.test["spec"]["containers"]:
        if "command" not in container:
            isthmus(*mounts.arguments(container), env=environment(container))


def environment(container):
    """What the kubelet would put there."""
    known = {"status.podIP": "10.42.0.7", "status.podIPs": "10.42.0.7,fd00::7", "metadata.name": "isthmus-0",
             "metadata.namespace": "isthmus-system", "spec.nodeName": "node-1"}
    asked = {each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"] for each in container.get("env", []) if "valueFrom" in each}
    return os.environ | {name: known[path] for name, path in asked.items()}


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def ask(port, path, context=None, name=None, headers=None):
    """One request; its status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    if context:
        connection.connect()
        connection.sock = context.wrap_socket(connection.sock, server_hostname=name)
    try:
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@contextlib.contextmanager
def running(arguments, environment=None):
    """A process that is gone afterwards, however it went."""
    process = subprocess.Popen([ISTHMUS, *arguments], env={**os.environ, **(environment or {})},
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until(act, seconds=15):
    """Repeats it until it holds."""
    end = time.monotonic() + seconds
    while True:
        try:
            return act()
        except (OSError, AssertionError):
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def life(rendered, pki, root):
    """Started by the rendered command line: ready for the kubelet, alive for mirrors, obeying label and policy, gone in time. Its metrics."""
    mounts = Mounts(rendered, pki, root)
    with cluster.cluster(root) as kubeconfig:
        mounts.place(kubeconfig)
        return lived(rendered, mounts, pki)


def lived(rendered, mounts, pki):
    pod = rendered.deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    public = rendered.get("Service", rendered.deployment["metadata"]["name"])
    ready = container["readinessProbe"]["httpGet"]["path"]
    path = public["metadata"]["annotations"]["mirror.linkerd.io/probe-path"]
    gateway, probe, admin = free_ports(3)
    listen = {f"ISTHMUS_{name}_LISTEN": f"127.0.0.1:{port}" for name, port in (("GATEWAY", gateway), ("PROBE", probe), ("ADMIN", admin))}
    certificate, key = pki.leaf(CLIENT)
    context = ssl.create_default_context(cafile=pki.anchor)
    context.load_cert_chain(certificate, key)
    with running(mounts.arguments(container), listen) as process:
        def is_ready():
            status, _ = ask(probe, ready)
            assert status == 200, status
        until(is_ready)
        socket.create_connection(("127.0.0.1", probe), 2).close()
        # A mirror: the Service's path, over mutual TLS, with the annotation's identity.
        status, body = ask(probe, path, context, rendered.identity)
        assert (status, body) == (200, "ready\n"), (status, body)
        # A client: an exported service that the policy allows is reached, others are refused by what is missing.
        context.set_alpn_protocols(["http/1.1"])
        answers = {name: ask(gateway, "/", context, rendered.identity, {"host": f"{name}.prod.svc.cluster.local"}) for name in ("web", "db", "inner")}
        assert answers["web"] == (200, "a pod\n"), answers
        assert (answers["db"][0], answers["inner"][0]) == (403, 404), answers
        _, page = ask(admin, "/metrics")

        process.send_signal(signal.SIGTERM)
        signalled = time.monotonic()

        def is_leaving():
            status, _ = ask(probe, ready)
            assert status == 503, status
        until(is_leaving, 1)
        code = process.wait(pod["terminationGracePeriodSeconds"])
        took = time.monotonic() - signalled
    assert code == 0, f"exit code {code}"
    assert took < pod["terminationGracePeriodSeconds"] - 5, f"{took:.1f} s of a grace of {pod['terminationGracePeriodSeconds']}"
    return page


def demo_metrics():
    """The metrics of a gateway that has seen everything the demo does."""
    gateway, probe, admin = free_ports(3)
    with running(["demo", f"--gateway-port={gateway}", f"--probe-port={probe}", f"--admin-port={admin}"]) as process:
        def calls_done():
            assert process.poll() is None, process.stdout.read()
            _, page = ask(admin, "/metrics")
            assert 'code="route.loop"' in page, "the demo's last call has not come yet"
            return page
        page = until(calls_done, 60)
        process.send_signal(signal.SIGTERM)
        process.wait(15)
    return page
