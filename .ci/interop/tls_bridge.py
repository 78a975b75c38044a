"""Takes plain connections and carries them to the gateway over mutual TLS, for clients that know no client certificates."""

import asyncio
import ssl
import sys

listen, port, gateway, alpn = sys.argv[1:]

context = ssl.create_default_context(cafile="anchor.crt")
context.load_cert_chain("shop.crt", "shop.key")
context.set_alpn_protocols([alpn])


async def copy(reader, writer):
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def carry(reader, writer):
    to = await asyncio.open_connection("127.0.0.1", int(port), ssl=context, server_hostname=gateway)
    await asyncio.gather(copy(reader, to[1]), copy(to[0], writer))


async def main():
    server = await asyncio.start_server(carry, "127.0.0.1", int(listen))
    async with server:
        await server.serve_forever()


asyncio.run(main())
