"""Habits of the command line: short names, what was probably meant, one screen of help, completion, no long silence."""

import contextlib
import io
import json
import os
import pty
import select
import shlex
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from dps import cli
from dps.__main__ import _sentence
from dps.arguments import did_you_mean, full_names
from dps.cli import run
from dps.commands.helps import SHOWN
from dps.commands.options import PARSER, ParserMade
from dps.commands.sampling import _votes, _why
from dps.errors import InputError
from dps.model_config import ModelConfig
from tests.commands import CASES, ROOT, SMALL, dps
from tests.test_cli import resolved

OPTIONS = (
    "--output", "--seed", "--plan", "--json", "--model", "--model.name", "--model.dtype", "--k", "--k.start",
    "--k.maximum", "--benchmark", "--benchmark.name", "--benchmark.limit", "--sampler", "--sampler.alpha", "--help-all",
    "--sampler.proposal_temperature", "--sampler.max_new_tokens", "--controllers", "--policies",
)  # fmt: skip


def test_our_warnings_are_sentences_and_those_of_libraries_name_their_place():
    assert _sentence("Rows are few.", UserWarning, str(ROOT / "dps" / "api.py"), 3) == "Warning: Rows are few.\n"
    assert "other.py:3: UserWarning: Odd." in _sentence("Odd.", UserWarning, str(ROOT / "other.py"), 3)


@pytest.mark.parametrize(("words", "expected"), CASES["short"])
def test_options_have_short_names(words, expected):
    assert full_names(words.split(), OPTIONS, {"--json": "true", "--plan": "words"}) == expected.split()
    assert full_names(expected.split(), OPTIONS, {"--json": "true", "--plan": "words"}) == expected.split()


@pytest.mark.parametrize(("word", "sentence"), CASES["misspelt"])
def test_an_option_that_there_is_not_is_refused_with_what_was_meant(word, sentence):
    with pytest.raises(InputError) as refused:
        full_names([word], OPTIONS)
    assert str(refused.value) == sentence


def test_what_is_like_nothing_is_not_guessed():
    assert did_you_mean("gsm8", ["gsm8k", "gpqa"], "none") == "did you mean gsm8k?"
    assert did_you_mean("zzz", ["gsm8k", "gpqa"], "none") == "none."


