"""A gRPC service without generated code: messages are bytes. Unary, both ways streaming, slow, and failing."""

import sys
import time
from concurrent import futures

import grpc


def say(request, context):
    context.set_trailing_metadata((("x-who", dict(context.invocation_metadata()).get("l5d-client-id", "")),))
    return request


def chat(requests, context):
    for request in requests:
        yield request


def count(request, context):
    for number in range(int(request)):
        yield b"%d" % number


def sleep(request, context):
    time.sleep(5)
    return request


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "100% \u00fcberall")


handlers = grpc.method_handlers_generic_handler(
    "interop.Echo",
    {
        "Say": grpc.unary_unary_rpc_method_handler(say),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Sleep": grpc.unary_unary_rpc_method_handler(sleep),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
    },
)
server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
server.add_generic_rpc_handlers((handlers,))
server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
server.start()
server.wait_for_termination()
