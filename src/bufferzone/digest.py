"""SHA-256 for a start: the interpreter's own, without OpenSSL, whose import costs 3 to 5 ms of CPU time.

The same digests as hashlib's; that is faster for what is many MiB.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        from _sha2 import sha256  # Python 3.12 and newer
    except ImportError:
        try:
            from _sha256 import sha256
        except ImportError:  # an interpreter that was built without
            from hashlib import sha256

__all__ = ["sha256"]
