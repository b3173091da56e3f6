"""What ends the demo before its end."""


class DemoFailed(Exception):
    """The demo cannot go on. The message says why."""


class Interrupted(Exception):
    """A signal asked the demo to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by signal {number}")
        self.number = number
