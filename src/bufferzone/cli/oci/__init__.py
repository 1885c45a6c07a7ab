"""The verbs of the OCI command line, one per file.

Each has FLAGS, USAGE, DESCRIPTION, WORDS (least and most, -1 for any), INTERSPERSED (flags may follow words)
and `run(options, words) -> exit status`.
"""

from __future__ import annotations

#: verb -> (module, what the help says)
VERBS = {
    "create": ("create", "create a container from a bundle, in a VM of its own"),
    "start": ("start", "run the process of a created container"),
    "run": ("run", "create and start a container"),
    "state": ("state", "print the state of a container as JSON"),
    "kill": ("kill", "send a signal to a container's process"),
    "delete": ("delete", "free everything a stopped container holds"),
    "exec": ("exec", "run another process in a running container"),
    "ps": ("ps", "list the processes of a container"),
    "list": ("list", "list the containers below the root"),
    "pause": ("pause", "suspend all processes of a container"),
    "resume": ("pause", "continue the processes of a paused container"),
    "update": ("update", "change resource limits of a container"),
    "events": ("events", "print resource usage of a container"),
    "spec": ("spec", "write a config.json to start from"),
    "features": ("features", "print what this runtime supports, as JSON"),
    "checkpoint": ("checkpoint", "save a running container with its whole VM"),
    "restore": ("restore", "go on from a checkpoint"),
}
