"""Exit codes, and the error that ends a command with one clear line."""

OK = 0
CHECK_FAILED = 1
USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class UsageError(Exception):
    """Something is wrong with what the user gave; the message says what and what to do."""
