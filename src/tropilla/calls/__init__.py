"""What a client was promised about tool calls, kept whatever an upstream does with it.

`customs` says tools of free text to servers that know only functions, and `held` holds an answer
to what was asked: a call where one is required, no call that may not be, one call where there may
be no more. Both are values in and values out: they read no bytes, and know no dialect.
"""

from tropilla.calls.customs import fitted
from tropilla.calls.held import Held, held

__all__ = ["Held", "fitted", "held"]
