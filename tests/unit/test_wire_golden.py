"""wire/proto.py against Google's protobuf, and the field numbers against what containerd publishes."""

from __future__ import annotations

import random

import pytest

from bufferzone.wire import metrics, task, ttrpc
from bufferzone.wire.proto import Field, Message, boolean, double, sint, string_map, strings, uints
from unit.wire_peer import Peer, message_classes, random_message


class EveryKind(Message):
    """The kinds that no message of ours uses yet."""

    numbers: list[int] = uints(1)
    ratio: float = double(2)
    labels: dict[str, str] = string_map(3)
    far: list[str] = strings(536_870_911)


CLASSES = [*message_classes(), EveryKind]
PEER = Peer(CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__.split('.')[-1]}.{cls.__name__}")
def test_protobuf_writes_the_same_bytes_and_reads_ours(cls):
    source = random.Random(cls.__name__)
    for _ in range(40):
        message = random_message(cls, source)
        data = message.encode()
        assert data == PEER.encode(message)
        assert PEER.decode(cls, data) == message
        assert cls.decode(data) == message


def test_an_empty_message_has_no_bytes():
    assert [cls().encode() for cls in CLASSES] == [b""] * len(CLASSES)


def test_every_class_declares_its_fields_in_order_and_once():
    for cls in CLASSES:
        numbers = [field.number for field in cls._fields]
        assert numbers == sorted(set(numbers)), cls


# Names in the order of their numbers, from 1; `-` is a number that is taken but that we leave out.
# Source: containerd api/runtime/task/v2/shim.proto, api/events/task.proto, api/types/{mount,task/task}.proto,
# api/services/ttrpc/events/v1/events.proto, runtime/v2/runc/options/oci.proto; ttrpc request.proto;
# google/rpc/status.proto, google/protobuf/{any,timestamp}.proto; cgroups cgroup2/stats/metrics.proto.
PUBLISHED = {
    task: {
        "Mount": "type source target options",
        "CreateTaskRequest": "id bundle rootfs terminal stdin stdout stderr checkpoint parent_checkpoint"
        " options",
        "CreateTaskResponse": "pid",
        "StartRequest": "id exec_id",
        "StartResponse": "pid",
        "DeleteRequest": "id exec_id",
        "DeleteResponse": "pid exit_status exited_at",
        "StateRequest": "id exec_id",
        "StateResponse": "id bundle pid status stdin stdout stderr terminal exit_status exited_at exec_id",
        "ExecProcessRequest": "id exec_id terminal stdin stdout stderr spec",
        "ResizePtyRequest": "id exec_id width height",
        "KillRequest": "id exec_id signal all",
        "CloseIORequest": "id exec_id stdin",
        "PidsRequest": "id",
        "ProcessInfo": "pid info",
        "PidsResponse": "processes",
        "PauseRequest": "id",
        "ResumeRequest": "id",
        "CheckpointTaskRequest": "id path options",
        "UpdateTaskRequest": "id resources annotations",
        "WaitRequest": "id exec_id",
        "WaitResponse": "exit_status exited_at",
        "StatsRequest": "id",
        "StatsResponse": "stats",
        "ConnectRequest": "id",
        "ConnectResponse": "shim_pid task_pid version",
        "ShutdownRequest": "id now",
        "TaskIO": "stdin stdout stderr terminal",
        "TaskCreate": "container_id bundle rootfs io checkpoint pid",
        "TaskStart": "container_id pid",
        "TaskDelete": "container_id pid exit_status exited_at id",
        "TaskExit": "container_id id pid exit_status exited_at",
        "TaskOOM": "container_id",
        "TaskExecAdded": "container_id exec_id",
        "TaskExecStarted": "container_id exec_id pid",
        "TaskPaused": "container_id",
        "TaskResumed": "container_id",
        "Envelope": "timestamp namespace topic event",
        "ForwardRequest": "envelope",
        "RuncOptions": "no_pivot_root no_new_keyring shim_cgroup io_uid io_gid binary_name root -"
        " systemd_cgroup",
        "RuntimeOptions": "type_url config_path config_body",
        "Any_": "type_url value",
        "Timestamp": "seconds nanos",
        "Empty": "",
    },
    ttrpc: {
        "Request": "service method payload timeout_nano metadata",
        "KeyValue": "key value",
        "Response": "status payload",
        "Status": "code message details",
    },
    metrics: {
        "Metrics": "pids cpu - memory - io hugetlb memory_events",
        "PidsStat": "current limit",
        "CPUStat": "usage_usec user_usec system_usec nr_periods nr_throttled throttled_usec",
        "MemoryEvents": "low high max oom oom_kill",
        "IOStat": "usage",
        "IOEntry": "major minor rbytes wbytes rios wios",
        "HugeTlbStat": "current max pagesize",
        "MemoryStat": "anon file kernel_stack slab sock shmem file_mapped file_dirty file_writeback anon_thp"
        " inactive_anon active_anon inactive_file active_file unevictable slab_reclaimable slab_unreclaimable"
        " pgfault pgmajfault workingset_refault workingset_activate workingset_nodereclaim pgrefill pgscan"
        " pgsteal pgactivate pgdeactivate pglazyfree pglazyfreed thp_fault_alloc thp_collapse_alloc usage"
        " usage_limit swap_usage swap_limit max_usage swap_max_usage",
    },
}


@pytest.mark.parametrize("module", PUBLISHED, ids=lambda module: module.__name__.split(".")[-1])
def test_field_numbers_are_the_published_ones(module):
    for name, words in PUBLISHED[module].items():
        published = {word: number for number, word in enumerate(words.split(), 1) if word != "-"}
        ours = {field.name: field.number for field in getattr(module, name)._fields}
        assert ours == published, name


def test_every_method_of_the_task_service_is_there():
    names = "State Create Start Delete Pids Pause Resume Checkpoint Kill Exec ResizePty CloseIO Update Wait"
    assert set(task.METHODS) == {*names.split(), "Stats", "Connect", "Shutdown"}


def test_a_map_of_many_keys_is_read_by_both_sides():
    message = task.UpdateTaskRequest(annotations={f"key{n}": "v" * n for n in range(200)})
    assert PEER.decode(task.UpdateTaskRequest, message.encode()) == message
    assert task.UpdateTaskRequest.decode(PEER.encode(message)) == message


def test_a_field_knows_its_own_default():
    kinds = {"string": "", "bytes": b"", "bool": False, "uint": 0, "int": 0, "message": None, "map": {}}
    assert {kind: Field(1, kind).default() for kind in kinds} == kinds
    assert Field(1, "string", repeated=True).default() == []


def test_a_message_refuses_a_field_it_does_not_have():
    with pytest.raises(TypeError, match="StartRequest has no field 'exec'"):
        task.StartRequest(id="a", exec="b")


def test_messages_are_equal_by_type_and_value():
    class Other(Message):
        yes: bool = boolean(1)

    class Another(Message):
        yes: bool = boolean(1)
        number: int = sint(2)

    assert Other(yes=True) == Other(yes=True)
    assert Other(yes=True) != Other()
    assert Other() != Another()
    assert repr(Another(number=-3)) == "Another(yes=False, number=-3)"
