"""Errors that are the user's to mend: one sentence that says what is wrong, where, and what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend; the command line prints it as one sentence and exits with code 2."""


def reason(error: Exception) -> str:
    """Return the message of an error on one line, without a full stop at its end.

    >>> reason(ValueError("too\\nlong."))
    'too long'
    """
    return " ".join(str(error).split()).rstrip(".")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean "x"?` for the known name most like `name`, or an empty string.

    >>> nearest("catbabi-qa/fmw", ["catbabi-qa/fwm", "catbabi-lm/fwm"])
    '; did you mean "catbabi-qa/fwm"?'
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f'; did you mean "{matches[0]}"?' if matches else ""
