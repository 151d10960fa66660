"""What a process that serves HTTP does before it starts: logging, room for connections, a word on open doors."""

import ipaddress
import logging
import resource
from typing import Final

from remuda.engine.log_format import configure_logging
from remuda.server.options import ServeOptions

logger = logging.getLogger(__name__)

# Besides connections: the engine's sockets, files of libraries, pipes.
_OTHER_DESCRIPTORS: Final = 128


def prepare_logging(options: ServeOptions) -> None:
    """To be called once in each process that serves."""
    configure_logging(options.log_level, options.log_format)
    # What uvicorn notes below an error is in the access log, or tells nothing that the ready line does not.
    logging.getLogger("uvicorn").setLevel(max(logging.getLogger().level, logging.ERROR))


def prepare_process(options: ServeOptions) -> None:
    """To be called once, in the process from which the others descend: what it is allowed, they are."""
    prepare_logging(options)
    _warn_of_open_doors(options)
    _raise_descriptor_limit(options.max_connections)


def _warn_of_open_doors(options: ServeOptions) -> None:
    if is_loopback(options.host):
        return
    if not options.access.api_keys:
        logger.warning("whoever reaches %s:%d may use this server: no API key is set", options.host, options.port)
    elif options.tls is None:
        logger.warning("API keys travel unencrypted, unless a proxy in front of this server speaks TLS")


def is_loopback(host: str) -> bool:
    """Only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _raise_descriptor_limit(max_connections: int) -> None:
    """Let this process open a file descriptor for each connection, as far as the system allows."""
    wanted = max_connections + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        logger.warning("the system allows %d open files, too few for %d connections", allowed, max_connections)
