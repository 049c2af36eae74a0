# ruff: noqa: E501
"""Programs in responses: every form in which a model writes one, and hostile lengths. The programs here are our own, so
they are run directly."""

import ast
import math
import time
import tracemalloc

import pytest

from dps.benchmarks import BenchmarkConfig, load_benchmark
from dps.benchmarks.program_text import find_program, find_strict_program, leading_code
from tests.benchmarks.data import slice_path

PROMPT = '''from typing import List
import math


def half(x: float) -> float:
    return x / 2


def area(r: float) -> float:
    """Area of a circle.

    >>> area(0)
    0.0
    """
'''
BODY = "    return math.pi * r ** 2\n"


def works(program, name="area"):
    """Whether the program's function computes the area; a statement that shows its use must not run."""
    if program is None:
        return None

    def used(*arguments):
        raise AssertionError("use was run")

    names = {"__name__": "candidate", "input": used, "print": used, "exit": used}
    exec(compile(program, "program.py", "exec"), names)
    return math.isclose(names[name](3), 9 * math.pi)


CODE = "def area(r):\n    return math.pi * r * r\n"
STRICT = {
    "continuation": BODY,
    "continuation and prose": BODY + "\nThis is the area.\n",
    "continuation and one word": BODY + "\nExplanation\n",
    "continuation and a label": BODY + "\nNote: this\n",
    "continuation and use": BODY + "\nprint(area(3))\nassert area(1) == 3\nx = input()\n",
    "continuation and a constant": "    return PI * r ** 2\n\nPI = math.pi\n",
    "continuation and a helper": "    return math.pi * square(r)\n\ndef square(x):\n    return x * x\n",
    "continuation and the next function": BODY + "\n\ndef area(r):\n    return 0\n",
    "continuation and a fence": BODY + "```\n\nIt works: `area(1)`.",
    "continuation with a list at column 0": "    table = [\n1,\n2,\n]\n    return math.pi * r ** table[1]\n",
    "continuation with a string at column 0": '    s = """\ntwo\nlines # no """\n    return math.pi * r ** s.count("o") * 1\n',
    "continuation with a call at column 0": "    return math.prod(\n(math.pi,\nr,\n# a comment\nr)\n)\n",
    "continuation with a dictionary at column 0": "    d = {\n'a': math.pi,\n'b': {\n'c': 1}}\n    return d['a'] * r * r\n",
    "continuation with a backslash": "    return math.pi * \\\nr ** 2\n",
    "continuation with a comment at column 0": "    x = math.pi\n# now the rest\n    return x * r ** 2\n",
    "continuation with Windows line ends": "    x = math.pi\r\n\r\n    return x * r ** 2\r\n",
    "continuation that lost a space": "   x = math.pi\n    return x * r ** 2\n",
    "continuation that lost its spaces": "x = math.pi\n    return x * r ** 2\n",
    "continuation of one line that lost a space": BODY[1:],
    "continuation after an empty line": "\n" + BODY,
    "continuation with the head again": CODE,
    "continuation with a decorated head": "import functools\n@functools.lru_cache(None)\n" + CODE,
    "continuation with a fence in a string": '    s = """\n    ```\n    code\n    ```\n    """\n    return math.pi * r * r\n',
    "continuation with the whole prompt again": PROMPT + BODY,
    "continuation of an open fence": CODE + "```\n\nThat is the function.\n```python\nprint(area(3))\n```",
    "continuation with a constant from everything": "    return math.pi * r ** TWO\nfrom math import *\nTWO = int(e)\n",
    "continuation between tags": f"[PYTHON]\n{CODE}[/PYTHON]\n",
    "main block": BODY + "\n\nif __name__ == '__main__':\n    import doctest\n    doctest.testmod()\n",
    "fence": f"Here:\n```python\n{CODE}```\nIt works.",
    "fence at once": f"```python\n{CODE}```",
    "fence python3": f"```python3\n{CODE}```",
    "fence Python": f"```Python\n{CODE}```",
    "fence py": f"```py\n{CODE}```",
    "fence without a language": f"```\n{CODE}```",
    "fence with a title": f'```python title="area.py"\n{CODE}```',
    "fence with a space": f"``` python \n{CODE}```",
    "fence of tildes": f"~~~python\n{CODE}~~~",
    "fence of four": f"````python\n{CODE}````",
    "fence that is not closed": f"```python\n{CODE}",
    "fence that is not closed, and prose": f"```python\n{CODE}\nThat's all, folks (I hope.\n",
    "fence that is closed twice": f"```python\n{CODE}```\n```\n",
    "fence with Windows line ends": f"Here:\n```python\n{CODE}```\n".replace("\n", "\r\n"),
    "fence in a list": "1. Do so:\n\n   ```python\n   def area(r):\n       return math.pi * r * r\n   ```\n2. Done.",
    "fence in a list, by four": "- Do so:\n    ```python\n    def area(r):\n        return math.pi * r * r\n    ```\n",
    "fence as a list's entry": "1. ```python\n   def area(r):\n       return math.pi * r * r\n   ```\n",
    "fence of a console": "```pycon\n>>> import math\n>>> def area(r):\n...     return math.pi * r * r\n...\n>>> area(0)\n0.0\n```",
    "fence with a prompt's head": f"```python\n{PROMPT}{BODY}```",
    "prose in the fence": f"```python\nThis is the function:\n{CODE}```",
    "install in the fence": f"```\npip install numpy\n\n{CODE}```",
    "imports in a block": f"First\n```python\nfrom math import pi\n```\nthen\n```python\n{CODE.replace('math.', '')}```",
    "helper in a block": f"```python\ndef sq(x):\n    return x * x\n```\n```python\n{CODE.replace('r * r', 'sq(r)')}```",
    "helper in a later block": f"```python\n{CODE.replace('r * r', 'sq(r)')}```\n```python\ndef sq(x):\n    return x * x\n```",
    "class in a block": "```py\nclass A:\n    p = math.pi\n```\n```py\ndef area(r):\n    return A.p * r * r\n```",
    "constant in a block": "```\nPI = math.pi\n```\n```\ndef area(r):\n    return PI * r * r\n```",
    "later blocks override": f"```python\ndef area(r):\n    return 0\n```\nNo:\n```python\n{CODE}```",
    "helper by the first version": (
        "```python\ndef sq(x):\n    return x * x\n\ndef area(r):\n    return sq(r)\n```\nNo:\n"
        "```python\ndef area(r):\n    return math.pi * sq(r)\n```"
    ),
    "a later head without body": f"```python\n{CODE}```\nThe head was\n```python\ndef area(r):\n    ...\n```",
    "use in a block": f"```python\n{CODE}```\nUse:\n```python\nresult = area(5)\nprint(result)\n```\n```\n78.5\n```",
    "a part of it in a block": f"```python\nn = len(values)\nreturn n\n```\nAll:\n```python\n{CODE}```\n```python\nx += r\n```",
    "a shell in a block": f"```bash\npip install numpy\n```\n```python\n{CODE}```\n```bash\npython area.py\n```",
    "a text in a block": f"```text\nSome words of text.\n```\n```python\n{CODE}```\n```json\n{{\"a\": 1}}\n```",
    "block within a docstring": '```python\ndef area(r):\n    """Area.\n\n        ```\n        area(0)\n        ```\n    """\n    return math.pi * r * r\n```',
    "second fence without closing": f"```python\nfrom math import pi\n```python\n{CODE.replace('math.', '')}```",
    "from the future": f"```python\nfrom __future__ import annotations\n{CODE}```",
    "lambda": "```python\narea = lambda r: math.pi * r * r\n```",
    "lambda with a type": "```python\nfrom typing import Callable\narea: Callable = lambda r: math.pi * r * r\n```",
    "another name": "```python\ndef circle(r):\n    return math.pi * r * r\n\narea = circle\n```",
    "partial": "```python\nimport functools\ndef p(a, r):\n    return a * r * r\narea = functools.partial(p, math.pi)\n```",
    "decorated afterwards": f"```python\nimport functools\n{CODE}area = functools.lru_cache(None)(area)\n```",
    "within if": "```python\nif True:\n    def area(r):\n        return math.pi * r * r\nelse:\n    area = None\n```",
    "within try": "```python\ntry:\n    import numpy_not_here as m\nexcept ImportError:\n    import math as m\n    def area(r):\n        return m.pi * r * r\n```",
    "constant after the function": "```python\ndef area(r):\n    return PI * r * r\n\nPI = math.pi\n```",
    "constant by if after the function": "```python\ndef area(r):\n    return PI * r * r\n\nif math.pi > 3:\n    PI = math.pi\nelse:\n    PI = 3\n```",
    "table filled after the function": "```python\nT = {}\ndef area(r):\n    return T['pi'] * r * r\nT.update(pi=math.pi)\n```",
    "table filled by a loop": "```python\nT = []\ndef area(r):\n    return T[0] * r * r\nfor x in (math.pi, 3):\n    T.append(x)\n```",
    "table filled by a function": "```python\nT = []\ndef area(r):\n    return T[0] * r * r\ndef fill():\n    T.append(math.pi)\nfill()\n```",
    "registered by a decorator": "```python\nR = {}\ndef reg(f):\n    R[f.__name__] = f\n    return f\ndef area(r):\n    return R['sq'](r)\n@reg\ndef sq(r):\n    return math.pi * r * r\n```",
    "registered by a call": "```python\nR = []\ndef area(r):\n    return R[0](r)\ndef sq(r):\n    return math.pi * r * r\nR.append(sq)\n```",
    "needed although it shows use": "```python\ndef area(r):\n    return math.pi * r * r if r in K else K[0]\nK = [3] if area else []\nK += [v for v in map(area, [3]) if v]\n```",
    "use of all kinds": (
        f"```python\nimport sys, unittest\nsys.setrecursionlimit(5000)\n{CODE}\ndef main():\n    print(area(float(input())))\n\n"
        "def test():\n    assert area(1) == 3\n\ndef check(candidate):\n    assert candidate(1) == 3\n\n"
        "class T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(area(1), 3)\n\n"
        "test()\ncheck(area)\nmain()\nunittest.main()\nT().test()\narea(1) == 2\narea\nresult = area('a')\n"
        "for r in (1, 'b'):\n    print(area(r))\nassert area(1) == 3\nassert False, 'no'\n"
        "try:\n    area('a')\nexcept ValueError as e:\n    print(e)\nlist(map(area, 'ab'))\n"
        "while True:\n    r = input()\nfor line in sys.stdin:\n    print(line)\nfor a, b in [(1, 2)]:\n    assert a == b\nx = int(sys.stdin.readline())\nwith open('x') as f:\n    print(f)\nif True:\n    print(area('c'))\nexit()\nsys.exit(1)\n```"
    ),
    "main block in a fence": f"```python\n{CODE}\nif __name__ == \"__main__\":\n    r = float(input())\n    print(area(r))\n```",
    "semicolons": "```python\nx = 1; K = math.pi\ndef area(r): return K * r * r; pass\n```",
    "indented in the fence": "```python\n    from math import pi\n    def area(r):\n        return pi * r * r\n```",
    "a last block that was cut off": f"```python\n{CODE}```\nFaster:\n```python\ndef area(r):\n    return math.pow(",
"math fence": "Solution:\n\n```python\nimport math\n\ndef area(r: float) -> float:\n    return math.pi * r ** 2\n\n# Test cases\nprint(area(1))  # 3.14\nprint(area(0))  # 0\n```\n\nExample usage:\n\n```python\n>>> area(1)\n3.14\n```",
    "global counter": "```python\nCOUNT = 0\ndef area(r):\n    global COUNT\n    COUNT += 1\n    return math.pi * r * r\nCOUNT = 0\n```",
    "class callable": "```python\nclass Area:\n    def __call__(self, r):\n        return math.pi * r * r\narea = Area()\n```",
    "method": "```python\nclass Circle:\n    @staticmethod\n    def area(r):\n        return math.pi * r * r\narea = Circle.area\n```",
    "reduce": "```python\nfrom functools import reduce\narea = lambda r: reduce(lambda a, b: a * b, [math.pi, r, r])\nprint(area(3))\n```",
    "with": "```python\nimport contextlib\nwith contextlib.suppress(Exception):\n    def area(r):\n        return math.pi * r * r\n    area('x')\n```",
    "for": "```python\nfor p in (3, math.pi):\n    def area(r):\n        return p * r * r\n```",
    "decor": "```python\nfrom functools import wraps\ndef positive(f):\n    @wraps(f)\n    def g(r):\n        assert r >= 0\n        return f(r)\n    return g\n@positive\ndef area(r):\n    return math.pi * r * r\n```",
    "memo": "```python\nmemo = {}\ndef area(r):\n    return memo[r]\nfor i in range(10):\n    memo[i] = math.pi * i * i\n```",
    "lru": "```python\nimport functools\ndef _area(r):\n    return math.pi * r * r\narea = functools.lru_cache(maxsize=None)(_area)\nassert area(1) > 3\n```",
    "doc": "```python\ndef area(r):\n    '''\n    >>> area(1)\n    ```\n    '''\n    return math.pi * r * r\n```\n",
    "trail": BODY+"\n    # done\n\n\n# Example:\n# area(3)\n",
    "selfcheck": BODY+"\n\ndef check(candidate):\n    assert candidate(0) == 1\n\ncheck(area)\n",
    "metadata": BODY+"\n\nMETADATA = {\n    'author': 'x',\n}\n\n\ndef check(candidate):\n    assert False\n\ncheck(area)\n",
    "two tilde":  "~~~~ python\n"+CODE+"~~~~\n```\nnothing here\n```",
    "quoted":  "> ```python\n> def area(r):\n>     return math.pi * r * r\n> ```",
    "lang on next line": "```\npython\n"+CODE+"```",
    "ws": "```python   \n\n\n"+CODE+"   \n   ```   \n",
    "tabs": "```python\ndef area(r):\n\treturn math.pi * r * r\n```",
    "cr": ("```python\n"+CODE+"```").replace("\n","\r"),
    "nbsp": "```python\ndef area(r):\n\u00a0\u00a0\u00a0\u00a0return math.pi * r * r\n```",
    "input default": "```python\ndef area(r):\n    return math.pi * r * r\nn = int(input('n: '))\nfor i in range(n):\n    print(area(i))\n```",
    "typed": "```python\nfrom typing import Optional\nOpt = Optional[float]\ndef area(r: Opt) -> Opt:\n    return math.pi * r * r\n```",
    "late type": "```python\ndef area(r):\n    return CONST * r * r\n```\nwhere\n```python\nCONST = math.pi  # the constant\n```",
    "second solution incomplete": f"```python\n{CODE}```\nOr:\n```python\ndef area(r):\n    # TODO\n    pass\n```",
    "form feed and a byte order mark": f"\ufeff```python\n{CODE}\x0c\n```",
}  # fmt: skip


