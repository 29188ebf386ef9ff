"""A full or read-only disk: the error is a sentence for a person, and old files stay complete."""

import errno
import os
import subprocess
from pathlib import Path

import pytest
import small
import torch
from safetensors.torch import save_file

from attune.runtime.arrow_stream import write_table
from attune.runtime.errors import StorageError, reported, writing
from attune.runtime.io import whole_folder, write_bytes, write_json
from attune.runtime.sealed import newest_whole

ROOM = 256 * 1024


@pytest.fixture
def mount(tmp_path):
    """`mount(options)`: a file system of 256 KiB in memory."""
    folder, mounted = tmp_path / "small", []
    folder.mkdir()

    def with_options(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM},{options}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield with_options
    for one in mounted:
        subprocess.run(["umount", "--lazy", str(one)], check=True)


def table(numbers: int) -> object:
    import pyarrow as pa

    return pa.table({"a": torch.randn(numbers, generator=torch.Generator().manual_seed(1)).tolist()})


def write_adapter(path: Path, numbers: int) -> None:
    with whole_folder(path, 4 * numbers) as partial:
        partial.mkdir()
        save_file({"a": torch.zeros(numbers)}, partial / "a.safetensors")


def write_optimizer(path: Path, numbers: int) -> None:
    with whole_folder(path, 4 * numbers) as partial:
        partial.mkdir()
        torch.save({str(i): torch.zeros(numbers // 20) for i in range(20)}, partial / "optimizer.pt")


# What writes a file or a folder of about so many numbers.
WRITERS = {
    "text": lambda path, numbers: write_bytes(path, b"a" * 4 * numbers),
    "json": lambda path, numbers: write_json(path, {"a": "a" * 4 * numbers}),
    "parquet": lambda path, numbers: write_table(path, table(numbers)),
    "safetensors": write_adapter,
    "torch": write_optimizer,
}
FEW, MANY = 1_000, 100_000


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {one.name: one.read_bytes() for one in files}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_says_what_is_needed(kind, mount, recorded):
    folder = mount("rw")
    WRITERS[kind](folder / "a", FEW)
    before = content(folder / "a")
    with pytest.raises(StorageError) as said:
        WRITERS[kind](folder / "a", MANY)
    assert f"{folder}/a cannot be written (No space left on device)" in str(said.value)
    needed = int(str(said.value).split(" bytes are needed")[0].split()[-1])
    free = int(str(said.value).split(" are free there")[0].split()[-1])
    assert needed >= 4 * MANY and free < ROOM
    assert content(folder / "a") == before
    assert [one.name for one in folder.iterdir()] == ["a"], "what was half-written is still there"
    recorded("resources", [{"what": f"full disk, {kind}", "cases": 1, "failures": 0}])


@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_may_not_be_written_to_is_named(kind, mount, recorded):
    folder = mount("rw")
    WRITERS[kind](folder / "a", FEW)
    before = content(folder / "a")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(StorageError, match=r"/a cannot be written \(Read-only file system\): .* give this user"):
        WRITERS[kind](folder / "a", FEW)
    assert content(folder / "a") == before
    recorded("resources", [{"what": f"read-only file system, {kind}", "cases": 1, "failures": 0}])


def test_a_checkpoint_that_finds_no_room_is_removed_and_the_one_before_is_kept(mount, tmp_path, monkeypatch, recorded):
    """Behind the first checkpoint the disk fills up: the trainer's own writer fails, in safetensors or in torch."""
    from dataclasses import replace

    import test_damage as micro

    from attune.models.loading import load_base, load_tokenizer
    from attune.runtime.sealed import seal
    from attune.training.common import resume
    from attune.training.sft.fine_tune import fine_tune

    base, folder = small.make(tmp_path, 40) / "models/base", mount("rw,nr_inodes=100")
    subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)

    def seal_and_fill(checkpoint: Path) -> None:
        seal(checkpoint)
        free = os.statvfs(folder)
        (folder / "filler").write_bytes(b"a" * (free.f_bavail * free.f_frsize - 40_000))

    monkeypatch.setattr(resume, "seal", seal_and_fill)
    settings = (micro.SFT, micro.LORA, replace(micro.HARDWARE, save_every=5), 5)
    some = [micro.dialogue(number) for number in range(40)]
    with pytest.raises(StorageError, match=r"checkpoints cannot be written .* bytes are needed and \d+ are free there"):
        fine_tune(
            load_base(base, micro.HARDWARE), load_tokenizer(base), some, *settings,
            folder / "checkpoints", tmp_path / "curves",
        )  # fmt: skip
    assert [one.name for one in (folder / "checkpoints").glob("checkpoint-*")] == ["checkpoint-5"]
    assert newest_whole(folder / "checkpoints", "checkpoint") == folder / "checkpoints/checkpoint-5"
    recorded("resources", [{"what": "disk full in a checkpoint of SFT", "cases": 1, "failures": 0}])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_an_unwrapped_disk_error_is_reported(number, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended, reported():
        raise OSError(number, os.strerror(number), str(tmp_path / "a"))
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.startswith(f"error: {tmp_path}/a cannot be written ({os.strerror(number)})")
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O", "a"), FileNotFoundError(2, "no", "a"), ValueError("a")])
def test_other_errors_keep_their_traceback(error, tmp_path):
    with pytest.raises(type(error)) as raised, reported(), writing(tmp_path, 1):
        raise error
    assert raised.value is error
