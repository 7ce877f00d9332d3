"""What a device is: the boards that a fleet may have, by the words of a device file."""

from enum import StrEnum


class Kind(StrEnum):
    """A board, or one of the two kinds of other machines; as fleet.yaml writes it."""

    RASPBERRY_PI_ZERO_2_W = "raspberry-pi-zero-2-w"
    RASPBERRY_PI_3B_PLUS = "raspberry-pi-3b-plus"
    RASPBERRY_PI_4 = "raspberry-pi-4"
    RASPBERRY_PI_5 = "raspberry-pi-5"
    OTHER_ARM64 = "other-arm64"
    OTHER_AMD64 = "other-amd64"

    @property
    def is_board(self) -> bool:
        """Whether it is one certain board, of which figures are published."""
        return self not in (Kind.OTHER_ARM64, Kind.OTHER_AMD64)