@pytest.mark.parametrize("name", STRICT)
def test_every_strict_form_is_read(name):
    text = STRICT[name]
    assert works(find_strict_program(text, PROMPT, "area")), name
    assert find_program(text, PROMPT, "area") == find_strict_program(text, PROMPT, "area")


FLEXIBLE = {
    "running text": f"Sure, the function is\n\n{CODE}\nI hope that helps.",
    "running text with imports": "Sure:\n\nfrom math import pi\nK = pi\n\n\ndef area(r):\n    return K * r * r\n\nThat is all.",
    "running text, indented": "Sure:\n\n    def area(r):\n        return math.pi * r * r\n\nThat is all.",
    "running text, lambda": "Sure:\n\narea = lambda r: math.pi * r * r\n\nThat is all.",
    "running text, decorated": f"Sure:\n\nimport functools\n\n@functools.cache\n{CODE}\nI hope (that helps.",
    "running text, constant after it": "Sure:\n\ndef area(r):\n    return PI * r * r\nPI = math.pi\n\nThat's all.",
    "body in a fence": f"```python\n{BODY}```",
    "body in a fence, of two lines": "The body:\n```python\n    x = r * r\n    return math.pi * x\n```",
    "body in a fence, not indented": "```python\nx = r * r\nif x:\n    return math.pi * x\nreturn 0.0\n```",
    "body in a fence, indented by two": "```\n  x = r * r\n  if x:\n    return math.pi * x\n  return 0.0\n```",
    "body in a fence in a list": "- so:\n  ```python\n      return math.pi * r * r\n  ```",
    "body in a fence with a string": '```python\ns = """\ntwo\n  lines"""\nreturn math.pi * r ** (len(s) - 10) * (s[0] == "\\n")\n```',
    "between HTML tags": "<pre><code>\n" + CODE + "</code></pre>",
    "body in a fence beside code in a line": "It is `return math.pi * r ** 2`.\n\n```\nreturn math.pi * r ** 2\n```",
    "body, not indented": "x = r * r\nreturn math.pi * x\n\nThis is how it's done.",
}


