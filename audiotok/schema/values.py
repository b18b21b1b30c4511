"""Types of values that several sections of the configuration have.

The words after a type are what messages say is allowed; the meaning of a key and its default stand in `config/`.
Choices that are tables elsewhere are compared with these in `tests/test_schema.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

MOST = 2**31 - 1
Flag = Annotated[bool, Field(strict=True), "true or false"]
Text = Annotated[str, Field(strict=True, min_length=1), "a text"]
Label = Annotated[str | int | float | bool, "a text or a number"]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63), "a whole number, 0 or more, below 2^63"]
Whole = Annotated[int, Field(strict=True, ge=0, le=MOST), "a whole number, 0 or more"]
Count = Annotated[int, Field(strict=True, ge=1, le=MOST), "a whole number, 1 or more"]
Epochs = Annotated[int, Field(strict=True, ge=1, le=10**6), "a whole number, from 1 to 1000000"]
Pair = Annotated[int, Field(strict=True, ge=2, le=MOST), "a whole number, 2 or more"]
Draws = Annotated[int, Field(strict=True, ge=1, le=10**5), "a whole number, from 1 to 100000"]
Shuffled = Annotated[int, Field(strict=True, ge=2, le=10**5), "a whole number, from 2 to 100000"]
Width = Annotated[int, Field(strict=True, ge=1, le=2**20), "a whole number, from 1 to 1048576"]
Depth = Annotated[int, Field(strict=True, ge=0, le=1000), "a whole number, from 0 to 1000"]
Rate = Annotated[int, Field(strict=True, ge=1, le=10**6), "a sample rate in Hz, a whole number from 1 to 1000000"]
Real = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False), "a number, 0 or more"]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), "a number above 0"]
Lufs = Annotated[float, Field(strict=True, ge=-70, le=0), "a number of LUFS from -70 to 0"]
Factor = Annotated[float, Field(strict=True, gt=1, allow_inf_nan=False), "a number above 1"]
Share = Annotated[float, Field(strict=True, ge=0, le=1), "a number from 0 to 1"]
PositiveShare = Annotated[float, Field(strict=True, gt=0, le=1), "a number above 0, at most 1"]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1), "a number from 0 up to, not including, 1"]
Betas = Annotated[
    list[Decay], Field(strict=True, min_length=2, max_length=2), "two numbers, each from 0 up to, not including, 1"
]
Sigmas = (
    Annotated[list[Positive], Field(strict=True, min_length=1, max_length=1000), "a list of numbers above 0"]
    | Literal["median"]
)
Counts = Annotated[list[Count], Field(strict=True, min_length=1, max_length=100), "a list of whole numbers, 1 or more"]
TwoCounts = Annotated[
    list[Count], Field(strict=True, min_length=2, max_length=2), "a list of two whole numbers, 1 or more"
]
Wholes = Annotated[list[Whole], Field(strict=True, min_length=1, max_length=100), "a list of whole numbers, 0 or more"]
Arguments = Annotated[dict[str, Any], "names of arguments with their values"]
Level = Annotated[
    str,
    Field(strict=True, pattern=r"(?i)^(critical|fatal|error|warning|warn|info|debug|notset)$"),
    "one of: DEBUG, INFO, WARNING, ERROR",
]
Names = Annotated[list[Text], Field(strict=True), "a list of names"]

Stream = Literal["input", "residual", "code"]
Norm = Literal["none", "weight_norm", "spectral_norm", "time_group_norm"]
Activation = Literal[
    "ELU", "LeakyReLU", "ReLU", "SiLU", "GELU", "PReLU", "RReLU", "ReLU6", "CELU", "SELU", "Mish", "Tanh", "Sigmoid",
    "Hardtanh", "Hardswish", "Hardsigmoid", "LogSigmoid", "Softplus", "Softsign", "Softshrink", "Hardshrink",
    "Tanhshrink", "Identity",
]  # fmt: skip
Shuffle = Annotated[  # clips: of runs that were frozen before recordings were known
    Literal["shifts", "recordings", "frames", "clips"], "one of: shifts, recordings, frames"
]
Window = Literal["bartlett_window", "blackman_window", "hamming_window", "hann_window", "kaiser_window"]
Adversaries = Annotated[
    list[Literal["msstftd", "mpd", "msd"]], Field(strict=True), "a list of some of: msstftd, mpd, msd"
]
