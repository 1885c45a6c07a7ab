"""Terminals: a real pty on the host, one in the guest, and sizes, keys and signals that pass between them."""

from __future__ import annotations

import subprocess

import pytest

from vm.podman import Terminal, read_until

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]

PROMPT = b"ready> "


@pytest.fixture(scope="module")
def box(podman, nothing_left):
    podman("run", "--detach", "--name", "box", podman.image, "sleep", "1000000")
    return "box"


def terminal(podman, *words: object, size: tuple[int, int] = (80, 24)) -> Terminal:
    return Terminal(podman.argv(*words), podman.environment(), size)


def ask(shell: Terminal, command: bytes) -> bytes:
    """What a command printed; the prompt shows before and after."""
    shell.type(command + b"\n")
    shell.until(command + b"\r\n")
    return shell.until(PROMPT)


def await_size(shell: Terminal, size: bytes) -> None:
    """Until the guest's terminal has it: the size travels beside the bytes."""
    for _ in range(100):
        shell.type(b"stty size\n")
        shell.until(b"\r\n")  # the shell draws its line anew, in the middle of a word, when the size changes
        if shell.until(PROMPT) == size + b"\r\n":
            return
    pytest.fail(f"the size never became {size!r}")


def test_a_shell_on_a_terminal_follows_its_size_and_ends_with_its_status(podman):
    words = ("run", "--rm", "--interactive", "--tty", "--env", f"PS1={PROMPT.decode()}", podman.image, "sh")
    with terminal(podman, *words, size=(91, 37)) as shell:
        shell.until(PROMPT)
        await_size(shell, b"37 91")
        assert ask(shell, b"tty") == b"/dev/pts/0\r\n"
        assert ask(shell, b"echo $TERM") == b"xterm\r\n"
        shell.resize(132, 43)
        await_size(shell, b"43 132")
        shell.type(b"exit 42\n")
        assert shell.wait() == 42


def test_a_change_of_size_is_a_signal_to_the_process_in_front(podman, box):
    script = "trap 'stty size' WINCH; echo set; while :; do sleep 1000000 & wait $!; done"
    with terminal(podman, "exec", "--tty", box, "sh", "-c", script) as shell:
        shell.until(b"set\r\n")
        shell.resize(100, 50)
        shell.until(b"50 100\r\n")


def test_interrupt_typed_at_the_terminal_ends_what_is_in_front(podman, box):
    with terminal(
        podman, "exec", "--interactive", "--tty", "--env", f"PS1={PROMPT.decode()}", box, "sh"
    ) as shell:
        shell.until(PROMPT)
        shell.type(b"sh -c 'echo begun; exec sleep 1000000'\n")
        shell.until(b"\r\nbegun\r\n")
        shell.type(b"\x03")
        shell.until(b"^C")
        shell.until(PROMPT)
        assert ask(shell, b"echo $((1+1))") == b"2\r\n"
        shell.type(b"exit 130\n")
        assert shell.wait() == 130


def test_end_of_file_typed_at_the_terminal_ends_the_input(podman, box):
    with terminal(podman, "exec", "--interactive", "--tty", box, "sh", "-c", "cat; echo over") as shell:
        shell.type(b"line\n")
        shell.until(b"line\r\nline\r\n")
        shell.type(b"\x04")
        shell.until(b"over\r\n")
        assert shell.wait() == 0


def test_an_exec_has_a_terminal_of_its_own_that_follows_its_size(podman, box):
    words = ("exec", "--interactive", "--tty", "--env", f"PS1={PROMPT.decode()}", box, "sh")
    with terminal(podman, *words, size=(70, 20)) as first, terminal(podman, *words, size=(60, 30)) as second:
        first.until(PROMPT)
        second.until(PROMPT)
        await_size(first, b"20 70")
        await_size(second, b"30 60")
        assert ask(first, b"tty") != ask(second, b"tty")
        second.resize(61, 31)
        await_size(second, b"31 61")
        await_size(first, b"20 70")
        for shell in (first, second):
            shell.type(b"exit 0\n")
            assert shell.wait() == 0


def test_a_terminal_belongs_to_the_user_of_the_exec(podman, box):
    with terminal(
        podman, "exec", "--tty", "--user", "app", box, "sh", "-c", "stat -c %u $(tty); exit 9"
    ) as shell:
        shell.until(b"1234\r\n")
        assert shell.wait() == 9


def test_many_lines_on_a_terminal_all_arrive(podman, box):
    with terminal(podman, "exec", "--tty", box, "seq", "20000") as shell:
        assert shell.until(b"\r\n20000\r\n").split(b"\r\n") == [b"%d" % n for n in range(1, 20000)]
        assert shell.wait() == 0


def test_detach_keys_leave_the_container_running_and_attach_comes_back(podman):
    """One key each: podman knows a sequence only when every key comes with a read of its own."""
    words = (
        "--interactive",
        "--tty",
        "--detach-keys",
        "ctrl-q",
        "--name",
        "kept",
        "--env",
        f"PS1={PROMPT.decode()}",
    )
    with terminal(podman, "run", *words, podman.image, "sh") as shell:
        shell.until(PROMPT)
        ask(shell, b"here=before")
        shell.type(b"\x11")
        assert shell.wait() == 0
    assert podman.inspect("kept")["State"]["Status"] == "running"
    with terminal(podman, "attach", "--detach-keys", "ctrl-x", "kept", size=(77, 33)) as shell:
        await_attached(shell)
        assert ask(shell, b"echo $here") == b"before\r\n"
        await_size(shell, b"33 77")
        shell.type(b"\x18")
        assert shell.wait() == 0
    with terminal(podman, "attach", "kept") as shell:
        await_attached(shell)
        shell.type(b"exit 4\n")
        assert shell.wait() == 0  # of podman attach itself
    assert podman("wait", "kept").text == "4"


def await_attached(shell: Terminal) -> None:
    """A line break brings a prompt, once the attach listens."""
    shell.type(b"\n")
    shell.until(PROMPT)


def test_logs_of_a_terminal_hold_what_was_shown(podman):
    podman("run", "--tty", "--name", "shown", podman.image, "echo", "on a terminal")
    assert podman("logs", "shown").out.strip() == b"on a terminal"


def test_a_detached_terminal_gets_the_console_and_stops_on_request(podman):
    script = "trap 'exit 6' TERM; echo begun; while :; do sleep 1000000 & wait $!; done"
    podman("run", "--detach", "--tty", "--name", "quiet", podman.image, "sh", "-c", script)
    with podman.start("logs", "--follow", "quiet", stdout=subprocess.PIPE) as logs:
        read_until(logs.stdout, b"begun")
        logs.kill()
    assert podman("exec", "quiet", "sh", "-c", "test -c /dev/console && ls -l /proc/1/fd/0").text.endswith(
        "/dev/pts/0"
    )
    podman("stop", "--time", "30", "quiet")
    assert podman("wait", "quiet").text == "6"