@pytest.mark.parametrize("name", FLEXIBLE)
def test_every_flexible_form_is_read(name):
    text = FLEXIBLE[name]
    assert find_strict_program(text, PROMPT, "area") is None
    assert works(find_program(text, PROMPT, "area")), name


NOTHING = [
    "", "I cannot do that.", "Yes", "Yes\nNo\n", "    pass\n", "    ...\n", '    """Only a docstring."""\n', "    pass pass\n",
    "```python\nprint(1)\n```", "```python\ndef area(r):\n    ...\n```", "```python\ndef other(r):\n    return r\n```",
    "```python\nresult = area(3)\n```", "```python\narea = 3\n```", "```python\narea = area(3)\n```", "```\n3.14\n```",
    "```python\ndef area(r):\n    return (r\n```", "    return (r +", "    return '\ud800'\n", "```python\n```", "```", "~~~\n~~~",
    "def area(r):", "area(3) = 28.3", "The function area(r) computes it.", "from x import area",
    "```python\nfrom solution import area\nprint(area(3))\n```", "    return " + "1 + " * 10_000 + "1\n",
    "    return '" + "a" * 30_000 + "'\n",
]  # fmt: skip


@pytest.mark.parametrize("text", NOTHING)
def test_what_is_no_program_is_no_answer(text):
    assert find_program(text, PROMPT, "area") is None


