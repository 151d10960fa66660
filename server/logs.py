"""How the processes that serve log: to stderr, as text."""

import logging
import sys


def configure_logging(level: str) -> None:
    """To be called once in each process."""
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Its notes at level info tell nothing that the ready line does not.
    logging.getLogger("uvicorn").setLevel(max(logging.getLogger().level, logging.WARNING))
