"""The format registry: how a site's weights lie in memory, exact to the byte.

Importing it registers every format and stays light: it imports nothing but numpy.
"""

from ternary_kernels.formats.base import FORMATS, Bytes, Format, get_format
from ternary_kernels.formats.float_blocks import Q6_K, Q8_0
from ternary_kernels.formats.floating import F16, F32
from ternary_kernels.formats.i2s import I2S, I2SArm
from ternary_kernels.formats.iq2_s import IQ2_S
from ternary_kernels.formats.lookup import TL1, TL2, Tiles, tl1_tiles, tl2_tiles
from ternary_kernels.formats.ternary_blocks import TQ1_0, TQ2_0

__all__ = [
    "F16",
    "F32",
    "FORMATS",
    "I2S",
    "IQ2_S",
    "Q6_K",
    "Q8_0",
    "TL1",
    "TL2",
    "TQ1_0",
    "TQ2_0",
    "Bytes",
    "Format",
    "I2SArm",
    "Tiles",
    "get_format",
    "tl1_tiles",
    "tl2_tiles",
]
