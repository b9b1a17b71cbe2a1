"""The errors that users read: each is one clear message, shown without a traceback.

UserError
├── ConfigError   a key, a value or a command line argument is wrong    exit code 2
├── DataError     an image, an archive or an annotation is wrong        exit code 2
└── RunError      a run cannot start, continue or be resumed            exit code 1
    ├── DamagedCheckpoint  no run can be resumed from it                exit code 1
    ├── DamagedStore       the tracking store is corrupt                exit code 1
    └── Interrupted        a user or the system interrupted the run     exit code 128 + signal, 0 where --stop-after did
"""

MAX_MESSAGE_LENGTH = 20_000  # characters; a hostile file must not fill the log


class UserError(Exception):
    """Base class of all errors whose message is shown without a traceback."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        # A DataLoader worker passes its error on as a text with the whole traceback; the last line is the message.
        _, traceback, rest = message.rpartition(f"{type(self).__name__}: ")
        message = rest.strip() if traceback and "Original Traceback" in message else message
        super().__init__(message if len(message) <= MAX_MESSAGE_LENGTH else message[:MAX_MESSAGE_LENGTH] + " …")


class ConfigError(UserError):
    """The configuration or the command line is wrong."""


class DataError(UserError):
    """The data set is missing, incomplete or damaged."""


class RunError(UserError):
    """A run cannot start, continue or be resumed, although its configuration and data are valid.

    Args:
        change: The `--set` argument without which the resumed run would fail again, such as "seed=1".
    """

    exit_code = 1

    def __init__(self, message: str, *, change: str | None = None) -> None:
        super().__init__(message)
        self.change = change


class DamagedCheckpoint(RunError):
    """A checkpoint is missing, damaged or from another program."""


class DamagedStore(RunError):
    """The tracking store is corrupt; everything in it is also in the run folders."""


class Interrupted(RunError):
    """A signal, or `--stop-after` without a signal, interrupted the training, which has written its checkpoint."""

    def __init__(self, message: str, *, signal_number: int | None) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number if signal_number else 0
