"""Errors that are the user's to mend: one sentence that says what is wrong, where, and what to do."""

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend; the command line prints it as one sentence and exits with code 2."""


def reason(error: Exception) -> str:
    """Return the message of an error on one line, without C++ code and frames, and without a full stop at its end.

    >>> reason(ValueError("too\\nlong."))
    'too long'
    """
    text = str(error).partition("Exception raised from")[0]
    text = re.sub(r"^\[[^]]*\.(?:cpp|cc|cu|h):\d+\]\s*(?:err == 0\. )?", "", text)
    return " ".join(text.split()).rstrip(".")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is Python's, NumPy's or torch's, on any device, for memory that there is not."""
    message = str(error).lower()
    signs = ("allocate memory", "out of memory", "bad_alloc", "overflowed with sizes")
    return isinstance(error, MemoryError) or any(sign in message for sign in signs)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean "x"?` for the known name most like `name`, or an empty string.

    >>> nearest("catbabi-qa/fmw", ["catbabi-qa/fwm", "catbabi-lm/fwm"])
    '; did you mean "catbabi-qa/fwm"?'
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f'; did you mean "{matches[0]}"?' if matches else ""
