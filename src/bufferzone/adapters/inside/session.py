"""An interpreter that keeps what it was told: a line of JSON with code in, a line of JSON with what was
printed out; see `adapters.interpreter`. The value of a last expression is printed as at a prompt.
"""

import ast
import json
import os
import sys
import traceback

MOST = 1 << 20


def execute(code, names):
    """Run it as at a prompt; whether it ended well."""
    try:
        tree = ast.parse(code, "<code>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<code>", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<code>", "eval"), names)
            if value is not None:
                print(repr(value))
        return True
    except BaseException as error:
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        sys.stderr.write("".join(line for line in lines if "in execute" not in line))
        return False


def run():
    """Answer until there is no more to answer."""
    asked, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    output = os.memfd_create("output")
    for fd in (1, 2):  # children write there too
        os.dup2(output, fd)
    names = {"__name__": "__main__"}
    for line in asked:
        good = execute(json.loads(line), names)
        sys.stdout.flush()
        sys.stderr.flush()
        size = os.fstat(output).st_size
        text = os.pread(output, MOST, 0).decode("utf-8", "replace")
        os.ftruncate(output, 0)
        os.lseek(output, 0, os.SEEK_SET)
        json.dump({"ok": good, "output": text, "more": max(0, size - MOST)}, answers)
        answers.write("\n")
        answers.flush()


if __name__ == "__main__":
    run()
