"""The cases. Each asserts what clients may see, and gives back its row: the limit that holds it, and what they saw."""

import os
import subprocess
import sys
import threading
import time

from world import *

ISTHMUS, WORK = sys.argv[1], sys.argv[2]


def gateway(backends, **more):
    return Gateway(ISTHMUS, WORK, backends, **more)


def load(one, **more):
    return Load(WORK, (one.host, one.port), **more)


def emfile():
    """no descriptors left (EMFILE)"""
    backend = Backend()
    one = gateway([backend.address], name="emfile", before=["prlimit", "--nofile=100:100"])
    clients = load(one, clients=4)
    clients.more(50)
    # More connections than there are descriptors; none of them says a word.
    idle = []
    for _ in range(200):
        stream = socket.socket()
        stream.setblocking(False)
        stream.connect_ex((one.host, one.port))
        idle.append(stream)
    time.sleep(1)
    clients.forget()
    clients.more(200)
    # Who is connected is served; whose pooled connection to a backend has to be opened anew may be told 502 or 503.
    clients.only(200, 502, 503, 504)
    full = str(clients)
    assert clients.count(200) * 2 > clients.count(), full
    for stream in idle:
        stream.close()
    until("accepts again", lambda: one.count("isthmus_accept_errors_total", "EMFILE") > 0)
    time.sleep(1.5)
    clients.forget()
    fresh = load(one, clients=2)
    fresh.more(50)
    fresh.stop().only(200)
    clients.more(50)
    clients.only(200)
    return "backoff of `accept(2)`, 5 ms to 1 s", f"at the limit: {full}; afterwards 200 only. {one.term(clients)}"


def enospc():
    """access log on a full disk (ENOSPC)"""
    disk = f"{WORK}/disk"
    os.makedirs(disk)
    small = sh(f"mount -t tmpfs -o size=64k tmpfs {disk}", check=False)
    if small.returncode != 0:
        raise Skipped(f"no tmpfs: {small.stderr.strip()}")
    try:
        backend = Backend()
        log = f"{disk}/access.log"
        one = gateway([backend.address], name="enospc", settings={"telemetry": {"access_log_file": log}})
        clients = load(one, clients=6, pause=0.005)
        until("the disk is full", lambda: one.count("isthmus_access_log_dropped_total", "write_failed") > 0, 60)
        clients.more(300)
        clients.only(200)
        lost = one.count("isthmus_access_log_dropped_total", "write_failed")
        # Room again, as rotation makes it.
        os.truncate(log, 0)
        before = one.count("isthmus_access_log_lines_total")
        until("lines are written again", lambda: one.count("isthmus_access_log_lines_total") > before + 20)
        saw = f"{clients}; {lost:.0f} lines lost and counted"
        return "queue of 8192 lines; a failed write is tried again after 1 s", f"{saw}. {one.term(clients)}"
    finally:
        sh(f"umount -l {disk}", check=False)


def full_pipe():
    """a full pipe on standard output that nobody reads"""
    backend = Backend()
    read, write = os.pipe()
    one = gateway([backend.address], name="pipe", stdout=write, settings={"telemetry": {"access_log_file": None}})
    os.close(write)
    clients = load(one, clients=12, pause=0)
    until("lines are dropped", lambda: one.count("isthmus_access_log_dropped_total", "queue_full") > 0, 120)
    clients.more(500)
    clients.only(200)
    lost = one.count("isthmus_access_log_dropped_total", "queue_full")
    saw = f"{clients}; {lost:.0f} lines lost and counted"
    said = one.term(clients)
    os.close(read)
    return "queue of 8192 lines, 8 MiB", f"{saw}. {said}"


