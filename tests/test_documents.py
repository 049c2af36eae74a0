"""README and docs do what they say: every command block runs, every link, file and option exists.

A block after ``<!-- not run: REASON -->`` is not run; its ``dps`` commands are parsed up to the loading of a model.
"""

import ast
import contextlib
import io
import re
import shlex
import subprocess
import sys

import pytest
import yaml

import dps
from dps import cli
from tests.commands import ROOT
from tests.test_house import TREES

PAGES = [*(ROOT / name for name in ("README.md", "CHANGELOG.md")), *sorted((ROOT / "docs").glob("*.md"))]
LISTS = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "results").rglob("*.md"))]
"""Only their links are held to anything: pages of results name commits and machines that are past."""
BLOCK = re.compile(r"^(?:<!-- not run: (?P<why>[^>]+) -->\n+)?```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(<?([^)\s>]+)>?\)")
FILE = re.compile(r"(?<![\w/.-])(?:configs|docs|dps|lightning_modules|feature_store|scripts|tests)/[\w./-]*\.\w+")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*")
BY_CLASS = ("--data.init_args.", "--model.init_args.", "--optimizer.", "--trainer.", "--trainer", "--ckpt_path")
"""LightningCLI's own options, which depend on the configuration's classes: blocks that use them are run or parsed."""
OF_OTHERS = {"--endpoint", "--logdir", "--partition", "--time"}
"""Options of other programs that pages name."""
NO_OPTIONS = {"model.feature_layer", "model.feature_arms", "model.prompt_layers", "model.init_args"}
"""Entries of a manifest, and a prefix, that look like settings of the command line."""
ELSEWHERE = {
    "exactness.md": "tests/sampler/test_testing.py",
    "python.md": "tests/examples/test_python_page.py",
    "serving.md": "tests/serve/test_serving_page.py",
}
"""Pages whose blocks another test runs: in one process, or against a server."""
PROGRAMS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
FEWER = re.compile(r"(?<=--benchmark\.limit )\d+")


def blocks(page, *kinds):
    return [block for block in BLOCK.finditer(page.read_text(encoding="utf-8")) if block["kind"] in kinds]


def name_of(page):
    return page.relative_to(ROOT).as_posix()


RUNNING = [
    page
    for page in PAGES
    if page.name not in ELSEWHERE and any(not block["why"] for block in blocks(page, "bash", "python"))
]
PARSED = [
    pytest.param(line, id=f"{name_of(page)}: {line[:60]}")
    for page in PAGES
    for block in blocks(page, "bash")
    if block["why"] or page.name in ELSEWHERE
    for line in block["body"].replace("\\\n", " ").splitlines()
    if re.match(r"\s*dps ", line) and "$" not in line
]


def steps(body):
    """A block's commands of ``dps``, each as a list of words, and the scripts between them."""
    script = ""
    for line in body.replace("\\\n", " ").splitlines():
        if line.startswith("dps "):
            yield script
            yield shlex.split(FEWER.sub(lambda limit: str(max(8, int(limit[0]) // 4)), line), comments=True)[1:]
            script = ""
        else:
            script += line + "\n"
    yield script


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=name_of)
def test_every_block_runs_one_after_the_other_in_an_empty_folder(page, tmp_path, monkeypatch, capfd):
    """As written, but for a fourth of the questions; commands run in this process, whose imports are made once."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, *PROGRAMS):
        if block["why"]:
            continue
        for step in steps(block["body"]) if block["kind"] == "bash" else [block["body"]]:
            if isinstance(step, list):
                assert cli.run(step) in (0, None), f"{step}\n{capfd.readouterr().err[-3000:]}"
            elif step.strip():
                subprocess.run([*PROGRAMS[block["kind"]], step], check=True, timeout=60, stdin=subprocess.DEVNULL)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_pages_that_another_test_runs_are_named_by_that_test():
    for page in PAGES:
        if test := ELSEWHERE.get(page.name):
            assert f"docs/{page.name}" in (ROOT / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("line", PARSED)
def test_a_command_that_is_not_run_is_parsed(line, capsys):
    """Up to the loading of a model: the same parser, asked for the settings that the line gives."""
    words = shlex.split(line.partition("&&")[0], comments=True)[1:]
    words = [word for word in words if word not in ("|", ">")]
    with contextlib.suppress(SystemExit):  # how the parsers end after --print_config
        assert cli.run([*words, "--print_config"]) == 0, capsys.readouterr().err
    assert "error" not in capsys.readouterr().err


def test_a_wrong_option_would_be_noticed(capsys):
    assert cli.run(["harvest", "--compute.wrokers", "8", "--print_config"]) == 2
    assert "wrokers" in capsys.readouterr().err


@pytest.fixture(scope="module")
def options():
    """Every option that a help names, of all commands."""
    helps = ""
    for name in cli.COMMANDS:
        for word in ("--help", "--help-all"):
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
                cli.run([name, word])
            helps += said.getvalue()
            if "--help-all" not in said.getvalue() or "loads Lightning" in said.getvalue():
                break
    return {f"--{word[2:].replace('-', '_')}" for word in OPTION.findall(helps)} | {"--version"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_that_a_page_names_exists(page, options):
    text = page.read_text(encoding="utf-8")
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", BLOCK.sub("", text))
    spans = [span for span in spans if not span.startswith(("python ", "pip "))]
    wrong = []
    for option in {word.rstrip(".").replace("-", "_") for span in spans for word in OPTION.findall(span)}:
        option = option.replace("__", "--", 1)
        parents = [option.rsplit(".", n)[0] for n in range(option.count(".") + 1)]  # of a setting that is a mapping
        if not {*parents} & (options | OF_OTHERS) and not option.startswith(BY_CLASS):
            wrong.append(option)
    assert not wrong, wrong
    settings = re.compile(r"(?:sampler|compute|benchmark|model|features|k)\.[a-z_]+")
    named = {span for span in spans if settings.fullmatch(span)}
    assert {name for name in named if f"--{name}" not in options} <= NO_OPTIONS


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *LISTS], ids=name_of)
def test_every_link_and_every_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    wrong = []
    for target in LINK.findall(text):
        if target.startswith(("https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            wrong.append(target)
    if page in PAGES:
        named = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text) + [block["body"] for block in blocks(page, "bash")]
        files = {name for words in named for name in FILE.findall(words)}
        wrong += [name for name in files if not (ROOT / name).exists()]
    assert not wrong, wrong


def test_the_readme_is_short_and_its_make_targets_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = set(re.findall(r"^make ([\w-]+)", text, re.M))
    assert named
    assert named <= targets


def test_citation_and_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert str(citation["version"]) == dps.__version__
    assert f"## {dps.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_messages_of_the_faq_are_those_of_the_code():
    """Each row's parts between placeholders stand in one text of the source."""
    texts = {
        "\0".join(str(getattr(part, "value", "\0")) for part in node.values) if isinstance(node, ast.JoinedStr)
        else node.value
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    }  # fmt: skip
    rows = re.findall(r"^\| (.+?) \| .+ \|$", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), re.M)
    messages = [row for row in rows if row != "message"]
    assert len(messages) > 10
    unknown = [
        message for message in messages if not any(all(p.strip() in t for p in message.split("…")) for t in texts)
    ]
    assert not unknown, unknown
