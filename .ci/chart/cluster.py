"""What is around a gateway in a cluster, as little as it needs: an API server that lists and watches, and a pod that answers."""

import contextlib
import http.server
import json
import threading

LISTS = {"/api/v1/services": "ServiceList", "/apis/discovery.k8s.io/v1/endpointslices": "EndpointSliceList"}


@contextlib.contextmanager
def serving(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class Quiet(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Pod(Quiet):
    def do_GET(self):
        self.answer(200, b"a pod\n", "text/plain")


def service(name, exported):
    labels = {"mirror.linkerd.io/exported": "true"} if exported else {}
    return {"metadata": {"name": name, "namespace": "prod", "labels": labels, "resourceVersion": "1"},
            "spec": {"clusterIP": "10.96.0.1", "ipFamilies": ["IPv4"], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}}


def slice_of(name, port):
    labels = {"kubernetes.io/service-name": name}
    return {"metadata": {"name": f"{name}-1", "namespace": "prod", "labels": labels, "resourceVersion": "1"}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}]}


@contextlib.contextmanager
def cluster(folder):
    """`web` and `db` are exported, `inner` is not; all lead to one pod. A kubeconfig that leads to the API server."""
    with serving(Pod) as pod:
        names = {"web": True, "db": True, "inner": False}
        items = {"ServiceList": [service(*each) for each in names.items()], "EndpointSliceList": [slice_of(name, pod) for name in names]}

        class Api(Quiet):
            def do_GET(self):
                path, _, query = self.path.partition("?")
                if path not in LISTS:
                    self.answer(404, b"{}")
                elif "watch=true" in query:
                    # Nothing ever changes: the watch stands until the gateway goes.
                    self.send_response(200)
                    self.send_header("content-type", "application/json")
                    self.send_header("transfer-encoding", "chunked")
                    self.end_headers()
                    self.wfile.flush()
                    self.rfile.read(1)
                    self.close_connection = True
                else:
                    listed = {"kind": LISTS[path], "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items[LISTS[path]]}
                    self.answer(200, json.dumps(listed).encode())

        with serving(Api) as port:
            kubeconfig = folder / "kubeconfig"
            kubeconfig.write_text(json.dumps({
                "apiVersion": "v1", "kind": "Config", "current-context": "here",
                "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "here", "user": {}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
            }))
            yield kubeconfig
