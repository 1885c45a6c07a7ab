"""How do I use sandboxes from asyncio?

`bufferzone.aio` has the same names; what blocks elsewhere is awaited. Cancelling a `run` kills the program.

    examples/with_asyncio.py
"""

from __future__ import annotations

import asyncio

from bufferzone import aio


async def cube(sb: aio.Sandbox, number: int) -> int:
    """The third power, computed in the sandbox."""
    result = await sb.run(["python3", "-I", "-c", "print(int(input()) ** 3)"], stdin=f"{number}\n")
    return int(result.stdout)


async def main() -> None:
    """Four programs at once; then one that takes too long."""
    async with aio.Sandbox(memory_mib=256) as sb:
        print("cubes:", *await asyncio.gather(*(cube(sb, number) for number in range(4))))
        try:
            async with asyncio.timeout(1):
                await sb.run(["sleep", "1000"])
        except TimeoutError:
            running = await sb.run(["sh", "-c", "cat /proc/[0-9]*/comm"])
            print("given up; still asleep:", "sleep" in running.stdout)


if __name__ == "__main__":
    asyncio.run(main())
