import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CAT, REPOSITORY

MODEL = ("--model", "efficientnet_lite0")


def topk(*arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, input=stdin, capture_output=True, timeout=120)


def test_predict_prints_a_table() -> None:
    ran = topk("predict", str(CAT), *MODEL, "--top-k", "3")
    assert ran.returncode == 0
    assert "n02124075" in ran.stdout.decode()
    assert "Egyptian cat" in ran.stdout.decode()


def test_predict_reads_files_folders_and_standard_input_in_order(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.jpg"):
        (tmp_path / name).write_bytes(CAT.read_bytes())
    ran = topk("predict", str(tmp_path), "-", *MODEL, "--json", stdin=CAT.read_bytes())
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["a.jpg", "b.jpg", "-"]
    assert len({json.dumps(line["predictions"][0]["class_id"]) for line in lines}) == 1
    assert lines[0].keys() == {"file", "model", "weights", "predictions"}


def test_predict_goes_on_past_a_bad_file_and_says_so(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    ran = topk("predict", str(bad), str(CAT), str(tmp_path / "none.jpg"), *MODEL, "--json")
    codes = [json.loads(line).get("error", {}).get("code") for line in ran.stdout.splitlines()]
    assert codes == ["unsupported_media_type", None, "unreadable_file"]
    assert ran.returncode == 1


def test_predict_shows_the_way_through_wordnet_as_a_tree() -> None:
    ran = topk("predict", str(CAT), *MODEL, "--taxonomy", "--confidence", "0.5")
    assert ran.returncode == 0
    table, _, tree = ran.stdout.decode().partition("\nentity ")
    _, *way, answer, _ = tree.splitlines()
    assert "Egyptian cat" in table
    assert [line.index("└") for line in way] == list(range(0, 2 * len(way), 2))
    assert [line.strip(" └.0123456789") for line in way[:2]] == ["physical entity", "object"]
    assert re.fullmatch(r"answer: (domestic cat|cat|feline) 0\.\d{4} n\d{8}", answer)


def test_predict_gives_machines_the_keys_of_the_api() -> None:
    [line] = topk("predict", str(CAT), *MODEL, "--taxonomy", "--json").stdout.splitlines()
    answer = json.loads(line)
    assert answer.keys() == {"file", "model", "weights", "predictions", "taxonomy", "answer"}
    assert answer["answer"].keys() == answer["taxonomy"][0].keys() == {"wnid", "label", "score"}
    assert answer["taxonomy"][-1]["wnid"] == answer["predictions"][0]["wnid"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", str(CAT), "--model", "resnet5"], "no model 'resnet5'"),
        (["predict", str(CAT), *MODEL, "--top-k", "1001"], "more than the model's 1000 classes"),
        (["predict", str(CAT), *MODEL, "--confidence", "0.5"], "which --taxonomy asks for"),
        (["predict", str(CAT), *MODEL, "--taxonomy", "--confidence", "0"], "must be more than 0"),
        (["predict", str(CAT), *MODEL, "--precision", "float8"], "--precision: 'float8' is not allowed; choose"),
        (["predict", str(CAT), *MODEL, "--taxonomy", "--confidence", "1.5"], "at most 1"),
        (["serve", "--rate-limit", "2/minute,1/second"], "10/second, 600/minute or 1000/2hours"),
        (["predict", str(CAT), *MODEL, "--device", "tpu"], "--device: 'tpu' is not a device"),
    ],
)
def test_what_cannot_be_done_is_one_plain_line(arguments: list[str], words: str) -> None:
    ran = topk(*arguments)
    assert ran.returncode == 1
    [line] = ran.stderr.decode().splitlines()
    assert words in line


def test_models_lists_what_can_be_served_with_its_published_accuracy() -> None:
    entries = [json.loads(line) for line in topk("models", "--json").stdout.splitlines()]
    found = next(e for e in entries if (e["architecture"], e["name"]) == ("resnet50", "IMAGENET1K_V2"))
    assert (found["default"], found["accuracy"], found["parameters"]) == (True, [80.858, 95.434], 25557032)
    assert isinstance(found["cached"], bool)
    assert len({entry["architecture"] for entry in entries}) >= 80


def test_every_setting_is_an_option_of_serve() -> None:
    from app.settings import Settings

    said = subprocess.run(
        [sys.executable, "-m", "app", "serve", "--help"], capture_output=True, text=True, env={"COLUMNS": "200"}
    ).stdout
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in said


def test_help_shows_examples_whole_kinds_and_defaults() -> None:
    said = " ".join(topk("serve", "--help").stdout.decode().split())
    for words in ("`resnet50[:IMAGENET1K_V2]`", "--port <int>", "[default: 8000]", "[default: ~/.cache/topk]"):
        assert words in said
    said = " ".join(topk("predict", "--help").stdout.decode().split())
    assert "[default: 5, of fewer all]" in said
    assert "more than 0 and at most 1. [default: 0.9]" in said


def test_version_is_printed() -> None:
    assert topk("--version").stdout.startswith(b"topk ")


def test_a_file_name_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"bad\xff\x1b[31m.jpg")).write_bytes(CAT.read_bytes())
    (tmp_path / "empty.jpg").touch()
    ran = topk("predict", str(tmp_path), *MODEL, "--json")
    first, second = (json.loads(line) for line in ran.stdout.splitlines())
    assert first["file"].endswith("/bad\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[31m.jpg")
    assert second["error"]["code"] == "empty_body"


def test_ctrl_c_while_it_is_being_imported_is_said_by_the_exit_code_alone(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    command, env = [sys.executable, "-m", "app", "--version"], os.environ | {"PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, b"", b"")
