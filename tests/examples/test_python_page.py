"""The blocks of docs/python.md run one after the other, in an empty folder."""

import re

import pytest

from tests.commands import ROOT


@pytest.mark.slow
def test_the_blocks_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    names = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL), 1):
        exec(compile(block, f"block {number} of docs/python.md", "exec"), names)
    assert (tmp_path / "tokens.png").read_bytes() != (tmp_path / "seconds.png").read_bytes()
    assert len(names["trajectories"]) == 16 * 8
    shown = capsys.readouterr().out
    assert "Controller(gbdt in runs/gbdt/checkpoints/best.ckpt: on [power 2, power 2, power 2, power 2]" in shown
    assert "k.start" in shown.splitlines()[-1]
