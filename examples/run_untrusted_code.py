"""How do I run code that I do not trust, and learn how it ended?

What a program does wrong is a value here and no exception. These programs share a sandbox, one after another:
those that must not meet get one each, as in judge.py.

    examples/run_untrusted_code.py
"""

from __future__ import annotations

import bufferzone

PROGRAMS = {
    "answers": "print(6 * 7)",
    "fails": "import sys; sys.exit('wrong')",
    "waits for ever": "import time; time.sleep(1e6)",
    "never ends": "while True: pass",
    "wants all memory": "x = [bytearray(2**20) for _ in range(10_000)]",
    "writes without end": "while True: print('spam' * 1000)",
    "reads this host": "open('/etc/ssh/sshd_config')",
    "calls home": "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)",
}


def attempt(sb: bufferzone.Sandbox, code: str, timeout_s: float) -> bufferzone.Result:
    """Run it with Python, as an ordinary user and within limits."""
    return sb.run(
        ["python3", "-I", "-c", code],
        user="nobody",
        timeout_s=timeout_s,
        cpu_time_s=10,  # an emulated CPU on a busy machine needs some of them to start Python
        memory_mib=64,
        output_limit=1 << 20,
    )


def main() -> None:
    """Say how each of them ended."""
    with bufferzone.Sandbox(memory_mib=256, pids=64) as sb:
        for name, code in PROGRAMS.items():
            result = attempt(sb, code, timeout_s=3 if "sleep" in code else 60)
            said = result.stdout[:10].strip() or result.stderr.strip().rpartition("\n")[2]
            print(f"{name}: {result.verdict}, exit code {result.exit_code}, {said}")


if __name__ == "__main__":
    main()
