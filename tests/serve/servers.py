"""A real server process for tests, and what it must answer."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import openai

from tests.commands import ROOT

QUESTION = "From left to right: 14+23*3"
QUESTIONS = [f"From left to right: {a}+{b}*{c}" for a in (14, 5, 9, 33) for b in (23, 8, 4, 17) for c in (2, 3, 5, 7)]


class Server:
    """A running ``dps serve``."""

    def __init__(self, process, url):
        self.process, self.url = process, url

    def client(self, **options):
        return openai.OpenAI(**{"base_url": self.url, "api_key": "none", "max_retries": 0} | options)

    def end(self, timeout=60):
        """Send SIGTERM; return exit code and what was said."""
        self.process.send_signal(signal.SIGTERM)
        said = self.process.communicate(timeout=timeout)[1]
        return self.process.returncode, said


@contextmanager
def serving(*options, **environment):
    command = [sys.executable, "-m", "dps", "serve", "--model", "embedded", "--port", "0", *options]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths} | environment
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    try:
        said = ""
        while (found := re.search(r"at (http://\S+/v1)\n", said)) is None:
            line = process.stderr.readline()
            assert line, said
            said += line
        yield Server(process, found[1])
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def ask(client, question=QUESTION, **options):
    """Ask one question by the real client; with a seed, for the same answer each time."""
    options = {"repeat": 0} | options if "seed" in options else options
    own = {
        key: options.pop(key)
        for key in ("alpha", "k", "num_mh_steps", "policy", "style", "repeat", "responses")
        if key in options
    }
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(model="embedded", messages=messages, extra_body=own, **options)


def texts(choice):
    """What a choice's responses say, each with arm and index."""
    return [(r["arm"], r["index"], r["text"]) for r in choice.dps["responses"]]


def said(record):
    """The same of a record."""
    return [(t.arm, t.index, t.text) for t in record.trajectories]
