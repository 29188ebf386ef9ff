"""A damaged checkpoint is discarded, whichever file is damaged and however."""

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path

import factory
import pytest
import torch
from safetensors.torch import load_file
from small import dialogue, make

from attune.models.loading import load_base, load_tokenizer
from attune.runtime.errors import ModelError
from attune.runtime.sealed import MANIFEST, damage, newest_whole, seal, settle
from attune.training.common.trainer import save_adapter
from attune.training.dpo import reference_logps
from attune.training.sft.fine_tune import fine_tune

HARDWARE = factory.hardware(micro_batch_size=2)
SFT = factory.sft()
LORA = factory.lora(dropout=0.1)


def truncated(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(1, len(content))])


def flipped(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def missing(path: Path, _: random.Random) -> None:
    path.unlink()


def empty(path: Path, _: random.Random) -> None:
    path.write_bytes(b"")


HARMS = (truncated, flipped, missing, empty)


def train(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """40 dialogues in batches of 4: checkpoints of steps 5 and 10."""
    model, tokenizer = load_base(base, HARDWARE), load_tokenizer(base)
    some = [dialogue(number) for number in range(40)]
    settings = (SFT, LORA, HARDWARE, 5, folder / "checkpoints", folder / "curves")
    save_adapter(fine_tune(model, tokenizer, some, *settings), folder / "sft")
    return load_file(folder / "sft/adapter_model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    train(make(folder, 40) / "models/base", folder)
    return folder


def files(checkpoint: Path) -> list[str]:
    return sorted(path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())


def test_every_harm_to_every_file_is_noticed_and_the_one_before_is_taken(trained, tmp_path, recorded):
    """40 places in each file for a flipped byte and a cut; if both checkpoints are damaged, neither is used."""
    rng, rows = random.Random(3), []
    kept = tmp_path / "kept"
    shutil.copytree(trained / "checkpoints", kept)
    last, before = kept / "checkpoint-10", kept / "checkpoint-5"
    assert damage(last) is None and damage(before) is None and newest_whole(kept, "checkpoint") == last
    assert {"adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "running.json", MANIFEST} <= set(files(last))
    for harm in HARMS:
        cases = 0
        for name in files(last):
            content = (last / name).read_bytes()
            for _ in range(40 if harm in (truncated, flipped) else 1):
                harm(last / name, rng)
                cases += 1
                assert newest_whole(kept, "checkpoint") == before, (harm.__name__, name)
                (last / name).write_bytes(content)
        rows.append({"what": f"a file of a checkpoint {harm.__name__}", "cases": cases, "failures": 0})
    assert newest_whole(kept, "checkpoint") == last
    recorded("checkpoints", rows)


@pytest.mark.parametrize(("harmed", "step"), [((10,), 5), ((10, 5), 0)])
def test_training_resumes_from_the_previous_checkpoint_with_a_message(harmed, step, trained, tmp_path, capsys):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    for number in harmed:
        flipped(tmp_path / f"checkpoints/checkpoint-{number}/optimizer.pt", random.Random(1))
    whole = load_file(trained / "sft/adapter_model.safetensors")
    found = train(trained / "models/base", tmp_path)
    assert all(torch.equal(weight, whole[name]) for name, weight in found.items()) and found.keys() == whole.keys()
    said = capsys.readouterr().err
    for number in harmed:
        assert f"checkpoint-{number} is discarded: optimizer.pt has changed since it was written" in said
    assert (
        f"resuming from {tmp_path}/checkpoints/checkpoint-{step}" if step else "starting from the beginning"
    ) in said


def test_a_folder_without_manifest_is_removed_and_others_are_left(tmp_path, capsys):
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/a").write_text("a")
    (tmp_path / "checkpoint-best").mkdir()
    seal(tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-5/later").write_text("not of the manifest")
    assert settle(tmp_path, "checkpoint") == tmp_path / "checkpoint-5"
    assert "checkpoint-10 is discarded: it is incomplete" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5", "checkpoint-best"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"a": 1}', '{"a": {}}', "\x00"])
def test_a_manifest_that_says_nothing_makes_no_checkpoint_whole(content, tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / MANIFEST).write_text(content)
    assert damage(tmp_path) is not None


def test_log_probabilities_of_the_reference_that_are_damaged_are_not_read(tmp_path):
    path, rng = tmp_path / "logps.parquet", random.Random(5)
    logps = {f"{number:032x}": -float(number) / 7 for number in range(200)}
    reference_logps.write(path, "r", logps)
    content, read = path.read_bytes(), reference_logps.read(path, "r")
    assert read.keys() == logps.keys()
    for harm in (truncated, flipped, empty):
        for _ in range(60):
            harm(path, rng)
            # A byte that nothing reads may turn over; no number may.
            with suppress(ModelError):
                assert reference_logps.read(path, "r") == read
            path.write_bytes(content)
    assert json.dumps(reference_logps.read(path, "r")) == json.dumps(read)
