"""Files: model files are the same bytes for the same model, and JSON is written atomically."""

import json

import pytest

from attune.runtime.io import canonicalize_model_files, write_json


def test_stored_model_files_do_not_depend_on_the_process(tmp_path):
    written = []
    for name, modules, offline in (("a", ["q_proj", "down_proj"], True), ("b", ["down_proj", "q_proj"], False)):
        (tmp_path / name / "ref").mkdir(parents=True)
        adapter, tokenizer = {"r": 4, "target_modules": modules}, {"pad_token": "<pad>", "local_files_only": offline}
        for part in ("", "ref"):
            (tmp_path / name / part / "adapter_config.json").write_text(json.dumps(adapter))
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        canonicalize_model_files(tmp_path / name)
        written.append({str(f.relative_to(tmp_path / name)): f.read_bytes() for f in (tmp_path / name).rglob("*.json")})
    assert written[0] == written[1]
    assert json.loads(written[0]["ref/adapter_config.json"])["target_modules"] == ["down_proj", "q_proj"]
    assert json.loads(written[0]["tokenizer_config.json"]) == {"pad_token": "<pad>"}


def test_a_name_in_place_of_target_modules_is_left(tmp_path):
    path = tmp_path / "adapter_config.json"
    path.write_text('{"target_modules": "all-linear"}')
    canonicalize_model_files(tmp_path)
    assert path.read_text() == '{"target_modules": "all-linear"}'


def test_failed_json_keeps_the_old_file(tmp_path):
    path = tmp_path / "folder/values.json"
    write_json(path, {"a": 1.5, "b": "é"})
    with pytest.raises(ValueError, match=r"folder/values\.json"):
        write_json(path, {"a": float("nan")})
    assert path.read_bytes() == '{\n  "a": 1.5,\n  "b": "é"\n}\n'.encode()
    assert list(path.parent.iterdir()) == [path]


def test_json_replaces_a_symbolic_link(tmp_path):
    (tmp_path / "cached.json").write_text("old")
    (tmp_path / "values.json").symlink_to("cached.json")
    write_json(tmp_path / "values.json", {"a": 1})
    assert (tmp_path / "cached.json").read_text() == "old"
    assert not (tmp_path / "values.json").is_symlink()


def test_failed_write_leaves_no_temporary_file(tmp_path):
    (tmp_path / "values.json").mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(OSError):
        write_json(tmp_path / "values.json", {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["values.json"]
