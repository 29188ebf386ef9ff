"""Safety of replies: probes, rules that read the replies, and how well the rules read labelled ones."""
