"""What can go wrong while servers and processes are started."""


class StartFailed(RuntimeError):
    """Something could not be started. The message says what to do about it."""


class HomeInUse(StartFailed):
    """Another process holds this home."""


class BackupFailed(RuntimeError):
    """A backup could not be made or restored. The message says what to do about it."""
