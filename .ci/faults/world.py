"""What the cases stand on: gateways as processes, backends, clients that count what they see, namespaces and a bad wire."""

import contextlib
import ctypes
import fcntl
import glob
import heapq
import json
import os
import random
import select
import socket
import ssl
import struct
import subprocess
import threading
import time

GATEWAY = "gateway.isthmus.serviceaccount.identity.linkerd.cluster.local"
SERVICE = "web.ns.svc.cluster.local"


class Skipped(Exception):
    """A case that cannot be had here, and why."""


def until(what, holds, patience=20.0):
    end = time.monotonic() + patience
    while time.monotonic() < end:
        value = holds()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"never: {what}")


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def sh(command, check=True):
    return subprocess.run(command, shell=True, check=check, capture_output=True, text=True)


# --- namespaces -------------------------------------------------------------------------------------------------------

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def inside(namespace):
    """This thread's new sockets belong to the namespace while it lasts; they stay there."""
    if namespace is None:
        yield
        return
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if LIBC.setns(there, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        yield
    finally:
        LIBC.setns(home, CLONE_NEWNET)
        os.close(home)
        os.close(there)


class Wire(threading.Thread):
    """A link between two namespaces, packet by packet: loses, delays and reorders as told, or swallows all."""

    def __init__(self, one, other):
        super().__init__(daemon=True)
        self.loss, self.delay, self.jitter, self.hole = 0.0, 0.0, 0.0, False
        self.ends = [self.tun(*one), self.tun(*other)]
        self.lock = threading.Lock()
        self.passed, self.lost, self.late = 0, 0, 0
        self.start()

    @staticmethod
    def tun(namespace, name, address):
        end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(end, 0x400454CA, struct.pack("16sH", name.encode(), 0x1001))  # TUNSETIFF, IFF_TUN | IFF_NO_PI
        sh(f"ip link set {name} netns {namespace}")
        sh(f"ip -n {namespace} address add {address} dev {name}")
        sh(f"ip -n {namespace} link set {name} up")
        return end

    def run(self):
        waiting, count = [], 0
        while True:
            pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.1
            ready, _, _ = select.select(self.ends, [], [], pause)
            for end in ready:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        try:
                            packet = os.read(end, 65536)
                        except BlockingIOError:
                            raise
                        except OSError:
                            return  # the namespace, and the device with it, is gone
                        if self.hole or random.random() < self.loss:
                            self.lost += 1
                            continue
                        other = self.ends[1 - self.ends.index(end)]
                        at = time.monotonic() + self.delay + random.random() * self.jitter
                        count += 1
                        if waiting and at < max(waiting)[0]:
                            self.late += 1
                        heapq.heappush(waiting, (at, count, other, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, other, packet = heapq.heappop(waiting)
                self.passed += 1
                with contextlib.suppress(OSError):
                    os.write(other, packet)


# --- the gateway ------------------------------------------------------------------------------------------------------


class Gateway:
    def __init__(self, isthmus, work, backends, name="gateway", settings=None, namespace=None, host="127.0.0.1", before=(),
                 env=None, stdout=None, ports=None):
        self.work, self.name, self.namespace, self.host = work, name, namespace, host
        self.port, self.probe, self.admin = ports or free_ports(3)
        sections = {
            "workers": 2,
            "accept": {"listen": f"{host}:{self.port}"},
            "probe": {"listen": f"{host}:{self.probe}", "plaintext": True},
            "admin": {"listen": f"127.0.0.1:{self.admin}"},
            "tls": {"chain_file": f"{work}/gateway.crt", "key_file": f"{work}/gateway.key", "bundle_file": f"{work}/ca.crt"},
            "authorise": {"default": "authenticated", "exported_only": False},
            "telemetry": {"log": "warn", "access_log": "all", "access_log_file": f"{work}/{name}.access"},
            "drain": {"announce": "300ms", "deadline": "8s"},
            "sources": {
                "dns": {"enabled": False},
                "services": [{"name": SERVICE, "port": 80, "exported": True, "protocol": "http1",
                              "endpoints": [{"address": address} for address in backends]}],
            },
        }
        for section, keys in (settings or {}).items():
            sections.setdefault(section, {}).update(keys)
        for key in [key for key, value in sections["telemetry"].items() if value is None]:
            del sections["telemetry"][key]
        path = f"{work}/{name}.yaml"
        with open(path, "w") as file:
            json.dump(sections, file)
        command = [*before, isthmus, "run", "--config", path]
        if namespace:
            command = ["ip", "netns", "exec", namespace, *command]
        self.log = open(f"{work}/{name}.log", "w")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout or subprocess.DEVNULL,
                                        stderr=self.log, env={**os.environ, **(env or {})})
        until(f"{name} is ready: {open(self.log.name).read()}", lambda: self.get("/ready")[0] == 200)

    def get(self, path):
        try:
            with inside(self.namespace):
                stream = socket.create_connection(("127.0.0.1", self.admin), timeout=5)
            with stream:
                stream.sendall(f"GET {path} HTTP/1.0\r\nhost: admin\r\n\r\n".encode())
                answer = b""
                while chunk := stream.recv(65536):
                    answer += chunk
            return int(answer.split(b" ", 2)[1]), answer.split(b"\r\n\r\n", 1)[1].decode()
        except (OSError, IndexError):
            return 0, ""

    def count(self, name, label=""):
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(name) and line[len(name)] in "{ " and label in line:
                total += float(line.rsplit(" ", 1)[1])
        return total

    def term(self, clients, patience=15, *allowed):
        """SIGTERM under load: it ends in time, nobody who was let in is lost, and whoever comes later is turned away at once."""
        clients.forget()
        begun = time.monotonic()
        self.process.terminate()
        code = self.process.wait(patience)
        took = time.monotonic() - begun
        clients.stop()
        assert code == 0 or (code == 1 and allowed), f"it ended with {code}: {open(self.log.name).read()[-2000:]}"
        clients.only(200, "ConnectionRefusedError", *allowed)
        return f"SIGTERM meanwhile: {clients.count(200)} × 200, exit {code} after {took:.1f} s"

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


# --- backends ---------------------------------------------------------------------------------------------------------


class Backend:
    """Answers each request with its own name; reads bodies at its leisure."""

    def __init__(self, namespace=None, host="127.0.0.1", name="one", pace=None):
        self.name, self.pace, self.alive = name, pace, set()
        with inside(namespace):
            self.listener = socket.create_server((host, 0), backlog=512)
        self.address = f"{host}:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                stream, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(stream,), daemon=True).start()

    def serve(self, stream):
        data = b""
        with contextlib.suppress(OSError), stream:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                while b"\r\n\r\n" not in data:
                    chunk = stream.recv(65536)
                    if not chunk:
                        return
                    data += chunk
                head, data = data.split(b"\r\n\r\n", 1)
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                while len(data) < length:
                    if self.pace:
                        time.sleep(self.pace)
                    chunk = stream.recv(65536)
                    if not chunk:
                        return
                    data += chunk
                data = data[length:]
                words = f"{self.name} {length}\n".encode()
                stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(words), words))

    def close(self):
        self.listener.close()


