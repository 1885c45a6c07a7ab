"""The only code that host and guest share: codec, frames, and the messages of both protocols.

Bytes from the other side are parsed here and nowhere else, with a limit on every length.
Standard library only, and no import that a 15 ms command could not afford.
"""