def test_a_function_of_coroutines_is_a_definition():
    program = find_program("```python\nasync def area(r):\n    return math.pi * r * r\n```", PROMPT, "area")
    assert isinstance(ast.parse(program).body[-1], ast.AsyncFunctionDef)


def test_prompts_of_other_forms():
    body = "    return math.pi * r * r\n"
    assert works(find_program(body, 'import math\r\ndef area(r):\r\n    """Doc."""\r\n', "area"))
    assert works(find_program(body, 'import math\ndef area(r):\n    """Doc."""', "area"))
    assert works(find_program(body, "import math\ndef area(r):\n", "area"))
    assert works(find_program(body[2:], "import math\ndef area(r):\n  'Doc.'\n", "area"))
    assert works(find_program("\treturn math.pi * r * r\n", "import math\ndef area(r):\n\t'Doc.'\n", "area"))
    assert works(find_program("x = r\nreturn math.pi * x * r\n", "import math\ndef area(r):\n\t'Doc.'\n", "area"))
    assert works(find_program("import math\n" + CODE, "", "area"))
    assert works(find_program(f"```\n{CODE}```", "import math\nasync def area(r):\n", "area"))


def test_leading_code_ends_where_python_does():
    code = "import a\n@b\ndef f(x):\n    if x:\n        return '''\nx'''\n    else:\n        return 1\n"
    for prose in (
        "That's all.",
        "See (the note",
        "for each of them",
        '"""open',
        "  dedented badly",
        "$ x",
        "1. One",
        "} x",
    ):
        assert leading_code(code + prose + "\nmore\n").strip() == code.strip(), prose


