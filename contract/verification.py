"""Words of a plan: the comparisons with the whole model that were made when it was built."""

from contract.decoder import QuantisedVerification
from contract.frozen import FrozenModel


class CodecVerification(FrozenModel):
    """What lossy codecs cost, measured at build time: with them against without, stage by stage.

    ``accuracy_drop_points`` is the loss of accuracy on the ``labelled`` images; without labels, the
    points by which ``top1_agreement`` is below 100.
    """

    images: int
    labelled: int
    top1_agreement: float
    accuracy_drop_points: float
    max_abs_difference: float


class Verification(FrozenModel):
    """The comparison at build time: the sharded model against the whole one, codecs left out.

    ``quantised``: where weights are, the whole one is so as well, and this says how far both are
    from the model's own code.
    """

    reference: str
    images: int
    tolerance: float
    max_abs_difference: float
    max_abs_reference: float
    spread_between_images: float
    top1_agreement: float
    conclusive: bool
    codecs: CodecVerification | None = None
    quantised: QuantisedVerification | None = None