# --- clients ----------------------------------------------------------------------------------------------------------


def trust(work, pair="client"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(f"{work}/ca.crt")
    context.load_cert_chain(f"{work}/{pair}.crt", f"{work}/{pair}.key")
    return context


def connect(work, to, pair="client", alpn="http/1.1", namespace=None, timeout=20, context=None):
    context = context or trust(work, pair)
    context.set_alpn_protocols([alpn])
    with inside(namespace):
        plain = socket.create_connection(to, timeout=timeout)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        return context.wrap_socket(plain, server_hostname=GATEWAY)
    except BaseException:
        plain.close()
        raise


def ask(stream, body=b"", path="/"):
    """A request on a kept connection: the status, the body; None where the connection ended before an answer."""
    head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nhost: {SERVICE}\r\n"
    stream.sendall((head + (f"content-length: {len(body)}\r\n" if body else "") + "\r\n").encode() + body)
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = stream.recv(65536)
        if not chunk:
            if data:
                raise OSError("broke off")
            return None
        data += chunk
    head, data = data.split(b"\r\n\r\n", 1)
    length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0)
    while len(data) < length:
        chunk = stream.recv(65536)
        if not chunk:
            raise OSError("broke off")
        data += chunk
    return int(head.split(b" ", 2)[1]), data[:length], b"connection: close" in head.lower()


class Load:
    """Clients that ask again and again, and count. A kept connection that ends before an answer is no failure: the request is
    sent again on a new one, as RFC 9112 §9.3.1 has it. `retries` is what a client does beyond that."""

    def __init__(self, work, to, clients=6, pause=0.02, namespace=None, retries=0, body=b"", pair="client"):
        self.work, self.to, self.pause, self.namespace = work, to, pause, namespace
        self.retries, self.body, self.pair = retries, body, pair
        self.saw, self.slowest, self.ended, self.lock = {}, 0.0, False, threading.Lock()
        self.again = 0
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def note(self, what, took):
        with self.lock:
            self.saw[what] = self.saw.get(what, 0) + 1
            self.slowest = max(self.slowest, took)

    def run(self):
        context, stream = trust(self.work, self.pair), None
        while not self.ended:
            begun, tries = time.monotonic(), 0
            while True:
                kept = stream is not None
                try:
                    if stream is None:
                        stream = connect(self.work, self.to, namespace=self.namespace, context=context)
                    answer = ask(stream, self.body)
                except OSError as error:
                    if stream is not None:
                        stream.close()
                    answer, stream, what = None, None, type(error).__name__
                    broke = "broke off" in str(error)
                    if kept and not broke and isinstance(error, (ConnectionError, ssl.SSLError)) and not self.body:
                        continue
                else:
                    what = "closed"
                    if answer is None:
                        stream.close()
                        stream = None
                        if kept:
                            continue
                if answer is not None:
                    what, close = answer[0], answer[2]
                    if close:
                        stream.close()
                        stream = None
                if what != 200 and tries < self.retries:
                    tries += 1
                    self.again += 1
                    time.sleep(0.05 * tries)
                    continue
                self.note(what, time.monotonic() - begun)
                break
            time.sleep(self.pause)
        if stream is not None:
            stream.close()

    def count(self, what=None):
        with self.lock:
            return sum(self.saw.values()) if what is None else self.saw.get(what, 0)

    def more(self, count, patience=90):
        goal = self.count() + count
        until(f"{count} more requests: {self.saw}", lambda: self.count() >= goal, patience)

    def forget(self):
        with self.lock:
            self.saw, self.slowest = {}, 0.0

    def only(self, *allowed):
        with self.lock:
            assert set(self.saw) <= set(allowed), f"clients saw {self.saw}, not only {allowed}"

    def stop(self):
        self.ended = True
        for thread in self.threads:
            thread.join(30)
        return self

    def __str__(self):
        seen = ", ".join(f"{count} × {what}" for what, count in sorted(self.saw.items(), key=str))
        return f"{seen}; slowest {self.slowest * 1000:.0f} ms"


def faketime():
    found = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    if not found:
        raise Skipped("libfaketime is not installed")
    return found[0]
