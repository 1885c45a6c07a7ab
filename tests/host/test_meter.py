"""The meter's count of kernel functions, which takes a kernel that lets root trace it."""

from __future__ import annotations

import os
import threading

from bufferzone.bench import kernel_functions


def test_what_a_thread_reaches_in_the_kernel_is_told_by_name_and_nobody_elses():
    asked = threading.Event()
    told = threading.Event()

    def open_files() -> None:
        asked.wait()
        for _ in range(10):
            os.close(os.open("/", os.O_RDONLY))
        told.set()

    thread = threading.Thread(target=open_files)
    thread.start()
    assert thread.native_id is not None
    with kernel_functions.Tracer([thread.native_id]) as tracer:
        os.sched_yield()  # of this thread, which nobody asked about
        asked.set()
        told.wait()
    thread.join()
    assert {"do_sys_openat2"} <= tracer.names
    assert not any("sched_yield" in name for name in tracer.names)
    assert not os.path.exists(f"/sys/kernel/tracing/instances/bufferzone-{os.getpid()}")
