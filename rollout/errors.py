"""The one base of errors that a user can mend."""


class UserError(Exception):
    """One line that says what to do; `scripts/train.py` prints it alone and exits with 2. Other errors are ours."""
