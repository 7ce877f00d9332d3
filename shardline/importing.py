"""From options to an imported model: the same for `plan`, `demo` and `infer --whole`."""

from typing import TYPE_CHECKING, Literal, cast

from contract.errors import EnvironmentMissingError, SettingsError
from shardline.options import parse_floats, parse_model_args, parse_size

if TYPE_CHECKING:
    from planner.importers import ImportOptions

_PREPROCESS = ("auto", "image", "none")


def import_options(
    weights: str,
    seed: int,
    num_classes: int | None,
    input_size: str | None,
    model_arg: list[str] | None,
    mean: str | None,
    std: str | None,
    preprocess: str,
) -> "ImportOptions":
    """The planner's import options from the command's texts.

    Raises:
        SettingsError: one of the texts is not of the expected form.
        EnvironmentMissingError: the planner's packages are not installed here.
    """
    try:
        import onnx  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise EnvironmentMissingError(
            f"{error.name} is not installed: planning needs it, a stage does not; "
            "run `make setup`, or pip install 'shardline[planner]'"
        ) from error
    from planner.importers import ImportOptions

    if preprocess not in _PREPROCESS:
        raise SettingsError(f"--preprocess {preprocess!r}: expected one of {_PREPROCESS}")
    return ImportOptions(
        weights=weights,
        seed=seed,
        num_classes=num_classes,
        input_size=parse_size(input_size),
        mean=parse_floats("--mean", mean),
        std=parse_floats("--std", std),
        model_args=parse_model_args(model_arg),
        preprocess=cast(Literal["auto", "image", "none"], preprocess),
    )
