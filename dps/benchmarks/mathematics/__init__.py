r"""One reader for everything that is mathematics, numbers included: found in a response, spelt, taken apart, compared.

``reading`` finds the answer in a response, ``spelling`` brings it into one normal form, ``values`` reads exactly what
is rational, ``forms`` takes apart what an answer consists of, ``library`` asks a worker process with the parser of
math-verify for the rest, ``comparing`` decides whether an answer is the gold one, ``convention`` and ``voting`` say
which answers are the same, and ``grader`` has the two graders made of it all.
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
