"""What a model is asked around a question: one template for instruct models, one for base models.

An instruct model's template is the user's message, which the tokenizer's chat template wraps; a base model's is the
whole prompt. Numbers are asked for in the published work's words: asked to end in a line ``#### <number>``, a small
instruct model may answer with such a line alone, and power sampling favours what is short and likely.
"""

NUMBER_CHAT = (
    "Can you solve the following math problem? {question} "
    r"Please reason step by step, and put your final answer within \boxed{}."
)
"""The chain-of-thought template of Karan & Du 2025 (arXiv 2510.14901)."""

MATH_PLAIN = NUMBER_CHAT
"""The published work gives base models the same words as they are."""
MATH_STOP = ("Can you solve the following math problem?",)

NUMBER_PLAIN = """Each problem is solved step by step, and the last line gives the answer after four hashes.

Problem: A box holds 12 pencils. How many pencils are left of 3 boxes when 5 pencils are taken out?
Solution: 3 boxes hold 3 * 12 = 36 pencils. When 5 are taken out, 36 - 5 = 31 pencils are left.
#### 31

Problem: {question}
Solution:"""
NUMBER_STOP = ("\n\nProblem:",)

TEXT_CHAT = """{question}

Reason step by step. Then write the final answer as the last line, in the form
#### <answer>
with nothing but the answer after the four hashes."""

TEXT_PLAIN = """Each question is answered in a few sentences, and the last line gives the answer after four hashes.

Question: Which is heavier, a litre of water or a litre of oil?
Answer: Oil floats on water, so it is lighter for the same volume.
#### water

Question: {question}
Answer:"""
TEXT_STOP = ("\n\nQuestion:",)

CHOICE = (
    "Answer the following multiple choice question. The last line of your response should be of the following format: "
    r"'\boxed{$LETTER}' (without quotes) where LETTER is one of ABCD (ex. '\boxed{A}'). "
    "Think step by step before answering.\n\n{question}"
)
"""After the published template: of instruct and base models alike."""
CHOICE_STOP = ("Answer the following multiple choice question.",)

CODE_CHAT = """Complete the following Python function. Answer with the whole function in one code block.

```python
{question}
```"""
CODE_PLAIN = "{question}"
"""The published work continues the prompt as it is."""
CODE_STOP = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\n```")
"""What begins a line that is no longer in the function."""

OPEN = "{question}"
