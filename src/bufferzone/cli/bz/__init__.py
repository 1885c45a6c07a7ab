"""The verbs of `bz`, the command for people, one per file; the other modules are what several of them use."""

from __future__ import annotations

#: verb -> what the help says; the module has the verb's name
VERBS = {
    "run": "run a command in a sandbox of its own",
    "exec": "run one more command in a container that runs",
    "shell": "open a shell in a container that runs",
    "cp": "copy files into or out of a container that runs",
    "logs": "print what a detached container wrote",
    "stop": "ask containers to end, and kill those that do not",
    "kill": "send a signal to containers",
    "wait": "wait for the end of containers and print their exit statuses",
    "pause": "suspend containers",
    "unpause": "continue containers",
    "inspect": "describe containers in JSON",
    "top": "show the processes of a container",
    "stats": "show what containers use",
    "port": "show the ports of this host that lead into a container",
    "events": "tell what becomes of containers, as it happens",
    "pull": "fetch an image, or see whether it is still the newest",
    "images": "list the images that are here",
    "image": "ls, rm, prune, df or inspect images",
    "rm": "remove containers, and what they wrote",
    "log": "show what the flight recorder has, or verify it",
    "doctor": "boot sandboxes and say whether all works here, and what to do about what does not",
    "setup": "build the guest image if it is missing or its inputs changed",
    "template": "list, make or remove the templates that VMs start from",
    "bench": "measure times and sizes beside those of other runtimes",
    "pool": "show, start or stop the VMs that wait for containers",
    "node": "make this runtime known to containerd, Docker or CRI-O, check it, take it back",
    "metrics": "tell in Prometheus' text format what runs on this machine",
    "fork": "make running copies of a running container",
    "audit": "read what running sandboxes hold, and what weakens their walls",
    "ps": "show the containers of this machine and the VM each runs in",
}
