"""What libraries store of a model is the same bytes for the same model."""

import json

from attune.runtime.io import canonicalize_model_files


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
