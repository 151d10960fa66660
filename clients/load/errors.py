"""What can go wrong with a load test itself; a request that fails is a result, not one of these."""


class LoadError(Exception):
    """The run cannot go on: the server cannot be reached, a file cannot be read. One line; exit 1."""


class UsageError(LoadError):
    """A value that was given is wrong, or does not go with another. One line; exit 2."""
