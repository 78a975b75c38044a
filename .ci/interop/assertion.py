#!/usr/bin/env python3
"""Checks the gateway's client assertion as a backend in Python would: PyJWT, and the keys that the gateway shows.

Not called jwt.py: Python would then take this file for the library it imports.

  assertion.py check --jwks URL --audience NAME --issuer IDENTITY [--subject IDENTITY] TOKEN
      Prints the claims as JSON. Exit code 1 and the reason where the token is refused. Then makes sure that it is refused
      for another audience, from another issuer, and with changed claims.
  assertion.py serve --jwks URL --audience NAME --issuer IDENTITY [--port PORT]
      A service that answers 200 and who called to requests with a good assertion, and 401 to all others. Prints its
      address once it listens. The keys are fetched with the first request, so it may start before the gateway.

Needs PyJWT and cryptography.
"""

import argparse
import base64
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt

# How far two clocks may be apart, in seconds.
LEEWAY = 10
REQUIRED = ["iss", "sub", "aud", "iat", "nbf", "exp"]


class Assertions:
    """What a service has to do, in full."""

    def __init__(self, jwks, audience, issuer):
        # Keeps the keys for five minutes, and asks again at once for a key it has not seen: a gateway's new one.
        self.keys = jwt.PyJWKClient(jwks, lifespan=300, timeout=5)
        self.audience = audience
        self.issuer = issuer

    def claims(self, token, **other):
        wanted = {"audience": self.audience, "issuer": self.issuer, **other}
        key = self.keys.get_signing_key_from_jwt(token)
        # The algorithm is ours to name, never the token's.
        return jwt.decode(
            token, key, algorithms=["ES256"], leeway=LEEWAY, options={"require": REQUIRED}, **wanted
        )


def check(assertions, args):
    try:
        claims = assertions.claims(args.token)
    except jwt.PyJWTError as error:
        sys.exit(f"refused: {error}")
    if args.subject and claims["sub"] != args.subject:
        sys.exit(f"the subject is {claims['sub']}, not {args.subject}")
    for wrong in ({"audience": "another.service"}, {"issuer": "another.gateway"}):
        must_be_refused(lambda: assertions.claims(args.token, **wrong), f"with {wrong}")
    header, _, signature = args.token.split(".")
    changed = json.dumps({**claims, "sub": "somebody.else"}).encode()
    forged = ".".join([header, base64.urlsafe_b64encode(changed).rstrip(b"=").decode(), signature])
    must_be_refused(lambda: assertions.claims(forged), "with changed claims")
    unsigned = jwt.encode(claims, None, algorithm="none", headers=jwt.get_unverified_header(args.token) | {"alg": "none"})
    must_be_refused(lambda: assertions.claims(unsigned), "without a signature")
    print(json.dumps(claims, indent=2, sort_keys=True))


def must_be_refused(attempt, how):
    try:
        attempt()
    except jwt.PyJWTError:
        return
    sys.exit(f"taken {how}")


def serve(assertions, args):
    class Service(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            try:
                claims = assertions.claims(self.headers.get(args.header, ""))
            except jwt.PyJWTError as error:
                return self.answer(401, {"refused": str(error)})
            return self.answer(200, {"client": claims["sub"], "claims": claims, "headers": self.headers.items()})

        def answer(self, status, value):
            body = json.dumps(value).encode() + b"\n"
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", args.port), Service)
    print(f"127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("check", check), ("serve", serve)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--jwks", required=True, help="http://…/.well-known/jwks.json of the admin or the probe port")
        command.add_argument("--audience", required=True, help="the service's own name")
        command.add_argument("--issuer", required=True, help="the gateway's identity")
        if run is check:
            command.add_argument("--subject", help="whom the token must name")
            command.add_argument("token")
        else:
            command.add_argument("--port", type=int, default=0)
            command.add_argument("--header", default="isthmus-client-assertion")
    args = parser.parse_args()
    args.run(Assertions(args.jwks, args.audience, args.issuer), args)


if __name__ == "__main__":
    main()
