"""Calls the gRPC service through the gateway, over mutual TLS, and prints a line for each call that went as it should."""

import queue
import sys
from pathlib import Path

import grpc

port, gateway = sys.argv[1:]
SHOP = "shop.west.serviceaccount.identity.linkerd.cluster.local"


def channel(authority):
    credentials = grpc.ssl_channel_credentials(
        Path("anchor.crt").read_bytes(), Path("shop.key").read_bytes(), Path("shop.crt").read_bytes()
    )
    options = [("grpc.ssl_target_name_override", gateway), ("grpc.default_authority", authority)]
    return grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)


def check(name, right, found=""):
    print(f"ok gRPC {name}" if right else f"{name}: {found}", flush=True)


def refused(call, code, name, details=None):
    try:
        call()
        check(name, False, "it was served")
    except grpc.RpcError as error:
        right = error.code() == code and (details is None or error.details() == details)
        check(name, right, f"{error.code()}: {error.details()}")


with channel("grpc.ns.svc.cluster.local") as through:
    say = through.unary_unary("/interop.Echo/Say")
    response, call = say.with_call(b"hello", timeout=10)
    check("unary", response == b"hello", response)
    check("trailing metadata", ("x-who", SHOP) in [tuple(pair) for pair in call.trailing_metadata()], call.trailing_metadata())
    large = bytes(range(256)) * 8000
    check("unary, 2 MB both ways", say(large, timeout=20) == large)

    count = through.unary_stream("/interop.Echo/Count")
    numbers = [int(number) for number in count(b"1000", timeout=20)]
    check("server streaming, 1000 messages", numbers == list(range(1000)), numbers[:10])

    # Each message is sent only when the one before it has come back.
    asked = queue.Queue()
    asked.put(b"0")
    seen = []
    for response in through.stream_stream("/interop.Echo/Chat")(iter(asked.get, None), timeout=20):
        seen.append(int(response))
        asked.put(b"%d" % (seen[-1] + 1) if seen[-1] < 99 else None)
    check("streaming both ways, in turns", seen == list(range(100)), seen[:10])

    fail = through.unary_unary("/interop.Echo/Fail")
    refused(lambda: fail(b"", timeout=10), grpc.StatusCode.FAILED_PRECONDITION, "a status of the service", "100% \u00fcberall")
    sleep = through.unary_unary("/interop.Echo/Sleep")
    refused(lambda: sleep(b"", timeout=0.5), grpc.StatusCode.DEADLINE_EXCEEDED, "a deadline")
    check("and then another call", say(b"again", timeout=10) == b"again")

with channel("absent.ns.svc.cluster.local") as through:
    absent = through.unary_unary("/interop.Echo/Say")
    refused(lambda: absent(b"", timeout=10), grpc.StatusCode.NOT_FOUND, "a service that is none", "bad gateway domain")
