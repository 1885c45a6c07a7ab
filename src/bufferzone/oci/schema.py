"""The shape of config.json, runtime-spec 1.0 to 1.3, as data for `check`. What a value means is in `rules`.

Source: opencontainers/runtime-spec specs-go/config.go and schema/*.json.
"""

from __future__ import annotations

from bufferzone.oci.check import Map

_STRINGS = ["string"]
_ID_MAPS = [{"containerID": "u32", "hostID": "u32", "size": "u32"}]
_THROTTLE = [{"major": "i64", "minor": "i64", "rate": "u64"}]
_WEIGHT = [{"major": "i64", "minor": "i64", "weight": "u16", "leafWeight": "u16"}]
_CAPABILITIES = ("bounding", "effective", "inheritable", "permitted", "ambient")
_HOOKS = [{"path": "string", "args": _STRINGS, "env": _STRINGS, "timeout": "i64"}]
HOOK_NAMES = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

PROCESS = {
    "terminal": "bool",
    "consoleSize": {"height": "u64", "width": "u64"},
    "user": {"uid": "id", "gid": "id", "umask": "u32", "additionalGids": ["id"], "username": "string"},
    "args": _STRINGS,
    "env": _STRINGS,
    "cwd": "string",
    "capabilities": dict.fromkeys(_CAPABILITIES, _STRINGS),
    "rlimits": [{"type": "string", "hard": "u64", "soft": "u64"}],
    "noNewPrivileges": "bool",
    "apparmorProfile": "string",
    "oomScoreAdj": "i32",
    "selinuxLabel": "string",
    "scheduler": {
        "policy": "string",
        "nice": "i32",
        "priority": "i32",
        "flags": _STRINGS,
        "runtime": "u64",
        "deadline": "u64",
        "period": "u64",
    },
    "ioPriority": {"class": "string", "priority": "i32"},
    "execCPUAffinity": {"initial": "string", "final": "string"},
}

RESOURCES = {
    "devices": [{"allow": "bool", "type": "string", "major": "i64", "minor": "i64", "access": "string"}],
    "memory": {
        "limit": "i64",
        "reservation": "i64",
        "swap": "i64",
        "kernel": "i64",
        "kernelTCP": "i64",
        "swappiness": "u64",
        "disableOOMKiller": "bool",
        "useHierarchy": "bool",
        "checkBeforeUpdate": "bool",
    },
    "cpu": {
        "shares": "u64",
        "quota": "i64",
        "burst": "u64",
        "period": "u64",
        "realtimeRuntime": "i64",
        "realtimePeriod": "u64",
        "cpus": "string",
        "mems": "string",
        "idle": "i64",
    },
    "pids": {"limit": "i64"},
    "blockIO": {
        "weight": "u16",
        "leafWeight": "u16",
        "weightDevice": _WEIGHT,
        "throttleReadBpsDevice": _THROTTLE,
        "throttleWriteBpsDevice": _THROTTLE,
        "throttleReadIOPSDevice": _THROTTLE,
        "throttleWriteIOPSDevice": _THROTTLE,
    },
    "hugepageLimits": [{"pageSize": "string", "limit": "u64"}],
    "network": {"classID": "u32", "priorities": [{"name": "string", "priority": "u32"}]},
    "rdma": Map({"hcaHandles": "u32", "hcaObjects": "u32"}),
    "unified": Map("string"),
}

SECCOMP = {
    "defaultAction": "string",
    "defaultErrnoRet": "u32",
    "architectures": _STRINGS,
    "flags": _STRINGS,
    "listenerPath": "string",
    "listenerMetadata": "string",
    "syscalls": [
        {
            "names": _STRINGS,
            "action": "string",
            "errnoRet": "u32",
            "args": [{"index": "u32", "value": "u64", "valueTwo": "u64", "op": "string"}],
        }
    ],
}

LINUX = {
    "uidMappings": _ID_MAPS,
    "gidMappings": _ID_MAPS,
    "sysctl": Map("string"),
    "resources": RESOURCES,
    "cgroupsPath": "string",
    "namespaces": [{"type": "string", "path": "string"}],
    "devices": [
        {
            "path": "string",
            "type": "string",
            "major": "i64",
            "minor": "i64",
            "fileMode": "u32",
            "uid": "u32",
            "gid": "u32",
        }
    ],
    "netDevices": Map({"name": "string"}),
    "seccomp": SECCOMP,
    "rootfsPropagation": "string",
    "maskedPaths": _STRINGS,
    "readonlyPaths": _STRINGS,
    "mountLabel": "string",
    "intelRdt": {"closID": "string", "l3CacheSchema": "string", "memBwSchema": "string"},
    "memoryPolicy": {"mode": "string", "nodes": "string", "flags": _STRINGS},
    "personality": {"domain": "string", "flags": _STRINGS},
    "timeOffsets": Map({"secs": "i64", "nanosecs": "u32"}),
}

VM = {
    "hypervisor": {"path": "string", "parameters": _STRINGS},
    "kernel": {"path": "string", "parameters": _STRINGS, "initrd": "string"},
    "image": {"path": "string", "format": "string"},
    "hwConfig": {"vcpus": "u32", "memory": "u64"},
}

SPEC = {
    "ociVersion": "string",
    "process": PROCESS,
    "root": {"path": "string", "readonly": "bool"},
    "hostname": "string",
    "domainname": "string",
    "mounts": [
        {
            "destination": "string",
            "type": "string",
            "source": "string",
            "options": _STRINGS,
            "uidMappings": _ID_MAPS,
            "gidMappings": _ID_MAPS,
        }
    ],
    "hooks": dict.fromkeys(HOOK_NAMES, _HOOKS),
    "annotations": Map("string"),
    "linux": LINUX,
    "vm": VM,
}
