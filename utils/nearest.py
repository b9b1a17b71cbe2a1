"""Names in messages: the one that a user may have meant, and the first ones of many."""

import difflib
from collections.abc import Iterable, Sequence


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns " Did you mean 'X'? Allowed: A, B, …", to be appended to a sentence."""
    names = list(allowed)
    lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    suggestion = f" Did you mean '{lower[close[0]]}'?" if close else ""
    return f"{suggestion} Allowed: {', '.join(names) or 'none'}."


def listed(names: Sequence[str], count: int) -> str:
    """Returns "A, B, …": the first `count` of the names."""
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
