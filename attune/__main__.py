"""Commands around the pipeline; `python -m attune <command> --help` describes each.

The stages of the pipeline are run by `dvc repro`, or one at a time by `python -m stages.<stage>`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from attune.runtime.cli import make_parser
from attune.runtime.errors import reported

# Command: the module whose `main` runs it, and its line on the help page.
COMMANDS = {
    "params": ("attune.tools.params", "compose params.yaml from conf/"),
    "repro": ("attune.tools.repro", "run the stages that have changed, with the time left"),
    "show": ("attune.tools.show", "show the result of the last run on one screen"),
    "chat": ("attune.tools.chat", "talk to a trained variant in the terminal"),
    "serve": ("attune.tools.serve", "serve a variant by an OpenAI-compatible endpoint and a page"),
    "score": ("attune.tools.score", "score and compare replies that were made elsewhere"),
    "compare": ("attune.tools.compare", "compare this run with a revision, another run or a record"),
    "review": ("attune.tools.review", "show metrics and replies before and after a change"),
    "rate": ("attune.tools.rate", "serve a page for blind ratings of two variants"),
    "validity": ("attune.tools.validity", "measure how far every metric agrees with people's ratings"),
    "safety": ("attune.tools.safety", "show how well the rules of the screen for safety read"),
    "study": ("attune.tools.study", "run a grid of experiments of studies/"),
    "record": ("attune.tools.record", "run a recipe and keep its numbers in docs/results"),
    "verify": ("attune.tools.verify", "run the committed pipeline again and compare"),
    "memory": ("attune.tools.memory.estimate", "estimate the memory of SFT and DPO before loading any weights"),
    "export": ("attune.tools.export", "write a variant as one model, or preference pairs in TRL's format"),
    "push": ("attune.tools.push", "publish a variant or pairs on the Hugging Face Hub"),
    "sample": ("attune.tools.sample", "write an embedded sample corpus from its phrases"),
    "pipeline": ("attune.tools.pipeline", "print the diagram of the pipeline"),
}


def main(argv: Sequence[str]) -> None:
    """Run a command; without one print the help page."""
    parser = make_parser("python -m attune", __doc__)
    commands = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    for name, (_, line) in COMMANDS.items():
        commands.add_parser(name, help=line, add_help=False)
    with reported():
        if not argv:
            parser.print_help()
            return
        # The arguments after it are the command's, whose module is imported only now.
        parser.parse_args(argv[:1])
        import_module(COMMANDS[argv[0]][0]).main(argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
