"""HTTP/1.1 over asyncio, client and server. It knows neither models nor kernels."""
