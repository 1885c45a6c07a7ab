"""linux.resources as cgroup v2 files: pure, no kernel."""

from __future__ import annotations

from typing import Any

import pytest

from bufferzone.container.resources import merge, settings, touched
from bufferzone.errors import SpecError


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, []),
        ({"memory": None, "cpu": {}, "pids": {}}, []),
        ({"memory": {"limit": 1000}}, [("memory.max", "1000")]),
        ({"memory": {"limit": -1}}, [("memory.max", "max"), ("memory.swap.max", "max")]),
        ({"memory": {"limit": 1000, "swap": 1500}}, [("memory.max", "1000"), ("memory.swap.max", "500")]),
        ({"memory": {"limit": 1000, "swap": 1000}}, [("memory.max", "1000"), ("memory.swap.max", "0")]),
        ({"memory": {"limit": 1000, "swap": -1}}, [("memory.max", "1000"), ("memory.swap.max", "max")]),
        ({"memory": {"reservation": 5}}, [("memory.low", "5")]),
        ({"cpu": {"shares": 2}}, [("cpu.weight", "1")]),
        ({"cpu": {"shares": 1024}}, [("cpu.weight", "39")]),
        ({"cpu": {"shares": 262144}}, [("cpu.weight", "10000")]),
        ({"cpu": {"quota": 50000, "period": 200000}}, [("cpu.max", "50000 200000")]),
        ({"cpu": {"quota": 50000}}, [("cpu.max", "50000 100000")]),
        ({"cpu": {"quota": -1, "period": 200000}}, [("cpu.max", "max 200000")]),
        ({"cpu": {"cpus": "0-1", "mems": "0"}}, [("cpuset.cpus", "0-1"), ("cpuset.mems", "0")]),
        ({"cpu": {"burst": 7, "idle": 1}}, [("cpu.idle", "1"), ("cpu.max.burst", "7")]),
        ({"pids": {"limit": 10}}, [("pids.max", "10")]),
        ({"pids": {"limit": 0}}, [("pids.max", "max")]),
        ({"pids": {"limit": -1}}, [("pids.max", "max")]),
        ({"blockIO": {"weight": 10}}, [("io.bfq.weight|io.weight", "10|1")]),
        ({"blockIO": {"weight": 1000}}, [("io.bfq.weight|io.weight", "1000|10000")]),
        (
            {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 100}]}},
            [("io.max", "8:0 rbps=100")],
        ),
        (
            {"blockIO": {"throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}]}},
            [("io.max", "8:16 wiops=max")],
        ),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 4096}]}, [("hugetlb.2MB.max", "4096")]),
        ({"rdma": {"mlx5_1": {"hcaHandles": 3}}}, [("rdma.max", "mlx5_1 hca_handle=3")]),
        ({"unified": {"memory.high": "1000"}}, [("memory.high", "1000")]),
        ({"memory": {"swappiness": 60, "kernel": 5, "disableOOMKiller": False}}, []),
    ],
)
def test_resources_become_files_of_the_unified_hierarchy(
    resources: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert settings(resources) == expected


@pytest.mark.parametrize(
    ("resources", "where"),
    [
        ({"memory": {"swap": 5}}, "without memory limit"),
        ({"memory": {"limit": 10, "swap": 5}}, "should be >= memory limit"),
        ({"cpu": {"realtimeRuntime": 5}}, "real-time"),
        ({"unified": {"../memory.max": "5"}}, "not a file name"),
    ],
)
def test_a_contradiction_is_an_error_of_the_spec(resources: dict[str, Any], where: str) -> None:
    with pytest.raises(SpecError, match=where):
        settings(resources)


def test_an_update_changes_what_it_names_and_keeps_the_rest() -> None:
    old = {"memory": {"limit": 10, "swap": 20}, "pids": {"limit": 5}}
    assert merge(old, {"memory": {"limit": 15, "swap": None}, "cpu": {"shares": 2}, "pids": None}) == {
        "memory": {"limit": 15, "swap": 20},
        "pids": {"limit": 5},
        "cpu": {"shares": 2},
    }
    assert old == {"memory": {"limit": 10, "swap": 20}, "pids": {"limit": 5}}


def test_a_memory_limit_alone_leaves_swap_alone_and_a_quota_keeps_its_period() -> None:
    old = {"memory": {"limit": 1000, "swap": 1500}, "cpu": {"quota": 5, "period": 20}}
    assert settings(touched(old, {"memory": {"limit": 2000}})) == [("memory.max", "2000")]
    assert settings(touched(old, {"cpu": {"quota": 7}})) == [("cpu.max", "7 20")]
    both = {"memory": {"swap": 2000}}
    assert settings(touched(old, both)) == [("memory.max", "1000"), ("memory.swap.max", "1000")]
