"""Equal runs give equal bytes; another number of threads gives metrics within a stated tolerance."""

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import ROOT
from micro import MICRO, Clone

from attune.tools.verify import hashes

# Of one and two threads: relative, of losses; in points of a hundred, of metrics of replies (a reply that depends on a
# last digit has other words).
LOSS, POINTS = 1e-3, 2.0

RUN = """
import json, os, sys
from pathlib import Path
import factory
import torch
from attune.corpora.readers import empathetic_dialogues
from attune.training.pretraining.pretrain import pretrain
from attune.training.sft.fine_tune import fine_tune
from attune.runtime.io import canonicalize_model_files
from attune.models.chat_template import encode_dialogue, encode_prompt
from attune.generation.generate import generate_replies
from attune.training.common.trainer import save_adapter
from attune.scoring.text.overlap import overlap

dialogues, _ = empathetic_dialogues.read(Path(sys.argv[1]))
train, held = ([one for one in dialogues if one.split == split] for split in ("train", "test"))
hardware = factory.hardware(threads=int(sys.argv[2]), micro_batch_size=8, save_every=100)
tiny = factory.tiny(vocab_size=500, hidden_size=96, intermediate_size=192, learning_rate=3e-3, batch_size=16)
model = factory.model()
made, tokenizer = pretrain([one.turns for one in train[:64]], model, tiny, hardware, 1, Path("c1"), Path("c1-curves"))
for one in (made, tokenizer):
    one.save_pretrained("base")
canonicalize_model_files(Path("base"))
settings = factory.sft(learning_rate=3e-3, batch_size=16, max_length=96)
lora = factory.lora(dropout=0.1)
policy = fine_tune(made, tokenizer, train[:32], settings, lora, hardware, 1, Path("c2"), Path("curves"))
save_adapter(policy, Path("sft"))
policy.eval()
losses = []
with torch.no_grad():
    for one in held[:12]:
        coded = encode_dialogue(tokenizer, one.turns, loss_on="assistant", max_length=96)
        ids, mask = torch.tensor([coded.ids]), torch.tensor([coded.mask])
        labels = ids.masked_fill(~mask, -100)
        losses.append(policy(input_ids=ids, labels=labels).loss.item())
replies = generate_replies(
    policy, tokenizer, [encode_prompt(tokenizer, one.turns[:1], 64) for one in held[:16]], 12, hardware
)
found = overlap(replies, [one.turns[1].text for one in held[:16]])
Path("replies.json").write_text(json.dumps(replies))
metrics = {name: found[name] for name in ("bleu_1", "rouge_l", "dist_2")}
print(json.dumps({"threads": torch.get_num_threads(), "loss": sum(losses) / len(losses), **metrics}))
"""


def trained(folder: Path, threads: int, hash_seed: int) -> tuple[dict[str, float], dict[str, str]]:
    """Base model, SFT and replies in a separate process: the metrics, and the hash of every out."""
    folder.mkdir()
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "PYTHONHASHSEED": str(hash_seed)}
    # Threads that wait for each other actively would take the cores of the other processes.
    env |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-c", RUN, str(ROOT / "data/sample/empatheticdialogues"), str(threads)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    outs = [path for top in ("base", "sft", "curves", "replies.json") for path in sorted(folder.glob(f"{top}/**/*"))]
    files = [path for path in [*outs, folder / "replies.json"] if path.is_file()]
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return json.loads(done.stdout.splitlines()[-1]), hashes


@pytest.mark.slow
def test_equal_runs_are_equal_to_the_byte_and_two_threads_within_tolerance(tmp_path, recorded):
    runs = {"one": (1, 1), "again": (1, 2), "two": (2, 3)}
    with ThreadPoolExecutor(len(runs)) as pool:
        started = [pool.submit(trained, tmp_path / name, *settings) for name, settings in runs.items()]
    (one, outs), (again, same), (two, others) = (each.result() for each in started)
    assert {"base/model.safetensors", "sft/adapter_model.safetensors", "replies.json"} <= outs.keys()
    unequal = [name for name in outs.keys() | same.keys() if outs.get(name) != same.get(name)]
    # So small a model may well give equal bytes with two threads, too: only the number of threads is checked.
    assert [each.pop("threads") for each in (one, again, two)] == [1, 1, 2] and others.keys() == outs.keys()
    apart = {name: abs(two[name] - one[name]) for name in one}
    outside = [name for name, gap in apart.items() if gap > (LOSS * one[name] if name == "loss" else POINTS)]
    recorded("determinism", [
        {"what": "files of two equal runs (base model, SFT, curves, replies) that differ", "cases": len(outs),
         "failures": len(unequal)},
        *({"what": f"{name} with two threads instead of one", "cases": 1, "failures": int(name in outside),
           "one": round(one[name], 6), "two": round(two[name], 6),
           "tolerance": f"{LOSS:.1%}" if name == "loss" else f"{POINTS} points"} for name in one),
    ])  # fmt: skip
    assert (unequal, again, outside) == ([], one, []), apart


@pytest.mark.campaign
def test_two_clones_give_equal_bytes_for_every_out(tmp_path, recorded):
    """The pipeline with a very small model, run in two clones with separate caches."""
    outs = []
    for name in ("a", "b"):
        clone = Clone.of_the_working_tree(tmp_path / name)
        clone.run(sys.executable, "-m", "attune", "params", *MICRO)
        clone.run("dvc", "repro")
        outs.append(hashes(clone.folder / "dvc.lock"))
    different = [out for out in outs[0] if outs[0][out] != outs[1][out]]
    recorded("determinism", [{"what": "outs of the whole pipeline in two clones that differ", "cases": len(outs[0]),
                              "failures": len(different)}])  # fmt: skip
    assert (different, outs[0].keys()) == ([], outs[1].keys())
