"""Prompts that several benchmarks share.

Numbers are asked for in the published work's words: asked to end in a line ``#### <number>``, a small instruct model
may answer with such a line alone, and power sampling favours what is short and likely.
"""

from dps.benchmarks.benchmark import Prompts

NUMBER_CHAT = (
    "Can you solve the following math problem? {question} "
    r"Please reason step by step, and put your final answer within \boxed{}."
)
"""The chain-of-thought template of Karan & Du 2025 (arXiv 2510.14901)."""

NUMBER = Prompts(
    NUMBER_CHAT,
    """Each problem is solved step by step, and the last line gives the answer after four hashes.

Problem: A box holds 12 pencils. How many pencils are left of 3 boxes when 5 pencils are taken out?
Solution: 3 boxes hold 3 * 12 = 36 pencils. When 5 are taken out, 36 - 5 = 31 pencils are left.
#### 31

Problem: {question}
Solution:""",
    ("\n\nProblem:",),
)
TEXT = Prompts(
    """{question}

Reason step by step. Then write the final answer as the last line, in the form
#### <answer>
with nothing but the answer after the four hashes.""",
    """Each question is answered in a few sentences, and the last line gives the answer after four hashes.

Question: Which is heavier, a litre of water or a litre of oil?
Answer: Oil floats on water, so it is lighter for the same volume.
#### water

Question: {question}
Answer:""",
    ("\n\nQuestion:",),
)
_CHOICE = (
    "Answer the following multiple choice question. The last line of your response should be of the following format: "
    r"'\boxed{$LETTER}' (without quotes) where LETTER is the letter of a choice (ex. '\boxed{A}'). "
    "Think step by step before answering.\n\n{question}"
)
CHOICE = Prompts(_CHOICE, _CHOICE, ("Answer the following multiple choice question.",))
"""GPQA's words for any number of choices."""
