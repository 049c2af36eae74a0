"""Graders for processes that read: light to import, with what goes wrong in one."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from dps.benchmarks.grading import Grader
from dps.benchmarks.mathematics import MathGrader
from dps.errors import InputError


class Unpicklable(Exception):
    """Cannot be sent to another process."""

    def __init__(self, first, second):
        super().__init__(lambda: first)


@dataclass(frozen=True)
class Telling(Grader):
    """The answer is the text; texts tell what happens when they are read, all of it is written down."""

    folder: str
    background = "processes"

    def _note(self, what, answer):
        with Path(self.folder, what).open("a") as file:
            file.write(f"{os.getpid()} {answer} {'torch' in sys.modules}\n")

    def extract(self, text, item):
        self._note("read", text)
        if text == "die" or (text == "die once" and not Path(self.folder, "died").exists()):
            self._note("died", text)
            os._exit(9)
        if text == "refuse":
            raise InputError("the grader cannot work here")
        if text == "fail":
            raise Unpicklable(1, 2)
        if text == "sleep":
            time.sleep(100)
        return text

    def grade(self, answer, item):
        self._note("graded", answer)
        return MathGrader().grade(answer, item)

    def key(self, answer, item):
        self._note("keyed", answer)
        return MathGrader().key(answer, item)
