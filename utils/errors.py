"""The errors that a person is meant to read: each is one clear message, shown without a traceback.

UserError
├── ConfigError   a key, a value or a command line argument is wrong   exit code 2
├── DataError     a photo, an archive or an annotation is wrong        exit code 2
└── RunError      a training cannot start, go on or be resumed         exit code 1
    ├── DamagedCheckpoint  no run can go on from it             exit code 1
    ├── DamagedStore  the store of the dashboard cannot be read        exit code 1
    └── Interrupted   a person or the system ended it                  exit code 128 + signal
"""

LONGEST_MESSAGE = 20_000  # characters; a hostile file must not fill the log


class UserError(Exception):
    """Base of all errors whose message is the whole answer."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        # A DataLoader's worker hands its error over as a text with the whole traceback; its last line is the message.
        _, traceback, rest = message.rpartition(f"{type(self).__name__}: ")
        message = rest.strip() if traceback and "Original Traceback" in message else message
        super().__init__(message if len(message) <= LONGEST_MESSAGE else message[:LONGEST_MESSAGE] + " …")


class ConfigError(UserError):
    """The configuration or the command line is wrong."""


class DataError(UserError):
    """The data set is missing, incomplete or damaged."""


class RunError(UserError):
    """A run cannot start, go on or be resumed, although configuration and data are in order.

    Args:
        change: What `--set` has to change, such as "seed=1", or else the run that goes on would end in the same way.
    """

    exit_code = 1

    def __init__(self, message: str, *, change: str | None = None) -> None:
        super().__init__(message)
        self.change = change


class DamagedCheckpoint(RunError):
    """A checkpoint is missing, damaged or of another program."""


class DamagedStore(RunError):
    """The store of the dashboard is no database, or one that is broken; the run folders hold all that was in it."""


class Interrupted(RunError):
    """A signal ended the training after it had written its checkpoint."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