def solution_forms(prompt, body, name):
    """A right solution in each form in which models write them."""
    code, indented = prompt + body, "".join("   " + line for line in (prompt + body).splitlines(keepends=True))
    head = "\n".join(
        code.split("\n")[code.split("\n").index(next(s for s in code.split("\n") if f"def {name}" in s)) :]
    )
    imports = code[: code.index(f"def {name}")]
    return {
        "continuation": body,
        "continuation and prose": body + "\nThis function does what was asked.\n",
        "a space lost": body[1:] if body.startswith(" ") else body,
        "windows": body.replace("\n", "\r\n"),
        "then another": body + f"\n\ndef {name}(*arguments):\n    return None\n",
        "then a check": body + f"\n\nif __name__ == '__main__':\n    print({name}())\n",
        "fence": f"Here:\n\n```python\n{code}\n```\nIt works.",
        "fence of tildes": f"~~~\n{code}\n~~~",
        "not closed": f"```python\n{code}",
        "function alone": f"```python\n{head}\n```",
        "use after it": f"```python\n{code}\nprint({name}())\nassert {name}() is input()\n```",
        "in a list": f"1. So:\n\n   ```python\n{indented}\n   ```\n",
        "blocks": f"```python\n{imports}\n```\nand\n```py\n{head}\n```\n```python\n{name}(1)\n```\n```\n3\n```",
        "running text": f"Sure, here it is:\n\n{code}\n\nI hope that's fine.",
        "body in a fence": f"```python\n{body}\n```",
    }


