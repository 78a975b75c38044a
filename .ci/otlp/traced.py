"""Requests through a gateway that traces, and what an OTLP receiver and a backend see of them.

    traced.py BINARY IDENTITY      in a folder with anchor.crt, gateway.crt, client.crt and their keys
"""

import http.server
import json
import queue
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

failed = []
spans = queue.Queue()
seen = queue.Queue()


def holds(name, good, said=""):
    print(f"{'ok   ' if good else 'FAIL '} {name}" + ("" if good else f": {said}"), flush=True)
    if not good:
        failed.append(name)


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        for resource in request.resource_spans:
            about = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    spans.put((about, span))
        return trace_service_pb2.ExportTraceServiceResponse()


class Backend(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        seen.put(self.headers.get("traceparent"))
        self.send_response(503 if self.path.startswith("/broken") else 200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


def ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    return [one.getsockname()[1] for one in held]


def collector(port):
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Receiver(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server


def value(attribute):
    return getattr(attribute.value, attribute.value.WhichOneof("value"))


def main():
    binary, identity = sys.argv[1:]
    gateway, probe, admin, otlp = ports(4)
    backend = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    config = {
        "accept": {"listen": f"127.0.0.1:{gateway}"},
        "probe": {"listen": f"127.0.0.1:{probe}"},
        "admin": {"listen": f"127.0.0.1:{admin}"},
        "tls": {"chain_file": "gateway.crt", "key_file": "gateway.key", "bundle_file": "anchor.crt"},
        "authorise": {"default": "authenticated", "exported_only": False},
        "connect": {"deny_loopback": False},
        "drain": {"announce": "0s", "deadline": "5s"},
        "telemetry": {"traces": {"endpoint": f"http://127.0.0.1:{otlp}", "sample": 1.0, "timeout": "2s"}},
        "sources": {"dns": {"enabled": False}, "services": [
            {"name": "web.ns.svc.cluster.local", "port": 80, "protocol": "http1",
             "endpoints": [{"address": f"127.0.0.1:{backend.server_port}"}]}]},
    }
    with open("isthmus.yaml", "w", encoding="utf-8") as file:
        json.dump(config, file)
    running = subprocess.Popen([binary, "run", "--config", "isthmus.yaml"], stdout=subprocess.DEVNULL)
    server = collector(otlp)

    def call(path, *more, version="--http2", service="web"):
        return subprocess.run(
            ["curl", "-sS", "--retry", "20", "--retry-connrefused", "--retry-delay", "0", "--max-time", "20", version,
             "--cacert", "anchor.crt", "--cert", "client.crt", "--key", "client.key", "-o", "/dev/null", "-w", "%{http_code}",
             "--connect-to", f"::127.0.0.1:{gateway}", "-H", f"host: {service}.ns.svc.cluster.local", *more,
             f"https://{identity}{path}"], capture_output=True, text=True, check=False).stdout

    def span():
        return spans.get(timeout=30)

    try:
        trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
        holds("a request of a recorded trace is served",
              call("/cart?secret=1", "-H", f"traceparent: 00-{trace}-{parent}-01") == "200")
        about, got = span()
        said = {a.key: value(a) for a in got.attributes}
        holds("its span is the client's child", (got.trace_id.hex(), got.parent_span_id.hex()) == (trace, parent), got)
        upstream = seen.get(timeout=10)
        holds("what the backend does hangs below it", upstream == f"00-{trace}-{got.span_id.hex()}-01", upstream)
        holds("who sends", about.get("service.name") == "isthmus" and "service.version" in about, about)
        holds("what was asked, without the query", (said.get("http.request.method"), said.get("url.path"),
              said.get("http.response.status_code"), said.get("server.address"), said.get("network.protocol.version"))
              == ("GET", "/cart", 200, "web.ns.svc.cluster.local", "2"), said)
        holds("who asked", said.get("isthmus.client", "").startswith("shop.west."), said)
        events = [event.name for event in got.events]
        holds("the stages are its events, in order",
              events == [stage for stage in ("detect", "authorise", "route", "balance", "connect", "relay") if stage in events]
              and {"authorise", "connect", "relay"} <= set(events), events)
        times = [got.start_time_unix_nano, *(event.time_unix_nano for event in got.events), got.end_time_unix_nano]
        holds("times go forward", times == sorted(times) and abs(times[0] / 1e9 - time.time()) < 60, times)

        call("/plain", version="--http1.1")
        _, got = span()
        holds("a request without a trace begins one",
              not got.parent_span_id and seen.get(timeout=10).startswith(f"00-{got.trace_id.hex()}-{got.span_id.hex()}-01"), got)
        call("/broken")
        _, got = span()
        seen.get(timeout=10)
        holds("a failed request's span is in error", got.status.code == 2, got)
        call("/", service="nobody")
        _, got = span()
        said = {a.key: value(a) for a in got.attributes}
        holds("a refusal's span says why", "error.type" in said, said)
        call("/silent", "-H", f"traceparent: 00-{trace}-{parent}-00")
        holds("what its sender does not record, is passed on as such", seen.get(timeout=10).endswith("-00"))

        server.stop(0).wait()
        codes = [call(f"/away/{n}") for n in range(20)]
        holds("without a collector every request is served", codes == ["200"] * 20, codes)
        server = collector(otlp)
        deadline, back = time.monotonic() + 60, None
        while back is None and time.monotonic() < deadline:
            call("/back")
            try:
                back = spans.get(timeout=1)
            except queue.Empty:
                pass
        holds("spans go on when it is back", back is not None)
        metrics = subprocess.run(["curl", "-sS", f"http://127.0.0.1:{admin}/metrics"], capture_output=True, text=True, check=False)
        holds("what became of spans is counted", 'isthmus_traces_spans_total{result="sent"}' in metrics.stdout)
    finally:
        running.terminate()
        running.wait(timeout=20)
        server.stop(0)
    print(f"{len(failed)} failed")
    sys.exit(1 if failed else 0)


main()
