"""An automatic judge of pairs of replies: its prompt, its verdicts, win rates, and its agreement with people."""
