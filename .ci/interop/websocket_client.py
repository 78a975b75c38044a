"""Talks WebSocket through the gateway, over mutual TLS, and prints a line for each thing that went as it should."""

import socket
import ssl
import sys

from websockets.sync.client import connect

port, gateway = sys.argv[1:]

context = ssl.create_default_context(cafile="anchor.crt")
context.load_cert_chain("shop.crt", "shop.key")
context.set_alpn_protocols(["http/1.1"])


def check(name, right, found=""):
    print(f"ok WebSocket {name}" if right else f"{name}: {found}", flush=True)


plain = socket.create_connection(("127.0.0.1", int(port)))
uri = "wss://ws.ns.svc.cluster.local/chat"
with connect(uri, sock=plain, ssl=context, server_hostname=gateway, max_size=None) as connection:
    check("handshake", True)
    connection.send("hello")
    check("text", connection.recv(timeout=10) == "hello")
    large = bytes(range(256)) * 4000
    connection.send(large)
    check("1 MB binary", connection.recv(timeout=10) == large)
    check("ping", connection.ping().wait(timeout=10))
    for number in range(200):
        connection.send(str(number))
    check("200 messages in order", [int(connection.recv(timeout=10)) for _ in range(200)] == list(range(200)))
check("close", connection.close_code == 1000, connection.close_code)
