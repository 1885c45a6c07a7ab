"""Settings that an engine's own configuration has for one of its runtimes, so that a node can have several.

    containerd   [plugins.….runtimes.NAME.options]   ConfigPath = "/etc/bufferzone/small.toml", or from 1.7 on
                                                     the settings themselves: vcpus = 2
    Docker       "runtimes": {"NAME": {"runtimeType": …, "options": {"ConfigPath": …}}}

Both tell a shim's `start` on standard input, and once more with Create. Settings are read after the host's
files, and win. A root's word: pods and images cannot say it.
Source: containerd api/types/runtimeoptions/v1/api.proto; cri/config/config.go `GenerateRuntimeOptions`.
"""

from __future__ import annotations

from bufferzone.errors import CallerError
from bufferzone.wire import task
from bufferzone.wire.proto import Any_, DecodeError

#: what people have for every runtime of a node; a pod's cgroups say the same by the form of their paths
_OF_OTHERS = frozenset({"SystemdCgroup"})


class EngineOptions:
    """The settings of one sandbox that its engine has; empty where it has none."""

    def __init__(self, where: str = "", text: str = "") -> None:
        self.where, self.text = where, text

    @classmethod
    def of(cls, given: Any_ | None) -> EngineOptions:
        """Those in the options of a runtime. Raises `CallerError` for what is not text."""
        if given is None or not given.type_url.endswith("runtimeoptions.v1.Options"):
            return cls()
        try:
            options = task.RuntimeOptions.decode(given.value)
            if options.config_path:
                return cls(options.config_path)
            return cls("the engine's options", options.config_body.decode()) if options.config_body else cls()
        except (DecodeError, UnicodeDecodeError) as error:
            raise CallerError(f"the engine's options are malformed: {error}", code="bad-options") from error

    def apply(self) -> None:
        """Have this process read them with the host's settings; what is wrong is told by whoever does."""
        if self.where:
            from bufferzone import config  # no start waits for it

            config.read_also(self.where, self.text or None, _OF_OTHERS)

    def was_read(self) -> bool:
        """Whether this process has them, or they are none."""
        from bufferzone import config

        return not self.where or (self.where, self.text or None) in config.read_beside().items()


def told_to_start(stdin: bytes) -> EngineOptions:
    """Those on the standard input of `start`, which may hold anything else."""
    try:
        return EngineOptions.of(Any_.decode(stdin))
    except (DecodeError, CallerError):
        return EngineOptions()
