"""Errors of the kernel that are of no consequence, by number: any other is raised. Imports nothing."""

from __future__ import annotations


class ignoring:
    """A context that ends quietly for an OSError of one of these numbers."""

    __slots__ = ("_numbers",)

    def __init__(self, *numbers: int) -> None:
        self._numbers = numbers

    def __enter__(self) -> None:
        return None

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, OSError) and error.errno in self._numbers
