"""Overlap with the reference, diversity, and statistics of replies, all with the same tokeniser.

All functions take raw texts; `tokens` lower-cases and splits them. `docs/metrics.md` defines each metric. Shares and
scores are times 100. Edge cases:

- A reply without tokens is *empty*: "", white space, or "<skipped>", which 13a deletes. Its ROUGE is 0 (even against an
  empty reference), it enters BLEU through the brevity penalty only, and it has no n-grams.
- Without n-grams of an order (only empty replies; Dist-2 of one-word replies) Dist is 0, for the corpus and per reply,
  so that a model cannot raise its mean with shorter replies.
- BLEU-n of a corpus without n-grams is 0, even for identical texts: BLEU-2 of "yes" against "yes".
- The tokeniser splits Western punctuation only: "great😀" and "😀😀" are one token each; curly quotes stay on the word.
- A line break ends a word, unless a hyphen precedes it: "well-" + newline + "being" is "wellbeing".
- `&quot;` `&amp;` `&lt;` `&gt;` are unescaped; other entities (`&#39;`) are split into `&`, `#`, `39`, `;`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from math import isfinite
from statistics import fmean
from typing import Any

TOKENISER = "13a"
BLEU_ORDERS = (1, 2, 3, 4)
DIST_ORDERS = (1, 2, 3)
ROUGE_TYPES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def tokens(text: str) -> list[str]:
    """The tokens of `text` as in BLEU: lower case, trailing white space stripped, sacrebleu's 13a (mteval-v13a)."""
    # sacrebleu strips the end first, too: 13a would join a hyphen at the end to a line break after it.
    split: str = _tokeniser()(text.lower().rstrip())
    return split.split()


def lengths(texts: Sequence[str]) -> list[int]:
    """Number of tokens of each of (N,) texts, punctuation marks included."""
    return [len(tokens(text)) for text in texts]


def overlap(predictions: Sequence[str], references: Sequence[str | None]) -> dict[str, float]:
    """All metrics of this module that depend on texts only.

    Args:
        predictions: (N,) replies of the model, in any order.
        references: (N,) human replies, in the same order; BLEU and ROUGE are over the replies that have one.

    Returns:
        `bleu_1`..`bleu_4`, `rouge_1`, `rouge_2`, `rouge_l`, `dist_1`..`dist_3`, `dist_1_per_reply`..,
        `empty_share`, `repeated_share` in 0..100, and `reply_words` in tokens; no BLEU and ROUGE without a reference.

    Raises:
        ValueError: no examples, or lists of unequal length.
    """
    _check_pairs(predictions, references)
    pairs = [(text, human) for text, human in zip(predictions, references, strict=True) if human is not None]
    texts, humans = [text for text, _ in pairs], [human for _, human in pairs]
    rouge = rouge_per_example(texts, humans) if pairs else {}
    return {
        **(bleu(texts, humans) if pairs else {}),
        **{name: fmean(scores) for name, scores in rouge.items()},
        **distinct(predictions),
        **reply_statistics(predictions),
    }


