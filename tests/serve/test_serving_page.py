"""The blocks of docs/serving.md run as written, in order, against the server that the page starts."""

import os
import shlex
import subprocess
import sys

import pytest

from tests.commands import ROOT
from tests.test_documents import blocks

pytest.importorskip("fastapi", reason="dps serve needs FastAPI")
pytest.importorskip("openai", reason="the real client")
PROGRAMS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
ADDRESS = "http://127.0.0.1:8000/v1"


def test_the_blocks_of_the_page_run_against_its_server(tmp_path):
    from tests.serve.servers import serving

    run = [block for block in blocks(ROOT / "docs" / "serving.md", *PROGRAMS) if not block["why"]]
    command, *clients = run
    words = shlex.split(command["body"], comments=True)
    assert words[:2] == ["dps", "serve"]
    assert [next(name for name in ("curl", "OpenAI", "requests") if name in block["body"]) for block in clients] == [
        "curl",
        "OpenAI",
        "requests",
    ]
    with serving(*words[2:]) as server:
        said = []
        for block in clients:
            assert ADDRESS in block["body"]
            done = subprocess.run(
                [*PROGRAMS[block["kind"]], block["body"].replace(ADDRESS, server.url)],
                cwd=tmp_path,
                env=os.environ | {"NO_PROXY": "127.0.0.1"},
                timeout=120,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{block['body']}\n{done.stdout}{done.stderr}"
            said.append(done.stdout)
    curl, client, requests = said
    assert '"object":"chat.completion"' in curl
    assert "generated_tokens=" in client
    assert len(requests.splitlines()) == 2
