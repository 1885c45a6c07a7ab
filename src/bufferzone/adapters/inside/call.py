"""Calls one pickled function. Standard input: a line of JSON, then the pickle; see `adapters.executor`.

What it answers on standard output is no pickle: see `adapters.results`. What the function prints goes to
standard error.
"""

import base64
import json
import os
import pickle
import runpy
import sys
import traceback


def encode(value):
    """Plain values, told apart by what JSON cannot; TypeError for anything else."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (bytes, bytearray):
        return [kind.__name__, base64.b64encode(value).decode()]
    if kind is complex:
        return ["complex", [value.real, value.imag]]
    if kind in (list, tuple, set, frozenset):
        return [kind.__name__, [encode(each) for each in value]]
    if kind is dict:
        return ["dict", [[encode(key), encode(each)] for key, each in value.items()]]
    raise TypeError(
        f"a result cannot be a {kind.__module__}.{kind.__qualname__}: plain values alone are taken"
    )


def failure(error):
    """An exception: its class by name, its arguments where they are plain, and the traceback as text."""
    try:
        args = [encode(each) for each in error.args]
    except TypeError:
        args = [str(error)]
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return {"kind": type(error).__qualname__, "args": args, "traceback": "".join(lines)}


def answer():
    """Do it."""
    head = json.loads(sys.stdin.buffer.readline())
    sys.path[:0] = head["path"]
    if head["main"]:  # as multiprocessing does where it cannot fork
        main = type(sys)("__mp_main__")
        main.__dict__.update(runpy.run_path(head["main"], run_name="__mp_main__"))
        sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    function, args, options = pickle.loads(sys.stdin.buffer.read())
    return {"value": encode(function(*args, **options))}


def run():
    """Answer, whatever happens."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        said = answer()
    except BaseException as error:
        said = failure(error)
    json.dump(said, out)
    out.flush()
    os._exit(0)


if __name__ == "__main__":
    run()
