r"""One reader for everything that is mathematics, numbers included: extract -> normalize -> parse -> key -> compare.

``reading`` extracts the answer from a response, ``spelling`` (with ``words``, ``units``) brings it into one normal
form, ``forms`` and ``values`` parse that, ``evaluation`` gives expressions a fingerprint, and ``comparing`` has both
ends: whether an answer is the gold one, and the key that the same answers share.
"""

from dps.benchmarks.mathematics.comparing import equal
from dps.benchmarks.mathematics.grader import MathGrader, NumberGrader
from dps.benchmarks.mathematics.reading import extract_math, extract_number, strict_number
from dps.benchmarks.mathematics.spelling import LONGEST_ANSWER, normalize
from dps.benchmarks.mathematics.values import canonical_number, format_number, parse_number

__all__ = [
    "LONGEST_ANSWER",
    "MathGrader",
    "NumberGrader",
    "canonical_number",
    "equal",
    "extract_math",
    "extract_number",
    "format_number",
    "normalize",
    "parse_number",
    "strict_number",
]