def bleu(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU-1..4 of (N,) predictions against one reference each (Papineni et al. 2002), by sacrebleu.

    BLEU-n is the geometric mean of the precisions of orders 1..n, times the brevity penalty. A precision without
    a match is smoothed ("exp", sacrebleu's default), so BLEU-4 of a corpus with some match is rarely 0.

    Raises:
        ValueError: no examples, or lists of unequal length.
    """
    from sacrebleu.metrics.bleu import BLEU

    _check_pairs(predictions, references)
    return {
        f"bleu_{n}": BLEU(max_ngram_order=n, lowercase=True, tokenize=TOKENISER)
        .corpus_score(list(predictions), [list(references)])
        .score
        for n in BLEU_ORDERS
    }


def bleu_counts(predictions: Sequence[str], references: Sequence[str]) -> dict[str, list[int]]:
    """The counts of corpus BLEU by example: BLEU of any resample of the corpus is a function of their sums.

    Returns:
        `bleu_match_n` and `bleu_total_n`: n-grams of the reply that occur in its reference, and all of them, n = 1..4;
        `bleu_reply_words` and `bleu_reference_words`: tokens. Each (N,), in the order of the examples.

    Raises:
        ValueError: no examples, or lists of unequal length.
    """
    from sacrebleu.metrics.bleu import BLEU

    _check_pairs(predictions, references)
    # Effective order changes the sentence score, which is not used, but not the counts. sacrebleu warns without it.
    scorer = BLEU(lowercase=True, tokenize=TOKENISER, effective_order=True)
    pairs = zip(predictions, references, strict=True)
    scores = [scorer.sentence_score(prediction, [reference]) for prediction, reference in pairs]
    return {
        **{f"bleu_match_{n}": [score.counts[n - 1] for score in scores] for n in BLEU_ORDERS},
        **{f"bleu_total_{n}": [score.totals[n - 1] for score in scores] for n in BLEU_ORDERS},
        "bleu_reply_words": [score.sys_len for score in scores],
        "bleu_reference_words": [score.ref_len for score in scores],
    }


def rouge_per_example(predictions: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1 of each example (Lin 2004), by rouge-score without stemming.

    Returns:
        `rouge_1`, `rouge_2`, `rouge_l`: (N,) scores in 0..100, in the order of the examples.

    Raises:
        ValueError: no examples, or lists of unequal length.
    """
    from rouge_score.rouge_scorer import RougeScorer

    _check_pairs(predictions, references)
    scorer = RougeScorer(list(ROUGE_TYPES.values()), tokenizer=_RougeTokeniser())
    scores = [
        scorer.score(reference, prediction) for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {name: [100 * score[kind].fmeasure for score in scores] for name, kind in ROUGE_TYPES.items()}


def distinct(predictions: Sequence[str]) -> dict[str, float]:
    """Dist-1..3 (Li et al. 2016) of (N,) replies: distinct n-grams over all n-grams, in 0..100.

    Returns:
        `dist_n`, over all replies together, and `dist_n_per_reply`, the mean over replies.

    Raises:
        ValueError: no replies.
    """
    _check_some(predictions)
    replies = [tokens(text) for text in predictions]
    corpus = {
        f"dist_{n}": _distinct_share([gram for reply in replies for gram in _ngrams(reply, n)]) for n in DIST_ORDERS
    }
    each = {name: fmean(scores) for name, scores in distinct_per_reply(predictions).items()}
    return corpus | each


def distinct_per_reply(predictions: Sequence[str]) -> dict[str, list[float]]:
    """`dist_n_per_reply` of each of (N,) replies, in 0..100 and in their order; 0 for a reply without n-grams."""
    replies = [tokens(text) for text in predictions]
    return {f"dist_{n}_per_reply": [_distinct_share(_ngrams(reply, n)) for reply in replies] for n in DIST_ORDERS}


def reply_statistics(predictions: Sequence[str]) -> dict[str, float]:
    """Length, emptiness and repetition of (N,) replies.

    Returns:
        `reply_words`: mean number of tokens; `empty_share`: replies without a token, in 0..100; `repeated_share`:
        replies whose tokens are also those of another reply, in 0..100. Empty replies do not count as repeated.

    Raises:
        ValueError: no replies.
    """
    _check_some(predictions)
    replies = [tuple(tokens(text)) for text in predictions]
    times = Counter(replies)
    repeated = sum(count for reply, count in times.items() if reply and count > 1)
    return {
        "reply_words": fmean(map(len, replies)),
        "empty_share": 100 * times[()] / len(replies),
        "repeated_share": 100 * repeated / len(replies),
    }


def preferred(reference_logp: float, rejected_logp: float) -> float:
    """100 where the reference is likelier than the rejected reply, 50 for a tie, else 0.

    Args:
        reference_logp: mean log-probability per token of the reference in its context, in nats.
        rejected_logp: the same of the rejected reply.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    if not (isfinite(reference_logp) and isfinite(rejected_logp)):
        raise ValueError("a log-probability is NaN or infinite")
    return 100 * (float(reference_logp > rejected_logp) + 0.5 * (reference_logp == rejected_logp))


def signature(predictions: Sequence[str], references: Sequence[str | None]) -> dict[str, str]:
    """What explains the numbers of `overlap`: libraries, versions, tokeniser, counts, definitions.

    Raises:
        ValueError: no examples, or lists of unequal length.
    """
    from sacrebleu.metrics.bleu import BLEU

    _check_pairs(predictions, references)
    humans = [human for human in references if human is not None]
    # The signature contains the number of references, which sacrebleu takes from the references.
    bleu_4 = BLEU(lowercase=True, tokenize=TOKENISER, references=[humans] if humans else None)
    return {
        **({"bleu": str(bleu_4.get_signature())} if humans else {}),
        "sacrebleu": version("sacrebleu"),
        **({"rouge": "mean F1 of the examples, no stemming", "rouge_score": version("rouge_score")} if humans else {}),
        **({"references": str(len(humans))} if 0 < len(humans) < len(references) else {}),
        "tokeniser": f"sacrebleu {TOKENISER}, for every metric",
        "case": "lower",
        "examples": str(len(predictions)),
        "dist": "distinct n-grams / all n-grams over all replies; 0 without n-grams",
        "dist_per_reply": "mean over all replies of distinct n-grams / n-grams; 0 for a reply without n-grams",
        "reply_words": "mean tokens per reply, punctuation marks included",
        "empty": "replies without a token / all replies",
        "repeated": "replies whose tokens another reply has too, empty ones aside / all replies",
    }


class _RougeTokeniser:
    """`tokens` with rouge-score's interface."""

    def tokenize(self, text: str) -> list[str]:
        return tokens(text)


@cache
def _tokeniser() -> Any:
    """One instance per process, since each instance has its own cache of tokenised lines."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _distinct_share(grams: list[tuple[str, ...]]) -> float:
    return 100 * len(set(grams)) / len(grams) if grams else 0.0


def _check_some(examples: Sequence[object]) -> None:
    if not examples:
        raise ValueError("no examples to score")


def _check_pairs(first: Sequence[object], second: Sequence[object]) -> None:
    if len(first) != len(second):
        raise ValueError(f"different numbers of examples: {len(first)} and {len(second)}")
    _check_some(first)