def test_habits_reach_the_settings(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "--model some/model --k 4 --temperature 0.5 --seed 7 --limit 3 -o here --dtype bf16 --max-new-tokens 96"
    config = resolved(capsys, "harvest", "--config", "arithmetic", *words.split())
    assert (config["model"]["name"], config["k"]["maximum"], config["output"]) == ("some/model", 4, "here")
    assert (config["seed"], config["benchmark"]["limit"]) == (7, 3)
    assert (config["sampler"]["proposal_temperature"], config["sampler"]["max_new_tokens"]) == (0.5, 96)
    assert [ModelConfig(dtype=name).dtype for name in ("fp32", "bf16", "fp16", "bfloat16")] == [
        "float32", "bfloat16", "float16", "bfloat16",
    ]  # fmt: skip
    training = resolved(
        capsys,
        "fit",
        "--config=mlp_hq",
        *["--store", "s", "--label", "end", "-o", "r", "--seed", "5", "--max-epochs", "3"],
    )
    assert training["data"]["init_args"]["store"] == "s"
    assert training["data"]["init_args"]["label"] == "end"
    assert training["trainer"]["default_root_dir"] == "r"
    assert (training["trainer"]["max_epochs"], training["seed_everything"]) == (3, 5)


@pytest.mark.parametrize("command", sorted(SHOWN))
def test_the_example_of_a_help_is_accepted(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if command == "store import":
        (tmp_path / "settings.yaml").write_text("seed: 0\n")
    words = [*command.split(), *shlex.split(SHOWN[command][0])]
    if command == "sample":
        words = [*words[:-2], "--k", "4"]  # without the policy file, which is not there
    assert resolved(capsys, *words)


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_a_help_is_one_screen_with_an_example_and_the_rest_elsewhere(command, capsys):
    with pytest.raises(SystemExit):
        run([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert f"  dps {command} " in lines[lines.index("example:") + 1]
    assert lines[-1].startswith(f"dps {command} --help-all ")
    if command in SHOWN:
        with pytest.raises(ParserMade) as made:
            cli.COMMANDS[command][0]([PARSER])
        everything = made.value.args[0].format_help()
        assert all(option in everything for option in made.value.args[0]._option_string_actions)


def test_a_shell_completes_commands_options_and_choices(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert run(["--print-completion", "bash"]) == 0
    (tmp_path / "dps.bash").write_text(capsys.readouterr().out)

    def completed(*words):
        line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_dps {' '.join(words[-1:])}"
        script = f"source {tmp_path}/dps.bash; {line}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60).stdout.split()

    assert set(completed("dps", "rep")) == {"replay", "report"}
    assert "--sampler.alpha" in completed("dps", "harvest", "--sampler.a")
    assert "--trials" in completed("dps", "tune", "--tr")
    assert run(["--print_completion", "cmd"]) == 2
    assert "Expected one of bash" in capsys.readouterr().err


# -- one question ------------------------------------------------------------------------------------------------------


def response(answer_class, logprob, text="?"):
    return SimpleNamespace(
        answer_class=answer_class, base_logprob=logprob, answer=f"a{answer_class}" if answer_class >= 0 else None,
        arm="plain", index=0, text=text,
    )  # fmt: skip


@pytest.mark.parametrize(("given", "votes", "shown", "why"), CASES["votes"])
def test_votes_and_the_response_that_stands_for_them(given, votes, shown, why):
    of = [response(*each) for each in given]
    assert _votes(of) == votes
    if shown is not None:
        assert why in _why(of, shown, "majority")


def test_responses_that_end_at_the_longest_length_are_said_to_be_cut_off(capsys):
    options = ["--k=2", "--num_mh_steps=0", "--block_size=4", "--max_new_tokens"]
    assert run(["sample", "1+2+3+4+5+6+7+8+9", *options, "4"]) == 0
    rung, _, text, _, answer, why, cut = capsys.readouterr().out.splitlines()
    assert "no answer: 0 of 2" in rung
    assert text  # what the model wrote is seen all the same
    assert answer.startswith("answer: none   (k = 2, 8 tokens")
    assert why.startswith("why: no response has an answer; response ")
    assert cut == "cut off: all of 2 responses, the one above too, at T_max = 4 tokens (sampler.max_new_tokens)"
    assert run(["sample", "1+2", *options, "48"]) == 0
    assert "cut off" not in capsys.readouterr().out


def test_a_question_comes_from_the_standard_input_and_its_answer_as_json(capsys, monkeypatch):
    options = ["--k=2", "--max_new_tokens=48", "--block_size=24", "--num_mh_steps=1", "--json"]
    done = dps("sample", "-", *options, input="-5+3\n")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["question"], told["k"], told["decisions"]) == ("-5+3", 2, [])
    assert told["prompt"] == "Q: -5+3\nA: "
    assert told["num_tokens"] == sum(each["num_generated_tokens"] for each in told["responses"])
    assert told["shown"] is None or told["responses"][told["shown"]]["answer"] == told["answer"]
    assert run(["sample", "-5+3", *options]) == 0
    assert json.loads(capsys.readouterr().out)["responses"] == told["responses"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(["sample", "-"]) == 2


# -- silence -----------------------------------------------------------------------------------------------------------


def gaps(words, cwd):
    """The longest silence of a command on a terminal, seconds, and what it wrote.

    Where other programs hold the cores, a silence counts as long as the command itself has computed in it.
    """
    own, other = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "dps", *words], stdout=other, stderr=other, cwd=cwd, env=environment
    )
    os.close(other)
    child, last, used, silent, text = psutil.Process(process.pid), time.monotonic(), 0.0, [], b""
    while True:
        ready = select.select([own], [], [], 120)[0]
        try:
            part = os.read(own, 65536) if ready else b""
        except OSError:  # the other end is closed
            part = b""
        now, computed = time.monotonic(), used
        with contextlib.suppress(psutil.Error):  # it has ended
            computed = sum(child.cpu_times()[:2])
        silent.append(min(now - last, max(computed - used, (now - last) / 8)))
        last, used, text = now, computed, text + part
        if not part:
            break
    os.close(own)
    assert process.wait(timeout=60) == 0, text.decode()
    return max(silent), text.decode()


@pytest.mark.slow
def test_nothing_waits_in_silence(tmp_path):
    """On a terminal something moves every two seconds."""
    longest = {}
    small = [*SMALL, "--limit=40", "-o", "harvest"]
    training = ["--config=mlp_h", "--store=harvest", "-o", "run", "--max_epochs=2"]
    for words in (
        ["sample", "From left to right: 14+23*3"],
        ["harvest", *small],
        ["fit", *training],
        ["replay", "harvest", "-o", "replay"],
        ["store", "info", "harvest"],
        ["recommend", "replay"],
        ["metrics", "harvest", "-o", "metrics"],
    ):
        longest[words[0]], text = gaps(words, tmp_path)
        assert "Traceback" not in text
    assert max(longest.values()) < 2.5, longest
