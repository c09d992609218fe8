"""The commands as a user sees them. All but a few run in this process."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest

from app.commands.filenames import printable
from app.engine import Pixels, Rows
from app.engine.openvino import OpenVinoEngine
from app.errors import DeviceLost
from app.settings import Settings
from tests import tiny
from tests.commands.runner import topk
from tests.conftest import CAT, REPOSITORY, environment
from tests.names import HUMAN, forbidden, open_folder

MODEL = ("--model", "efficientnet_lite0")
TINY = tiny.model()


def process(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "app", *map(str, arguments)]
    env = environment() | variables
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=120)


def test_predict_prints_a_table() -> None:
    ran = process("predict", CAT, *MODEL, "--top-k", "3")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "n02124075" in ran.stdout
    assert "Egyptian cat" in ran.stdout


def test_predict_reads_files_folders_and_standard_input_in_order(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.jpg"):
        (tmp_path / name).write_bytes(CAT.read_bytes())
    ran = topk("predict", tmp_path, "-", *TINY, "--json", stdin=CAT.read_bytes())
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["a.jpg", "b.jpg", "-"]
    assert len({json.dumps(line["predictions"][0]["class_id"]) for line in lines}) == 1
    assert lines[0].keys() == {"file", "model", "weights", "predictions"}
    assert ran.stderr == ""


def test_predict_continues_after_a_bad_file_and_reports_it(tmp_path: Path) -> None:
    bad, pipe = tmp_path / "bad.jpg", tmp_path / "pipe.jpg"
    bad.write_bytes(b"no picture")
    os.mkfifo(pipe)
    ran = topk("predict", bad, CAT, pipe, "-", *TINY, "--json")
    codes = [json.loads(line).get("error", {}).get("code") for line in ran.stdout.splitlines()]
    assert codes == ["unsupported_media_type", None, "unreadable_file", "empty_body"]
    assert ran.returncode == 1


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_lost_device_ends_a_command_with_its_reason(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(engine: OpenVinoEngine, images: Sequence[Pixels], *arguments: Any) -> Rows:
        if any(image.std() for image in images):  # unlike those of the warm-up
            raise DeviceLost("the device has failed")
        return forward(engine, images, *arguments)

    for number in range(100):
        (tmp_path / "tabby").mkdir(exist_ok=True)
        (tmp_path / "tabby" / f"{number}.jpg").write_bytes(CAT.read_bytes())
    forward = OpenVinoEngine.forward
    monkeypatch.setattr(OpenVinoEngine, "forward", lose)
    ran = topk(command, tmp_path, *TINY)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == "topk: the device has failed"


def test_predict_skips_and_counts_the_files_of_a_folder_that_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "empty").touch()
    (tmp_path / "below" / "image").write_bytes(CAT.read_bytes())
    (tmp_path / ".hidden.jpg").write_bytes(CAT.read_bytes())
    ran = topk("predict", tmp_path, *TINY, "--json")
    [line] = ran.stdout.splitlines()
    assert json.loads(line)["file"] == str(tmp_path / "below" / "image")
    assert (ran.returncode, ran.stderr) == (0, "skipped 2 files that are not images\n")


def test_predict_checks_that_files_exist_before_it_loads_a_model(tmp_path: Path) -> None:
    ran = topk("predict", CAT, tmp_path / "none.jpg", tmp_path / "neither.jpg", "--model", "no such model")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"topk: no such file or folder: {tmp_path}/none.jpg, {tmp_path}/neither.jpg\n"
    (tmp_path / "notes.txt").touch()
    ran = topk("predict", tmp_path, "--model", "no such model")
    assert ran.stderr == f"topk: no image files in {tmp_path}; skipped 1 file that is not an image\n"


def test_predict_shows_the_path_through_wordnet_as_a_tree() -> None:
    ran = topk("predict", CAT, *MODEL, "--taxonomy", "--confidence", "0.5")
    assert ran.returncode == 0
    table, _, tree = ran.stdout.partition("\nentity ")
    _, *path, answer, _ = tree.splitlines()
    assert "Egyptian cat" in table
    assert [line.index("└") for line in path] == list(range(0, 2 * len(path), 2))
    assert [line.strip(" └.0123456789") for line in path[:2]] == ["physical entity", "object"]
    assert re.fullmatch(r"answer: (domestic cat|cat|feline) 0\.\d{4} n\d{8}", answer)


def test_predict_gives_machines_the_keys_of_the_api() -> None:
    [line] = topk("predict", CAT, *MODEL, "--taxonomy", "--json").stdout.splitlines()
    answer = json.loads(line)
    assert answer.keys() == {"file", "model", "weights", "predictions", "taxonomy", "answer"}
    assert answer["answer"].keys() == answer["taxonomy"][0].keys() == {"wnid", "label", "score"}
    assert answer["taxonomy"][-1]["wnid"] == answer["predictions"][0]["wnid"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", CAT, "--model", "resnet5"], "no model 'resnet5'"),
        (["predict", CAT, *TINY, "--top-k", "1001"], "more than the model's 1000 classes"),
        (["predict", CAT, *MODEL, "--confidence", "0.5"], "--confidence requires taxonomy"),
        (["predict", CAT, *MODEL, "--taxonomy", "--confidence", "0"], "must be more than 0 and at most 1, got 0"),
        (["predict", CAT, *MODEL, "--taxonomy", "--confidence", "1.5"], "must be more than 0 and at most 1, got 1.5"),
        (["predict", CAT, *MODEL, "--precision", "float8"], "--precision: 'float8'"),
        (["predict", CAT, *MODEL, "--device", "tpu"], "--device: 'tpu'"),
        (["predict", CAT, "--top-k", "0"], "'--top-k'"),
        (["predict", CAT, "--topk", "1"], "no such option: --topk"),
        (["predict"], "missing argument 'files'; see topk predict --help"),
        (["serve", "--rate-limit", "2/minute,1/second"], "10/second, 600/minute or 1000/2hours"),
        (["serve", "--api-keys", ""], "--api-keys: "),
        (["bench", "x", "--seconds", "soon"], "invalid value for '--seconds': "),
        (
            ["evaluate", "x", "--compare", "int8"],
            "'int8' is not one of 'float32', 'bfloat16'; see topk evaluate --help",
        ),
        (["predit"], "no such command 'predit'. Did you mean 'predict'?; see topk --help"),
    ],
)
def test_every_error_is_one_line_and_exit_code_1(arguments: list[object], words: str) -> None:
    ran = topk(*arguments)
    assert (ran.returncode, ran.stdout) == (1, "")
    [line] = ran.stderr.splitlines()
    assert line.startswith("topk: ")
    assert words in line


def test_a_process_fails_in_the_same_way() -> None:
    ran = process("bench", "x", "--second", "3")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("topk: no such option: --second")


def test_models_lists_what_can_be_served_with_its_published_accuracy() -> None:
    entries = [json.loads(line) for line in topk("models", "--json").stdout.splitlines()]
    found = next(e for e in entries if (e["architecture"], e["name"]) == ("resnet50", "IMAGENET1K_V2"))
    assert (found["default"], found["accuracy"], found["parameters"]) == (True, [80.858, 95.434], 25557032)
    assert isinstance(found["cached"], bool)
    assert len({entry["architecture"] for entry in entries}) >= 80


def test_models_prints_a_table() -> None:
    ran = topk("models")
    assert ran.returncode == 0
    assert re.search(r"resnet50 +IMAGENET1K_V2\* +25\.6 +98 +80\.86 +95\.43", ran.stdout)
    assert "efficientnet_lite0 is built in" in ran.stdout


def test_the_summary_of_every_command_is_shown_whole() -> None:
    ran = topk("--help")
    _, _, summaries = ran.stdout.partition("Commands:\n")
    lines = summaries.splitlines()
    assert [line.split()[0] for line in lines] == [
        "serve",
        "predict",
        "models",
        "export",
        "bench",
        "evaluate",
        "calibrate",
        "train",
    ]
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)
    assert topk().stdout == ran.stdout


@pytest.mark.parametrize("command", ["serve", "predict", "models", "export", "bench", "evaluate", "calibrate", "train"])
def test_the_help_of_a_command_begins_with_its_summary(command: str) -> None:
    summary = re.search(rf"  {command} +(.*)", topk("--help").stdout)
    assert summary
    assert f"\n\n  {summary[1]}\n" in topk(command, "--help").stdout


def test_every_setting_is_an_option_of_serve() -> None:
    printed = topk("serve", "--help", columns=200).stdout
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in printed


def test_help_shows_examples_whole_kinds_and_defaults() -> None:
    printed = " ".join(topk("serve", "--help").stdout.split())
    for words in ("`resnet50:IMAGENET1K_V2`", "--port <int>", "[default: 8000]", "[default: ~/.cache/topk]"):
        assert words in printed
    printed = " ".join(topk("predict", "--help").stdout.split())
    assert "[default: 5, or all if the model has fewer]" in printed
    assert "more than 0 and at most 1. [default: 0.9]" in printed


def test_version_is_printed() -> None:
    assert topk("--version").stdout.startswith("topk ")


def test_a_file_name_may_contain_anything(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"bad\xff\x1b[31m.jpg")).write_bytes(CAT.read_bytes())
    (tmp_path / "empty.jpg").touch()
    ran = topk("predict", tmp_path, *TINY, "--json")
    first, second = (json.loads(line) for line in ran.stdout.splitlines())
    assert first["file"].endswith("/bad\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[31m.jpg")
    assert second["error"]["code"] == "empty_body"


@pytest.mark.slow
@HUMAN
def test_json_has_the_real_name_of_a_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name / f"{name}.jpg"
    file.parent.mkdir()
    file.touch()
    ran = topk("predict", tmp_path, *TINY, "--json")
    assert json.loads(ran.stdout)["file"] == str(file)
    assert Path(json.loads(ran.stdout)["file"]).exists()
    assert f"{file}: the file is empty" in topk("predict", file, *TINY).stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a\x1b[2Jb", "line\nbreak", "C1\x9b2J", "tab\t", "order\u202egpj", "\x7f"])
def test_a_terminal_never_sees_control_characters_and_json_escapes_them(tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}.jpg"
    file.touch()
    ran = topk("predict", file, *TINY, "--json")
    assert json.loads(ran.stdout)["file"] == str(file)
    shown = ran.stdout.rstrip("\n") + topk("predict", file, *TINY).stderr.rstrip("\n")
    assert not set(name) & set(shown) - set(printable(name))


def test_names_are_no_markup(tmp_path: Path) -> None:
    file = tmp_path / "[red]cat[bold] :smile:.jpg"
    file.write_bytes(CAT.read_bytes())
    printed = "".join(topk("predict", file, *TINY).stdout.split())  # long titles are wrapped
    assert "[red]cat[bold]:smile:.jpg" in printed
    (tmp_path / "empty [red] :cat:.jpg").touch()
    assert "empty [red] :cat:.jpg: the file is empty" in topk("predict", tmp_path, *TINY, columns=300).stderr


@pytest.mark.parametrize(("given", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_predict_finds_a_file_in_either_form(tmp_path: Path, given: str, stored: str) -> None:
    file = tmp_path / normalize(stored, "Crème.jpg")
    file.write_bytes(CAT.read_bytes())
    ran = topk("predict", tmp_path / normalize(given, "Crème.jpg"), *TINY, "--json")
    assert (ran.returncode, json.loads(ran.stdout)["file"]) == (0, str(file))


def test_predict_follows_links_and_reports_what_it_skips(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "cat.jpg").write_bytes(CAT.read_bytes())
    (tmp_path / "in" / "__MACOSX").mkdir(parents=True)
    (tmp_path / "in" / "old").symlink_to("../store")
    (tmp_path / "in" / "loop").symlink_to(".")
    ran = topk("predict", tmp_path / "in", *TINY, "--json")
    assert json.loads(ran.stdout)["file"] == str(tmp_path / "in" / "old" / "cat.jpg")
    said = "skipped 1 system file or folder (__MACOSX), 1 link to a folder that contains it\n"
    assert (ran.returncode, ran.stderr) == (0, said)


def test_predict_reports_folders_that_it_may_not_read() -> None:
    with open_folder() as folder:
        model = shutil.copytree(TINY[1], folder / "model")
        model.chmod(0o755)
        for name in ("open", "secret"):
            (folder / "in" / name).mkdir(parents=True)
            (folder / "in" / name / "cat.jpg").write_bytes(CAT.read_bytes())
        command = ("predict", folder / "in", "--model", model, "--cache-dir", folder, "--json")
        assert topk(*command).returncode == 0  # imports what the other user may not be able to read
        with forbidden(folder / "in" / "secret"):
            ran = topk(*command)
        assert json.loads(ran.stdout)["file"] == str(folder / "in" / "open" / "cat.jpg")
        said = f"could not read 1 file or folder: {folder}/in/secret (Permission denied)\n"
        assert (ran.returncode, ran.stderr) == (1, said)


def test_ctrl_c_during_the_imports_gives_only_an_exit_code(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    ran = process("--version", PYTHONPATH=str(tmp_path))
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


def test_an_env_file_that_is_not_utf_8_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_bytes(b"TOPK_MODEL=\xff\n")
    monkeypatch.chdir(tmp_path)
    ran = topk("predict", CAT)
    assert ran.returncode == 1
    assert "the file .env is not valid UTF-8" in ran.stderr
