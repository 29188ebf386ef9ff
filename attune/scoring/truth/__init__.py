"""TruthfulQA and MMLU on health by lm-evaluation-harness: plain, after a sad preface, with a false belief stated."""