def clock():
    """the wall clock jumps two days ahead, and back"""
    backend = Backend()
    stamp = f"{WORK}/now"
    with open(stamp, "w") as file:
        file.write("+0")
    env = {"LD_PRELOAD": faketime(), "FAKETIME_TIMESTAMP_FILE": stamp, "FAKETIME_NO_CACHE": "1",
           "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
    one = gateway([backend.address], name="clock", env=env)
    clients = load(one, clients=4)
    brief = connect(WORK, (one.host, one.port), "brief")
    assert ask(brief)[0] == 200
    clients.more(50)

    def jump(to):
        with open(stamp, "w") as file:
            file.write(to)

    def knock():
        try:
            stream = connect(WORK, (one.host, one.port), "brief")
            return (ask(stream) or ["closed"])[0]
        except OSError as error:
            return type(error).__name__

    jump("+2d")
    until("a certificate of an hour is refused", lambda: knock() != 200)
    until("that is counted", lambda: one.count("isthmus_tls_handshakes_total", 'result="tls.expired"') > 0)
    clients.more(200)
    # The connection that its holder still has is looked at within a minute.
    begun = time.monotonic()

    def gone():
        try:
            return ask(brief) is None
        except OSError:
            return True

    until("the connection that outlived its certificate ends", gone, 75)
    took = time.monotonic() - begun
    jump("-2d")
    # Before everybody's certificates began: nobody new is let in, who is there stays.
    until("nothing is valid yet", lambda: knock() != 200)
    jump("+0")
    until("it is let in again", lambda: knock() == 200)
    clients.more(100)
    clients.only(200)
    assert clients.slowest < 5, clients
    saw = f"valid ones: {clients}; the expired one refused at once, its connection ended after {took:.0f} s"
    return "`tls.expiry_grace`; a look at the wall clock every 60 s; timers on the monotonic clock", f"{saw}. {one.term(clients)}"


def cgroup(controller, name):
    """A group of the machine's, version 1 or 2."""
    for base in (f"/sys/fs/cgroup/{controller}", "/sys/fs/cgroup"):
        path = f"{base}/isthmus-{name}-{os.getpid()}"
        try:
            os.mkdir(path)
        except OSError:
            continue
        wanted = {"cpu": ("cpu.cfs_quota_us", "cpu.max"), "memory": ("memory.limit_in_bytes", "memory.max")}[controller]
        for version, file in zip((1, 2), wanted):
            if os.path.exists(f"{path}/{file}") and os.access(f"{path}/{file}", os.W_OK):
                return path, version
        os.rmdir(path)
    raise Skipped(f"no writable {controller} group on this machine")


def write(path, text):
    with open(path, "w") as file:
        file.write(str(text))


def starved():
    """a tenth of a processor"""
    path, version = cgroup("cpu", "starved")
    backend = Backend()
    one = gateway([backend.address], name="starved")
    try:
        clients = load(one, clients=4)
        clients.more(100)
        clients.only(200)
        free = clients.slowest
        if version == 1:
            write(f"{path}/cpu.cfs_period_us", 100_000)
            write(f"{path}/cpu.cfs_quota_us", 10_000)
        else:
            write(f"{path}/cpu.max", "10000 100000")
        write(f"{path}/cgroup.procs", one.process.pid)
        clients.forget()
        more = load(one, clients=20, pause=0)
        more.more(400)
        clients.more(60)
        clients.only(200)
        more.only(200)
        begun = time.monotonic()
        assert one.get("/live")[0] == 200
        live = time.monotonic() - begun
        more.stop()
        stat = open(f"{path}/cpu.stat").read()
        throttled = int(stat.split("nr_throttled ")[1].split()[0])
        assert throttled > 0, stat
        said = one.term(clients, 30)
        return "backpressure; health answers on threads of their own", \
            f"{more}; before: slowest {free * 1000:.0f} ms; `/live` took {live * 1000:.0f} ms; throttled {throttled} times. {said}"
    finally:
        one.close()
        until("the group is empty", lambda: not open(f"{path}/cgroup.procs").read().strip())
        os.rmdir(path)


def pressed():
    """a memory group of 48 MiB, and uploads that a slow backend does not take"""
    path, version = cgroup("memory", "pressed")
    limit = 48 << 20
    backend = Backend(pace=0.01)
    one = gateway([backend.address], name="pressed")
    try:
        write(f"{path}/{'memory.limit_in_bytes' if version == 1 else 'memory.max'}", limit)
        write(f"{path}/cgroup.procs", one.process.pid)
        clients = load(one, clients=40, pause=0, body=os.urandom(1 << 20))
        most, end = 0, time.monotonic() + 8
        while time.monotonic() < end:
            most = max(most, one.count("process_resident_memory_bytes"))
            time.sleep(0.2)
        clients.more(40)
        assert one.process.poll() is None, "it was killed"
        clients.only(200)
        assert 0 < most < limit, most
        saw = f"{clients}; at most {most / (1 << 20):.0f} MiB"
        # A body on its way that is cut by the deadline is lost; none is sent again.
        return "buffers per connection and stream", f"{saw}. {one.term(clients, 15, 'OSError', 'BrokenPipeError', 'ConnectionResetError', 'SSLEOFError', 'closed')}"
    finally:
        one.close()
        until("the group is empty", lambda: not open(f"{path}/cgroup.procs").read().strip())
        os.rmdir(path)


def killed():
    """SIGKILL of one of two gateways behind HAProxy, in turn"""
    backend = Backend()
    pair = [gateway([backend.address], name=f"replica{at}") for at in range(2)]
    [front] = free_ports(1)
    servers = "\n".join(
        f"  server r{at} 127.0.0.1:{one.port} check port {one.probe} inter 200ms fastinter 100ms fall 1 rise 1 on-marked-down shutdown-sessions"
        for at, one in enumerate(pair)
    )
    write(f"{WORK}/haproxy.cfg", f"""
defaults
  mode tcp
  timeout connect 500ms
  timeout client 1m
  timeout server 1m
  retries 3
  option redispatch 1
listen front
  bind 127.0.0.1:{front}
  balance roundrobin
  option httpchk GET /ready
{servers}
""")
    try:
        balancer = subprocess.Popen(["haproxy", "-db", "-f", f"{WORK}/haproxy.cfg"], stderr=subprocess.DEVNULL,
                                    stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        raise Skipped("HAProxy is not installed") from None
    try:
        time.sleep(1)
        clients = Load(WORK, ("127.0.0.1", front), clients=8, retries=3)
        clients.more(100)
        kills = 0
        for at in (0, 1, 0, 1):
            pair[at].process.kill()
            pair[at].process.wait()
            kills += 1
            clients.more(100)
            ports = (pair[at].port, pair[at].probe, pair[at].admin)
            pair[at].close()
            pair[at] = gateway([backend.address], name=f"replica{at}", ports=ports)
            clients.more(100)
            time.sleep(0.6)  # the balancer's own look at who is back
        clients.stop().only(200)
        return "two replicas; clients that retry three times", f"{kills} × SIGKILL: {clients}; {clients.again} tries again"
    finally:
        balancer.kill()
        balancer.wait()
        for one in pair:
            one.close()


class Net:
    """Three hosts in a row: clients, the gateway, two backends; a bad wire on either side of the gateway."""

    def __init__(self):
        if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
            raise Skipped("network namespaces and tun devices need root")
        self.names = [f"isthmus-{os.getpid()}-{host}" for host in ("c", "g", "b")]
        client, middle, backend = self.names
        for name in self.names:
            if sh(f"ip netns add {name}", check=False).returncode != 0:
                raise Skipped("no network namespaces here")
            sh(f"ip -n {name} link set lo up")
        try:
            self.front = Wire((client, f"ic{os.getpid() % 100000}", "10.231.1.2/24"), (middle, f"if{os.getpid() % 100000}", "10.231.1.1/24"))
            self.back = Wire((middle, f"im{os.getpid() % 100000}", "10.231.2.1/24"), (backend, f"ib{os.getpid() % 100000}", "10.231.2.2/24"))
            sh(f"ip -n {backend} address add 10.231.2.3/24 dev ib{os.getpid() % 100000}")
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            raise Skipped(f"no tun devices here: {error}") from None

    def close(self):
        for name in self.names:
            sh(f"ip netns delete {name}", check=False)


TIGHT = {
    "accept": {"keepalive": "1s", "user_timeout": "3s"},
    "connect": {"timeout": "1s", "keepalive": "1s", "user_timeout": "3s"},
    "http": {"keepalive_interval": "1s", "keepalive_timeout": "2s"},
    "balance": {"ejection_min": "1s", "ejection_max": "2s"},
}


def between(net, name, backends=2):
    client, middle, behind = net.names
    hosts = ["10.231.2.2", "10.231.2.3"][:backends]
    services = [Backend(namespace=behind, host=host, name=host) for host in hosts]
    settings = {section: dict(keys) for section, keys in TIGHT.items()}
    one = gateway([service.address for service in services], name=name, namespace=middle, host="10.231.1.1", settings=settings)
    return one, load(one, namespace=client, clients=6)


def bad_wire():
    """2 % loss, 20 to 40 ms delay each way with reordering, on both sides"""
    net = Net()
    one = None
    try:
        one, clients = between(net, "wire")
        clients.more(60)
        for wire in (net.front, net.back):
            wire.loss, wire.delay, wire.jitter = 0.02, 0.02, 0.02
        clients.forget()
        clients.more(300, 120)
        clients.only(200)
        wires = [net.front, net.back]
        lost, late, passed = (sum(getattr(wire, what) for wire in wires) for what in ("lost", "late", "passed"))
        assert lost > 10 and late > 10, (lost, late)
        saw = f"{clients}; {lost} packets of {passed} lost, {late} overtaken"
        return "TCP", f"{saw}. {one.term(clients, 20)}"
    finally:
        if one:
            one.close()
        net.close()


def hole_behind():
    """a black hole to one of two backends"""
    net = Net()
    one = None
    try:
        one, clients = between(net, "behind")
        clients.more(100)
        middle = net.names[1]
        hole = "nft" if sh("command -v nft", check=False).returncode == 0 else "route"
        if hole == "nft" and sh(f"ip netns exec {middle} nft add table inet hole", check=False).returncode != 0:
            hole = "route"
        clients.forget()
        begun = time.monotonic()
        if hole == "nft":
            sh(f"ip netns exec {middle} nft 'add chain inet hole out {{ type filter hook output priority 0; }}'")
            sh(f"ip netns exec {middle} nft add rule inet hole out ip daddr 10.231.2.3 drop")
        else:
            sh(f"ip -n {middle} route add blackhole 10.231.2.3/32")
        time.sleep(8)
        fell = str(clients)
        clients.only(200, 502, 503, 504)
        # user_timeout and what a connect may take; the kernel looks at its clocks at intervals that double.
        assert clients.slowest < 2 * (3 + 1) + 4, fell
        # It is left from here on: a try now and then costs its one request a connect timeout and another backend.
        clients.forget()
        clients.more(200)
        clients.only(200)
        sh(f"ip netns exec {middle} nft flush table inet hole" if hole == "nft" else f"ip -n {middle} route del blackhole 10.231.2.3/32")
        until("it is asked again", lambda: '10.231.2.3' in one.get("/state")[1])
        said = one.term(clients)
        return "`connect.user_timeout` (3 s here), `connect.timeout`, ejection", \
            f"in the first 8 s: {fell}; then 200 only. {said}"
    finally:
        if one:
            one.close()
        net.close()


def hole_before():
    """clients vanish in a black hole"""
    net = Net()
    one = None
    try:
        one, clients = between(net, "before")
        client = net.names[0]
        # Besides those that ask: idle ones of HTTP/1 and HTTP/2.
        idle = [connect(WORK, (one.host, one.port), namespace=client) for _ in range(5)]
        newer = []
        for _ in range(5):
            stream = connect(WORK, (one.host, one.port), alpn="h2", namespace=client)
            stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")
            newer.append(stream)
        clients.more(50)
        assert one.count("isthmus_accept_open_connections") >= 16
        net.front.hole = True
        begun = time.monotonic()
        until("all are found dead", lambda: one.count("isthmus_accept_open_connections") == 0, 20)
        took = time.monotonic() - begun
        # Keepalive or PING after 1 s, and 3 s of silence after that; the kernel's timers double.
        assert took < 10, took
        net.front.hole = False
        clients.ended = True
        clients.stop()
        fresh = load(one, namespace=client, clients=2)
        fresh.more(40)
        fresh.only(200)
        saw = str(fresh)
        assert one.count("isthmus_relay_open_requests") <= 2
        del idle, newer
        said = one.term(fresh)
        return "`accept.user_timeout` (3 s here), `accept.keepalive` (1 s), HTTP/2 PING (1 s + 2 s)", \
            f"all connections found dead {took:.1f} s after the last packet; new ones: {saw}. {said}"
    finally:
        if one:
            one.close()
        net.close()


CASES = [emfile, enospc, full_pipe, clock, starved, pressed, killed, bad_wire, hole_behind, hole_before]


def main():
    chosen = [case for case in CASES if not sys.argv[3:] or case.__name__ in sys.argv[3:]]
    rows, failed, skipped = {}, [], []

    def one(case):
        begun = time.monotonic()
        try:
            limit, saw = case()
            rows[case] = f"| {case.__doc__} | {limit} | `.ci/faults/run {case.__name__}` | {saw} |"
        except Skipped as why:
            skipped.append(case.__name__)
            print(f"{case.__name__}: SKIPPED: {why}", flush=True)
        except Exception as error:  # the other cases are run all the same
            failed.append(case.__name__)
            print(f"{case.__name__}: FAILED after {time.monotonic() - begun:.0f} s: {type(error).__name__}: {error}", flush=True)
        else:
            print(f"{case.__name__}: {time.monotonic() - begun:.0f} s", flush=True)

    # The clock's case waits for most of its time: beside the others.
    beside = [threading.Thread(target=one, args=(case,)) for case in chosen if case is clock]
    for thread in beside:
        thread.start()
    for case in chosen:
        if case is not clock:
            one(case)
    for thread in beside:
        thread.join()
    print("\n| fault | limit | test | what clients saw |\n|---|---|---|---|")
    for case in chosen:
        if case in rows:
            print(rows[case])
    print(f"\nfaults: {len(rows)} as they should be, {len(failed)} not, {len(skipped)} skipped {' '.join(skipped)}")
    os._exit(1 if failed else 0)


main()
