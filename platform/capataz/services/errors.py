"""What can go wrong while servers and processes are started."""


class StartFailed(RuntimeError):
    """Something could not be started. The message says what to do about it."""


class HomeInUse(StartFailed):
    """Another process holds this home."""
