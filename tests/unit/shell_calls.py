"""What a shell of the jail's tests may call: all that is not forbidden, programs and processes too."""

from bufferzone import allowlists
from bufferzone.linux.allowlist import AllowList
from bufferzone.linux.syscalls import NUMBERS

#: the kernel itself shall refuse these: nothing in a jail's user namespace owns what they change
_TRIED = frozenset({"mount", "sethostname"})
SHELL = AllowList(
    name="shell",
    calls=frozenset(NUMBERS) - allowlists.FORBIDDEN | _TRIED,
    limited={},
    quiet={},
    forbidden=allowlists.FORBIDDEN - _TRIED,
)