def test_every_canonical_solution_is_read_in_every_form():
    benchmark = load_benchmark(BenchmarkConfig(name="humaneval", path=str(slice_path("humaneval_first100.jsonl"))))
    assert len(benchmark.items) == 100
    for number, item in enumerate(benchmark.items):
        prompt, name = item.metadata["prompt"], item.metadata["entry_point"]
        body = item.gold[len(prompt) :]
        expected = function_in(item.gold, name)
        forms = solution_forms(prompt, body, name)
        for form, text in forms.items():
            program = find_program(text, prompt, name)
            assert program is not None, (item.question_id, form)
            assert function_in(program, name) == expected, (item.question_id, form)
        form = list(forms)[number % len(forms)]
        assert benchmark.grader.grade(benchmark.grader.extract(forms[form], item), item) is True, (
            item.question_id,
            form,
        )


def function_in(program, name):
    function = [n for n in ast.parse(program).body if isinstance(n, ast.FunctionDef) and n.name == name][-1]
    return ast.dump(ast.parse("\n".join(ast.unparse(part) for part in function.body[1:])))


PIECES = [
    "```\n", "```python\n", "~~~\n", "`", "~", "```", "`` ", "def area(\n", "def area(r):\n", "def area(r): return 1\n",
    "@area\n", "import a\n", "(", "[", "[{(", ")", "'", '"""', '"""\n', "\\\n", "\n", " ", "\t", "    x = 1\n", "x;", "#", "f'{",
    "if x:\n", "else:\n", "lambda: ", "area = ", "area = lambda: ", "not ", "-", "a.", "a(", "1+", "1.", "- ```\n", "1. ```\n",
    "```\nx = 1\n```\n", "```python\ndef area(r):\n    return 1\n```\n", ">>> area(1)\n", "    def area(r):\n", "\r\n", "\ufeff", "> ", "> ```\n", "\u00a0", "\0",
    "print(area(1))\n", "Words of English. ", "```\n>>> x\n", "area = area = ", "class A:\n", " if 1 else ", "{**", "*a,", "assert area()\n",
]  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("start", ["", "```python\n", "    return 1\n", CODE])
def test_a_million_characters_are_read_in_time_and_memory(piece, start):
    text = start + piece * (1_000_000 // len(piece))
    started = time.process_time()
    find_program(text, PROMPT, "area")
    assert time.process_time() - started < 3


@pytest.mark.parametrize("piece", ["```\nx = 1\n```\n", "```\n", "import a\n", "-", "[", "area = lambda: ", "\n"])
def test_a_million_characters_take_little_memory(piece):
    text = piece * (1_000_000 // len(piece))
    tracemalloc.start()
    find_program(text, PROMPT, "area")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
