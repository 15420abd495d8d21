"""The version of the measuring policy: to be raised when older timings no longer compare with new ones."""

MEASURING_POLICY = 1
# Version 1: cold weights; points interleaved in random order; samples of at least 1 ms; sampling until the median's
# 95 % interval is within 2 %.
