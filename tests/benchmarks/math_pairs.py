# ruff: noqa: E501
r"""Pairs of a gold answer and an answer with the verdict that a careful person gives: right, wrong, or ungradable.

The verdicts were written down before the grader saw them. The gold answer decides what is asked for: units, percent
signs, the base of a numeral and the name of a variable may be missing in an answer, but must not be others.
"""

R, W, U = "right", "wrong", "ungradable"

PAIRS = [
    # integers, decimals, thousands, signs
    ("42", "42", R), ("42", "42.0", R), ("42", "-42", W), ("42", "24", W), ("-7", "-7", R), ("-7", "- 7", R), ("-7", "7", W),
    ("10,080", "10080", R), ("10{,}080", "10,080", R), ("10080", "10.080", W), (".5", "0.5", R), ("0.5", ".50", R),
    ("1000000", r"10^6", R), ("1000000", r"1 \times 10^6", R), ("0.000672", r"6.72 \times 10^{-4}", R),
    ("0.000672", r"6.72 \times 10^{-5}", W), ("1{,}000{,}000", "1,000,000", R), ("12", "12.5", W), ("0", "-0", R),
    # fractions, mixed numbers
    (r"\frac{1}{2}", "0.5", R), (r"\frac12", "1/2", R), (r"\dfrac{3}{4}", r"\tfrac{3}{4}", R), (r"\frac{1}{3}", "0.333", W),
    (r"\frac{1}{3}", r"\frac{2}{6}", R), (r"\frac{14}{3}", r"4\frac{2}{3}", R), (r"4\frac{2}{3}", r"\frac{14}{3}", R),
    (r"4\frac{2}{3}", r"\frac{8}{3}", W), (r"-\frac{35}{9}", r"\frac{-35}{9}", R), (r"-\frac{35}{9}", r"\frac{35}{9}", W),
    (r"\frac{3}{56}", r"\frac{56}{3}", W), ("2.5", r"2\frac{1}{2}", R), (r"\frac{x}{2}", r"\frac{1}{2}x", R),
    # radicals and constants
    (r"\sqrt{51}", r"\sqrt{51}", R), (r"3\sqrt{13}", r"\sqrt{117}", R), (r"3\sqrt{13}", r"13\sqrt{3}", W),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", R), (r"\sqrt2", "1.414", W), (r"\sqrt[3]{8}", "2", R), (r"2\sqrt{2}", r"\sqrt 8", R),
    (r"\pi", "3.14", W), (r"\frac{\pi}{2}", r"\pi/2", R), (r"-\frac{\pi}{6}", r"\frac{\pi}{6}", W), (r"2\pi", r"\pi \cdot 2", R),
    (r"e^2", r"e \cdot e", R), (r"\ln 4", r"2\ln 2", R), (r"\log_2 8", "3", R),
    # polynomials and expressions
    ("p - q", "-q + p", R), ("p - q", "q - p", W), ("x^2+2x+1", "(x+1)^2", R), ("(x+1)^2", "x^2+1", W),
    ("x^5 - x^4 + x^3 - x^2 + x - 1", "(x-1)(x^4+x^2+1)", R), ("2k+2", "2(k+1)", R), ("(a+5)(b+2)", "ab+2a+5b+10", R),
    ("(a+5)(b+2)", "(a+2)(b+5)", W), (r"\cot x", r"\frac{\cos x}{\sin x}", R), (r"\sin^2 x", r"1-\cos^2 x", R),
    ("x^3+3x-6", "x^3+3x+6", W), (r"\frac{1}{x-1}", r"\frac{-1}{1-x}", R), ("x^{2}", "x^2", R), ("2^{10}", "1024", R),
    # points, vectors, intervals, sets
    ("(3,4)", "(3, 4)", R), ("(3,4)", "(4,3)", W), (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)", R),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi)", W), ("(6,31,-1)", "(6,31,1)", W), ("(6,31,-1)", r"\left(6, 31, -1\right)", R),
    ("(1,2)", "1, 2", W), ("[2,5)", "[2, 5)", R), ("[2,5)", "(2,5)", W), ("[2,5)", "[2,5]", W), ("[2,5)", r"2 \le x < 5", R),
    (r"(2,\infty)", "x > 2", R), (r"(2,\infty)", r"x \ge 2", W), (r"(-\infty,3]", r"x \leq 3", R),
    (r"(-\infty,-1)\cup(1,\infty)", r"(-\infty,-1) \cup (1,\infty)", R), (r"(-\infty,-1)\cup(1,\infty)", r"(1,\infty)", W),
    (r"(-\infty,-1)\cup(1,\infty)", r"(1,\infty)\cup(-\infty,-1)", R), ("1,-2", "-2, 1", R), ("1,-2", "1, 2", W), ("1,-2", "-2", W),
    ("3, 5, 7", "7, 5, 3", R), ("3, 5, 7", "3, 5", W), (r"\{1,2\}", "1, 2", R), (r"\{1,2\}", r"\{2, 1\}", R),
    (r"\{1,2\}", r"\{1,2,3\}", W), (r"\emptyset", r"\emptyset", R),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}", R), (r"1 \pm \sqrt{19}", r"1 + \sqrt{19}", W),
    # matrices
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}", R),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", W),
    (r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}", r"\begin{pmatrix} -\frac13 \\ \frac23 \\ \frac53 \end{pmatrix}", R),
    (r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}", r"\begin{pmatrix} 1 & 0 \\ 0 & -1 \end{pmatrix}", W),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}", W),
    # complex numbers
    ("6 - 5i", "-5i + 6", R), ("6 - 5i", "6 + 5i", W), ("1+274i", "274i+1", R), ("i", "-i", W), ("3i", "i 3", R),
    # units, money, percent, degrees
    (r"5 \text{ cm}", "5", R), (r"5 \text{ cm}", r"5\text{ cm}", R), (r"5 \text{ cm}", r"5 \text{ m}", W), ("5", r"5 \text{ cm}", R),
    ("5", "5 cm", R), ("5", r"6 \text{ cm}", W), (r"12 \text{ square inches}", "12", R), (r"\$18.90", "18.90", R), ("18.90", r"\$18.90", R),
    ("18.90", "18.9 dollars", R), (r"\$18.90", "18.09", W), (r"12\%", "12", R), ("12", r"12\%", R), (r"12\%", r"12\%", R),
    (r"12\%", "0.12", W), ("0.5", r"50\%", R), (r"12\%", r"21\%", W), (r"90^\circ", "90", R), ("90", r"90^{\circ}", R),
    (r"90^\circ", r"9^\circ", W), ("45", "45 degrees", R), (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}", R),
    # words and letters
    (r"\text{Evelyn}", "Evelyn", R), (r"\text{Evelyn}", "evelyn", R), (r"\text{Evelyn}", "Briana", W), (r"\text{even}", r"\text{odd}", W),
    (r"\text{(C)}", "C", R), (r"\text{(C)}", "(C)", R), (r"\text{(C)}", "(D)", W), (r"\text{June 20}", "June 20", R),
    (r"\text{June 20}", "June 21", W), (r"\text{no solution}", r"\text{No solution}", R), (r"\text{yes}", "no", W),
    # bases
    ("4210_{5}", "4210_5", R), ("4210_5", "4210", R), ("4210_5", "4210_6", W), ("1101_2", "1011_2", W), ("2516_8", r"2516_{\text{eight}}", R),
    # equations
    ("5", "x = 5", R), ("x=5", "5", R), ("x=5", "x=6", W), ("y = 2x+3", "y=2x + 3", R), ("y = 2x+3", "2x+3", R), ("y=2x+3", "y=3x+2", W),
    ("5x - 7y + 11z + 4 = 0", "5x-7y+11z=-4", R), ("5x - 7y + 11z + 4 = 0", "5x-7y+11z=4", W),
    # infinity and nonsense
    (r"\infty", r"\infty", R), (r"\infty", r"-\infty", W), ("12", r"\infty", W), ("12", "twelve monkeys", W), ("12", r"\frac{}{}", W),
    ("12", "?", W), ("12", r"\boxed", W), (r"\frac{1}{2}", "1,2", W),
    # what no machine can finish
    ("12", "9^{9^{9^{9}}}", U),
]  # fmt: skip
