"""Every error that Shardline raises on purpose, and the exit code that it ends a command with.

    ShardlineError                     1  the root: catch this for "anything of ours"
    ├── SettingsError                  2  an option, a setting or a file name that cannot be used
    │   ├── SourceError                2  an input of `infer` that holds nothing usable
    │   └── PromptError                2  a prompt that a language model's plan cannot read
    │       └── PromptTooLongError     2  one that the plan has no room for
    ├── BrokerError                    3  the broker or the link to it
    │   ├── BrokerUnreachableError     3  nobody answers, or the connection was refused
    │   │   └── BrokerUntrustedError   3  it answers, with a certificate that we do not trust
    │   ├── BrokerStartError           3  the embedded Mosquitto did not come up
    │   ├── NotAuthorisedError         3  wrong password or certificate, or the ACL forbids it
    │   ├── NameTakenError             3  another process uses the same name at the broker
    │   └── MessageTooLargeError       3  larger than the broker's maximum packet size
    ├── PlanError                      4  a plan that cannot be read, or does not fit
    │   └── PlanMismatchError          4  a shard or a message of another plan
    ├── ShardError                     4  a shard that cannot be loaded
    │   ├── ShardMissingError          4  a file of the shard is not there
    │   ├── ShardAbsentError           4  a device that has no copy of its shard at all
    │   └── ShardHashMismatchError     4  a file of the shard is not what the plan says
    ├── EngineError                    5  the engine cannot load or run a shard
    ├── ModelError                     6  a model that cannot be imported
    │   ├── WeightsError               6  a weights file that cannot be used
    │   └── PartitionError             6  no legal way to cut the model as asked
    ├── VerificationError              7  the sharded model does not equal the whole one
    ├── DeliveryError                  8  a run ended with batches that have no result
    ├── WireFormatError                9  a message that cannot be accepted
    │   └── TensorMismatchError        9  well-formed, but not the tensors that the plan names
    ├── EnvironmentMissingError       10  something this machine lacks (a package, a program, room)
    │   └── DeviceUnfitError          10  something is wrong with a device of the fleet
    └── JournalError                  11  a journal that cannot be read, written or gone on with

Messages say where, what was expected, what came, and what to do about it.
"""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Exit status of the ``shardline`` command."""

    OK = 0
    FAILURE = 1
    SETTINGS = 2
    BROKER = 3
    PLAN_OR_SHARD = 4
    ENGINE = 5
    MODEL = 6
    VERIFICATION = 7
    DELIVERY = 8
    WIRE_FORMAT = 9
    ENVIRONMENT = 10
    JOURNAL = 11
    INTERRUPTED = 130


class ShardlineError(Exception):
    """Root of the tree. ``exit_code`` is what the command ends with."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILURE


class SettingsError(ShardlineError):
    """An option, setting or path that cannot be used."""

    exit_code = ExitCode.SETTINGS


class SourceError(SettingsError):
    """A source of images or tensors that holds nothing usable."""


class PromptError(SettingsError):
    """A prompt that a language model's plan cannot read."""


class PromptTooLongError(PromptError):
    """A prompt that leaves no room for what is wanted."""


class BrokerError(ShardlineError):
    """The broker, or the link to it, failed."""

    exit_code = ExitCode.BROKER


class BrokerUnreachableError(BrokerError):
    """Nobody answers at the broker's address, or the connection was refused."""


class BrokerUntrustedError(BrokerUnreachableError):
    """It answers by TLS, but its certificate is not one that we trust under this name and clock."""


class BrokerStartError(BrokerError):
    """The embedded Mosquitto did not come up; the message carries the end of its log."""


class NotAuthorisedError(BrokerError):
    """The broker refused the user, or the ACL refused the topic."""


class NameTakenError(BrokerError):
    """Another process uses our name at the broker, and was there before us."""


class MessageTooLargeError(BrokerError):
    """A message exceeds the broker's maximum packet size; it was not sent."""

    def __init__(self, topic: str, size_bytes: int, limit_bytes: int) -> None:
        self.topic, self.size_bytes, self.limit_bytes = topic, size_bytes, limit_bytes
        super().__init__(
            f"message for {topic}: {size_bytes:,} bytes, the broker accepts {limit_bytes:,}; "
            "use a smaller batch, or raise max_packet_size in mosquitto.conf"
        )


class PlanError(ShardlineError):
    """A plan that cannot be read or does not fit what it is used with."""

    exit_code = ExitCode.PLAN_OR_SHARD


class PlanMismatchError(PlanError):
    """A shard or a message belongs to another plan."""

    def __init__(self, where: str, expected: str, actual: str, remedy: str) -> None:
        self.expected, self.actual = expected, actual
        super().__init__(f"{where}: expected plan {expected}, got plan {actual}; {remedy}")


class ShardError(ShardlineError):
    """A shard that cannot be loaded."""

    exit_code = ExitCode.PLAN_OR_SHARD


class ShardMissingError(ShardError):
    """A file of the shard does not exist."""

    def __init__(self, path: object) -> None:
        super().__init__(
            f"{path}: no such file; copy the whole stage folder from the machine that planned it, "
            "or build it again with `shardline plan`"
        )


class ShardAbsentError(ShardError):
    """A device has no copy of its shard: nobody has handed it out yet."""


class ShardHashMismatchError(ShardError):
    """A file of the shard has other bytes than the plan says."""

    def __init__(self, path: object, expected: str, actual: str) -> None:
        self.expected, self.actual = expected, actual
        super().__init__(
            f"{path}: expected sha256 {expected[:16]}…, got {actual[:16]}…; the file is corrupt or "
            "of another build: copy it again, or build the plan again with `shardline plan`"
        )


class EngineError(ShardlineError):
    """The engine cannot load or run a shard."""

    exit_code = ExitCode.ENGINE


class ModelError(ShardlineError):
    """A model that cannot be imported."""

    exit_code = ExitCode.MODEL


class WeightsError(ModelError):
    """A weights file that cannot be read or does not fit the model."""


class PartitionError(ModelError):
    """There is no legal way to cut the model as asked."""


class VerificationError(ShardlineError):
    """The sharded model does not equal the whole one within the tolerance."""

    exit_code = ExitCode.VERIFICATION


class DeliveryError(ShardlineError):
    """A run ended with batches that have no result."""

    exit_code = ExitCode.DELIVERY


class WireFormatError(ShardlineError):
    """A message that cannot be accepted: malformed, truncated, oversized or altered."""

    exit_code = ExitCode.WIRE_FORMAT


class TensorMismatchError(WireFormatError):
    """A well-formed message whose tensors are not those that the plan names."""


class EnvironmentMissingError(ShardlineError):
    """Something this machine lacks; the message says how to get it."""

    exit_code = ExitCode.ENVIRONMENT


class DeviceUnfitError(EnvironmentMissingError):
    """Something is wrong with a device of the fleet; the findings were printed before."""


class JournalError(ShardlineError):
    """A journal that cannot be read, written, or gone on with; nothing of it was acknowledged."""

    exit_code = ExitCode.JOURNAL
