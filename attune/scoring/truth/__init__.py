"""TruthfulQA through lm-evaluation-harness: plain, after a sad preface, and with a false belief of the user stated."""
